"""Centring, and rows or columns of one length: embeddings ``(n, D)`` to embeddings ``(n, D)``."""

import torch
from torch import Tensor

from duality_ssl.distributed import SINGLE, Group
from duality_ssl.functional._kernels import normalization as kernels
from duality_ssl.functional._kernels.dispatch import accelerated
from duality_ssl.functional.precision import SHORTEST, full_precision, rounding_noise


@full_precision
def centered(z: Tensor, group: Group = SINGLE) -> Tensor:
    """Subtract from each dimension its mean over the batch, the rows of all processes.

    Example:
        >>> centered(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        tensor([[-1., -1.],
                [ 1.,  1.]])
    """
    return z - _mean(z, group)


@full_precision
def normalize_rows(z: Tensor, length: float = 1.0) -> Tensor:
    """Scale each row to norm ``length`` (SimCLR as published).

    A row of norm 1e-12 or less becomes zero and gets zero gradient.

    Example:
        >>> normalize_rows(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000]])
    """
    return _of_length(z, length, z.new_tensor(SHORTEST), dim=1)


@full_precision
def normalize_columns(z: Tensor, length: float = 1.0, group: Group = SINGLE) -> Tensor:
    """Scale each dimension to norm ``length`` over the batch, without centring it (FroSSL).

    A dimension of norm 1e-12 or less becomes zero and gets zero gradient.

    Example:
        >>> normalize_columns(torch.tensor([[3.0, 0.0], [4.0, 0.0]]))
        tensor([[0.6000, 0.0000],
                [0.8000, 0.0000]])
    """
    return _of_length(z, length, z.new_tensor(SHORTEST), dim=0, group=group)


@full_precision
def normalize_centered_rows(z: Tensor, length: float = 1.0, group: Group = SINGLE) -> Tensor:
    """Centre each dimension over the batch, then scale each row to norm ``length`` (SimCLR A).

    A row that equals the mean but for rounding becomes zero and gets zero gradient.

    Example:
        >>> normalize_centered_rows(torch.tensor([[1.0, 2.0], [7.0, 10.0]]))
        tensor([[-0.6000, -0.8000],
                [ 0.6000,  0.8000]])
    """
    mean = _mean(z, group)
    shortest = torch.linalg.vector_norm(rounding_noise(mean.detach()))
    return _of_length(z - mean, length, shortest, dim=1)


@full_precision
@accelerated(kernels.standardize_columns, kernels.standardize_columns_gradient, on=kernels.takes)
def standardize_columns(z: Tensor, length: float = 1.0, group: Group = SINGLE) -> Tensor:
    r"""Centre each dimension over the batch, then scale it to norm ``length`` (Barlow Twins).

    A length of :math:`\sqrt N` is a biased standard deviation of 1 (batch norm without its
    epsilon), :math:`\sqrt{N/D}` the paper's SimCLR B. A dimension that is constant but for rounding
    becomes zero and gets zero gradient.

    Example:
        >>> standardize_columns(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
        tensor([[-0.7071,  0.0000],
                [ 0.7071,  0.0000]])
    """
    mean = _mean(z, group)
    shortest = rounding_noise(mean.detach()) * (group.world_size * len(z)) ** 0.5
    return _of_length(z - mean, length, shortest, dim=0, group=group)


@full_precision
def project_to_ball(z: Tensor, radius: float) -> Tensor:
    """Shorten the rows that are longer than ``radius``, a positive number; leave the others.

    Example:
        >>> project_to_ball(torch.tensor([[3.0, 4.0], [0.3, 0.4]]), 1.0)
        tensor([[0.6000, 0.8000],
                [0.3000, 0.4000]])
    """
    return _of_length(z, radius, z.new_tensor(radius), dim=1, otherwise=1.0)


def _mean(z: Tensor, group: Group) -> Tensor:
    return group.sum(z.mean(dim=0)) / group.world_size


def _of_length(
    x: Tensor,
    length: float,
    shortest: Tensor,
    dim: int,
    otherwise: float = 0.0,
    group: Group = SINGLE,
) -> Tensor:
    """Scale the vectors along ``dim``, whose other entries ``group`` has, to one length.

    A vector of norm ``shortest`` or less is multiplied by ``otherwise``: 0 makes both the vector
    and its gradient zero, where an epsilon in the denominator would divide the gradient by epsilon.
    """
    norms = torch.linalg.vector_norm(x, dim=dim, keepdim=True)
    if group.world_size > 1:
        norms = group.sum(norms.square()).sqrt()
    longer = norms > shortest
    return x * torch.where(longer, length / torch.where(longer, norms, 1.0), otherwise)
