"""Gram matrices whose gradient takes one product: autograd takes two, for it sees no symmetry."""

from collections.abc import Sequence

from torch import Tensor

from duality_ssl.distributed import Group


def sample_gram(z: Tensor, group: Group) -> tuple[Tensor, Sequence[Tensor]]:
    everyone = group.all_gather(z)
    return z @ everyone.T, [everyone]


def sample_gram_gradient(grad: Tensor, z: Tensor, saved: Sequence[Tensor], group: Group) -> Tensor:
    (everyone,) = saved
    transposed = group.all_gather(grad)[:, group.own(len(z))].T
    return (grad + transposed) @ everyone


def dimension_gram(z: Tensor, group: Group) -> tuple[Tensor, Sequence[Tensor]]:
    return group.sum(z.T @ z), []


def dimension_gram_gradient(
    grad: Tensor, z: Tensor, saved: Sequence[Tensor], group: Group
) -> Tensor:
    grad = group.sum(grad)
    return z @ (grad + grad.T)
