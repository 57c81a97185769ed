"""Whitening: dimensions without correlation, each of variance 1."""

import torch
from torch import Tensor

from duality_ssl.functional.precision import full_precision, rounding_noise, to_double


@full_precision
def whiten(z: Tensor) -> Tensor:
    r"""Whiten by the Cholesky factor of the covariance: :math:`a = \bar z L^{-\top}`.

    :math:`L L^\top = \bar z^\top \bar z / (N - 1)` of the centred embeddings, so that the
    covariance of a is the identity. It is computed in float64, from the correlations, which are as
    accurate whatever the scales of the dimensions. A dimension that is constant but for rounding,
    or depends on those before it, becomes zero.

    Args:
        z: Embeddings of shape ``(..., N, D)``, ``N > D``; each matrix is whitened by itself.

    Returns:
        The shape of ``z``.

    Reference: Ermolov et al., ICML 2021, section 3.1, https://arxiv.org/abs/2007.06346

    Example:
        >>> whiten(torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])).T[0]
        tensor([ 0.8660,  0.8660, -0.8660, -0.8660])
    """
    double = to_double(z)
    n, d = z.shape[-2:]
    mean = double.mean(dim=-2, keepdim=True)
    deviations = double - mean
    norms = torch.linalg.vector_norm(deviations, dim=-2, keepdim=True)
    spread = norms > rounding_noise(mean.detach()) * n**0.5
    h = deviations * torch.where(spread, 1 / torch.where(spread, norms, 1.0), 0.0)
    noise = 4 * d * torch.finfo(h.dtype).eps
    identity = torch.eye(d, dtype=h.dtype, device=h.device)
    factor, failed = torch.linalg.cholesky_ex(h.mT @ h + noise * identity)
    factor = torch.where(failed[..., None, None] == 0, factor, torch.nan)
    return ((n - 1) ** 0.5 * torch.linalg.solve_triangular(factor, h.mT, upper=False).mT).to(z)
