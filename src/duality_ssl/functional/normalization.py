"""What is done to rows and columns before their products are taken."""

import torch
from torch import Tensor

from duality_ssl.functional._products import full_precision

# A shorter row has no direction: it normalises to zero, with zero gradient.
_SHORTEST = 1e-12
# The subtraction of a mean leaves about eps * |mean| of rounding noise, which must not be blown up
# to unit norm: what is within this many eps of the mean counts as constant.
_ROUNDING = 16.0


def _rescale(z: Tensor, dim: int, length: float, shortest: Tensor | float) -> Tensor:
    """Give the vectors along ``dim`` the norm ``length``; those of norm ``shortest`` or less, 0."""
    norm = torch.linalg.vector_norm(z, dim=dim, keepdim=True)
    # An infinite norm makes both the vector and its gradient zero, where an epsilon would divide
    # the gradient by epsilon.
    return z * (length / norm.masked_fill(norm <= shortest, torch.inf))


def _noise(mean: Tensor) -> Tensor:
    """Bound, per dimension, what rounding leaves of a constant after centring."""
    return _ROUNDING * torch.finfo(mean.dtype).eps * mean.detach().abs() + _SHORTEST


@full_precision
def centered(z: Tensor) -> Tensor:
    """Subtract from each dimension its mean over the batch.

    Args:
        z: Embeddings of shape ``(N, D)``.

    Returns:
        Embeddings of shape ``(N, D)`` whose columns sum to zero.
    """
    return z - z.mean(dim=0)


@full_precision
def normalize_rows(z: Tensor, length: float = 1.0) -> Tensor:
    """Scale each row to norm ``length`` (SimCLR as published).

    Args:
        z: Embeddings of shape ``(N, D)``.
        length: The norm that the rows get.

    Returns:
        Shape ``(N, D)``. A row of norm 1e-12 or less becomes zero and gets zero gradient.
    """
    return _rescale(z, 1, length, _SHORTEST)


@full_precision
def normalize_centered_rows(z: Tensor, length: float = 1.0) -> Tensor:
    """Centre each dimension over the batch, then scale each row to norm ``length`` (SimCLR A).

    Args:
        z: Embeddings of shape ``(N, D)``.
        length: The norm that the rows get.

    Returns:
        Shape ``(N, D)``. A row that is the mean but for rounding becomes zero, with zero gradient.
    """
    mean = z.mean(dim=0)
    return _rescale(z - mean, 1, length, torch.linalg.vector_norm(_noise(mean)))


@full_precision
def standardize_columns(z: Tensor, length: float = 1.0) -> Tensor:
    r"""Centre each dimension over the batch, then scale it to norm ``length`` (Barlow Twins).

    Args:
        z: Embeddings of shape ``(N, D)``.
        length: The norm that the columns get; :math:`\sqrt N` is a biased standard deviation of 1
            (batch norm without its epsilon), :math:`\sqrt{N/D}` the paper's SimCLR B.

    Returns:
        Shape ``(N, D)``. A dimension that is constant but for rounding becomes zero, with zero
        gradient.
    """
    mean = z.mean(dim=0)
    return _rescale(z - mean, 0, length, _noise(mean) * len(z) ** 0.5)


@full_precision
def project_to_ball(z: Tensor, radius: float) -> Tensor:
    """Shorten the rows that are longer than ``radius`` to it; leave the others.

    Args:
        z: Embeddings of shape ``(N, D)``.
        radius: Radius of the ball, positive.

    Returns:
        Shape ``(N, D)``, all rows of norm at most ``radius``.
    """
    norm = torch.linalg.vector_norm(z, dim=1, keepdim=True)
    return z * (radius / norm.clamp_min(radius))
