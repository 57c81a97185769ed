"""What is done to rows and columns before their products are taken."""

import torch
from torch import Tensor

from duality_ssl.distributed import ALONE, Processes
from duality_ssl.functional._products import full_precision
from duality_ssl.functional._vectors import Normalize, Vectors, of_length

# A shorter row has no direction: it normalises to zero, with zero gradient.
_SHORTEST = 1e-12
# The subtraction of a mean leaves about eps * |mean| of rounding noise, which must not be blown up
# to unit norm: what is within this many eps of the mean counts as constant.
_ROUNDING = 16.0


def _noise(mean: Tensor) -> Tensor:
    """Bound, per dimension, what rounding leaves of a constant after centring."""
    return _ROUNDING * torch.finfo(mean.dtype).eps * mean.abs() + _SHORTEST


def _matrix(x: Tensor, vectors: Vectors) -> Tensor:
    """Write the vectors out; ``x`` is theirs with its history."""
    result: Tensor = Normalize.apply(x, *vectors[1:])
    return result


def unit_rows(z: Tensor, length: float = 1.0) -> Vectors:
    """Rows of one length; see :func:`normalize_rows`."""
    return of_length(z, length, None, _SHORTEST)


def unit_centered_rows(z: Tensor, length: float) -> Vectors:
    """Rows of one length about their mean; see :func:`normalize_centered_rows`."""
    mean = z.mean(dim=0)
    return of_length(z, length, mean[None], torch.linalg.vector_norm(_noise(mean)))


def unit_columns(z: Tensor, length: float = 1.0, processes: Processes = ALONE) -> Vectors:
    """Centred columns of one length, the rows of ``z.T``; see :func:`standardize_columns`."""
    mean = processes.sum(z.mean(dim=0)[:, None]) / processes.world_size
    shortest = _noise(mean) * (len(z) * processes.world_size) ** 0.5
    return of_length(z.T, length, mean, shortest, processes=processes)


def batch_normalized(z: Tensor) -> tuple[Tensor, Tensor]:
    """Columns of mean 0 and variance 1, and which of them are constant, whose entries are noise."""
    eps = torch.finfo(z.dtype).tiny  # batch norm without its epsilon, which must not be zero
    h, mean, inverse = torch.native_batch_norm(z, None, None, None, None, True, 0.0, eps)
    return h, 1 / inverse <= _noise(mean)


def rows_in_ball(z: Tensor, radius: float) -> Vectors:
    """Rows of at most a length; see :func:`project_to_ball`."""
    return of_length(z, radius, None, radius, otherwise=1.0)


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
    return _matrix(z, unit_rows(z.detach(), length))


@full_precision
def normalize_centered_rows(z: Tensor, length: float = 1.0) -> Tensor:
    """Centre each dimension over the batch, then scale each row to norm ``length`` (SimCLR A).

    Args:
        z: Embeddings of shape ``(N, D)``.
        length: The norm that the rows get.

    Returns:
        Shape ``(N, D)``. A row that is the mean but for rounding becomes zero, with zero gradient.
    """
    return _matrix(z, unit_centered_rows(z.detach(), length))


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
    return _matrix(z.T, unit_columns(z.detach(), length)).T


@full_precision
def project_to_ball(z: Tensor, radius: float) -> Tensor:
    """Shorten the rows that are longer than ``radius`` to it; leave the others.

    Args:
        z: Embeddings of shape ``(N, D)``.
        radius: Radius of the ball, positive.

    Returns:
        Shape ``(N, D)``, all rows of norm at most ``radius``.
    """
    return _matrix(z, rows_in_ball(z.detach(), radius))
