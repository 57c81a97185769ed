"""Variances and squared covariances that never store the centred embeddings.

The subtraction of a mean needs no backward pass of its own: a product of centred vectors has
centred gradients already.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from duality_ssl.distributed import Group
from duality_ssl.functional._kernels.dispatch import pieces


def mean_and_variance(z: Tensor, group: Group) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each dimension over the samples of all processes.

    By pieces: `torch.var_mean` takes ten times as long over the first axis on a CPU, and the mean
    of torch's batch norm is the plain sum, whose rounding grows with N.
    """
    mean = group.sum(z.mean(dim=0)) / group.world_size
    squares = torch.zeros_like(mean)
    for at in pieces(z, 0):
        squares += (z[at] - mean).square_().sum(dim=0)
    return mean, group.sum(squares) / (group.world_size * len(z))


def variance(z: Tensor, group: Group) -> tuple[Tensor, Sequence[Tensor]]:
    n = group.world_size * len(z)
    mean, biased = mean_and_variance(z, group)
    return biased * (n / (n - 1)), [mean]


def variance_gradient(grad: Tensor, z: Tensor, saved: Sequence[Tensor], group: Group) -> Tensor:
    (mean,) = saved
    slope = 2 * group.sum(grad) / (group.world_size * len(z) - 1)
    return torch.addcmul(-slope * mean, z, slope)


def squared_covariance(z: Tensor, group: Group) -> tuple[Tensor, Sequence[Tensor]]:
    n, d = group.world_size * len(z), z.shape[1]
    mean, biased = mean_and_variance(z, group)
    if n < d:
        everyone, own, norms = group.all_gather(z), group.own(len(z)), n * biased
        gram = z.new_zeros(len(z), n)
        for at in pieces(everyone, 1):
            centered = everyone[:, at] - mean[at]
            gram.addmm_(centered[own], centered.T)
        # theorem 3.3; the diagonal of the other side is the fourth-norm sum of the samples
        value = group.sum(gram.square().sum()) - norms.square().sum()
        saved = [mean, gram, norms, everyone]
    else:
        gram = z.new_zeros(d, d)
        for at in pieces(z, 0):
            centered = z[at] - mean
            gram.addmm_(centered.T, centered)
        gram = group.sum(gram).fill_diagonal_(0)
        value, saved = gram.square().sum(), [mean, gram]
    return value / ((n - 1) ** 2 * d), saved


def squared_covariance_gradient(
    grad: Tensor, z: Tensor, saved: Sequence[Tensor], group: Group
) -> Tensor:
    n, d = group.world_size * len(z), z.shape[1]
    mean, gram, *rest = saved
    slope = 4 * group.sum(grad) / ((n - 1) ** 2 * d)
    weights = slope * gram
    if n < d:
        norms, everyone = rest
        on_norms = slope * norms
        result = torch.addcmul(on_norms * mean, z, on_norms, value=-1)
        for at in pieces(everyone, 1):
            result[:, at].addmm_(weights, everyone[:, at] - mean[at])
    else:
        result = torch.empty_like(z)
        for at in pieces(z, 0):
            result[at] = (z[at] - mean) @ weights
    return result
