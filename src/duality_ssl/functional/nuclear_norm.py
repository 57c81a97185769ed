"""Nuclear norm: the sum of the singular values."""

import torch
from torch import Tensor

from duality_ssl.distributed import SINGLE, Group
from duality_ssl.functional.gram import dimension_gram, sample_gram
from duality_ssl.functional.precision import full_precision, to_double


@full_precision
def nuclear_norm(z: Tensor, group: Group = SINGLE) -> Tensor:
    r"""Nuclear norm :math:`\|z\|_* = \sum_k \sqrt{\lambda_k(z^\top z)}`, from the smaller side.

    The gradient is :math:`z (z^\top z)^{-1/2}`. A Gram matrix squares the singular values, so it
    and its eigenvalues are float64. Eigenvalues that are zero but for rounding are left out, with
    zero gradient: those of singular values under about 1e-8 of the largest.

    Args:
        z: Matrix ``(n, D)``, neither centred nor scaled here.
        group: Processes that share the products; each computes the eigenvalues.

    Returns:
        Scalar, at most :math:`\sqrt{\min(N, D)}\,\|z\|_F`. NaN if ``z`` has a NaN or Inf.

    Example:
        >>> nuclear_norm(torch.tensor([[3.0, 0.0], [0.0, 4.0], [0.0, 0.0]]))
        tensor(7.)
    """
    double = to_double(z)
    if group.world_size * len(z) <= z.shape[1]:
        return _sum_of_roots(group.gather(sample_gram(double, group))).to(z)
    return _sum_of_roots(dimension_gram(double, group)).to(z)


@full_precision
def nuclear_norms(z: Tensor) -> Tensor:
    """Nuclear norm of each matrix of a batch: shape ``(B, V, D)`` to shape ``(B,)``.

    Example:
        >>> nuclear_norms(torch.ones(1, 2, 2))
        tensor([2.])
    """
    double = to_double(z)
    smaller = double if z.shape[1] <= z.shape[2] else double.mT
    return _sum_of_roots(smaller @ smaller.mT).to(z)


def _sum_of_roots(gram: Tensor) -> Tensor:
    """Sum the square roots of the eigenvalues of ``(..., m, m)``."""
    finite = gram.isfinite().all()  # LAPACK raises an error about convergence for what is not
    values = torch.linalg.eigvalsh(torch.where(finite, gram, 0.0))
    noise = gram.shape[-1] * torch.finfo(gram.dtype).eps * values[..., -1:]
    kept = values > noise
    roots = torch.where(kept, torch.where(kept, values, 1.0).sqrt(), 0.0)
    return torch.where(finite, roots.sum(dim=-1), torch.nan)
