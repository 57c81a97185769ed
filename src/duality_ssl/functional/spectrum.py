"""Effective rank of the embeddings."""

import torch
from torch import Tensor


@torch.no_grad()
def rankme(z: Tensor, eps: float = 1e-7) -> Tensor:
    r"""Effective rank: the exponential of the entropy of the normalised singular values.

    .. math:: \exp\Bigl(-\sum_k p_k \log p_k\Bigr), \qquad
        p_k = \frac{\sigma_k(z)}{\sum_l \sigma_l(z)} + \epsilon

    A scalar between 1 and ``min(N, D)`` (a little above by ``eps``), in float64, without gradient;
    NaN if ``z`` has a NaN or Inf. The embeddings ``(N, D)`` are neither centred nor normalised
    here. The singular values are square roots of eigenvalues of the smaller Gram matrix: those
    under 1e-8 of the largest are noise, as they are for ``eps``. On MPS, which has no float64, the
    CPU computes it.

    Reference: Garrido et al., *RankMe*, ICML 2023, section 3, https://arxiv.org/abs/2210.02885

    Example:
        >>> round(rankme(torch.eye(3)).item(), 3)
        3.0
    """
    z = (z.cpu() if z.device.type == "mps" else z).double()
    with torch.autocast(z.device.type, enabled=False):
        gram = z @ z.T if len(z) <= z.shape[1] else z.T @ z
        if not gram.isfinite().all():  # LAPACK would raise an error about convergence
            return gram.new_tensor(torch.nan)
        values = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()
        p = values / values.sum().clamp_min(torch.finfo(values.dtype).tiny) + eps
        return torch.exp(-(p * p.log()).sum())
