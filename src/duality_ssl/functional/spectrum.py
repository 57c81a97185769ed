"""What the spectrum of the embeddings says of them without labels: effective ranks and decay."""

import math

import torch
from torch import Tensor

from duality_ssl.functional.normalization import centered
from duality_ssl.functional.precision import to_double

_PIECE = 2**24  # entries that `lidar` holds in float64 at a time: 128 MiB


@torch.no_grad()
def singular_values(z: Tensor) -> Tensor:
    r"""Singular values :math:`\sigma_1 \ge \sigma_2 \ge \dots \ge 0` of the embeddings.

    They are square roots of eigenvalues of the smaller Gram matrix in float64: those under 1e-8 of
    the largest are noise.

    Args:
        z: Embeddings of shape ``(N, D)``, neither centred nor normalised here.

    Returns:
        Shape ``(min(N, D),)``, in float64, without gradient; on the CPU if ``z`` is on MPS, which
        has no float64. NaN if ``z`` has a NaN or Inf.

    Example:
        >>> singular_values(torch.tensor([[3.0, 0.0], [0.0, 4.0], [0.0, 0.0]]))
        tensor([4., 3.], dtype=torch.float64)
    """
    z = to_double(z)
    gram = z @ z.T if len(z) <= z.shape[1] else z.T @ z
    if not gram.isfinite().all():  # LAPACK would raise an error about convergence
        return gram.new_full((len(gram),), torch.nan)
    return torch.linalg.eigvalsh(gram).flip(0).clamp_min(0).sqrt()


@torch.no_grad()
def rankme(z: Tensor, eps: float = 1e-7) -> Tensor:
    r"""Effective rank: the exponential of the entropy of the normalised singular values.

    .. math:: \exp\Bigl(-\sum_k p_k \log p_k\Bigr), \qquad
        p_k = \frac{\sigma_k(z)}{\sum_l \sigma_l(z)} + \epsilon

    A scalar between 1 and ``min(N, D)`` (a little above by ``eps``), in float64, without gradient;
    NaN if ``z`` has a NaN or Inf. The embeddings ``(N, D)`` are neither centred nor normalised
    here; ``eps`` is above the noise of :func:`singular_values`. On MPS, which has no float64, the
    CPU computes it.

    Reference: Garrido et al., *RankMe*, ICML 2023, section 3, https://arxiv.org/abs/2210.02885

    Example:
        >>> round(rankme(torch.eye(3)).item(), 3)
        3.0
    """
    return _effective_rank(singular_values(z), eps)


@torch.no_grad()
def lidar(features: Tensor, delta: float = 1e-4, eps: float = 1e-7) -> Tensor:
    r"""Effective rank of the linear discriminant of images, each image a class of its views.

    With the mean :math:`\mu_i` of image i's views and the mean :math:`\mu` of these,

    .. math::
        S_b = \frac{1}{n - 1} \sum_i (\mu_i - \mu)(\mu_i - \mu)^\top, \qquad
        S_w = \frac{1}{n (q - 1)} \sum_{i,j} (z_{ij} - \mu_i)(z_{ij} - \mu_i)^\top + \delta I,

    the result is :math:`\exp(-\sum_k p_k \log p_k)`, :math:`p_k = \lambda_k / \sum_l \lambda_l +
    \epsilon`, where :math:`\lambda_k` are the ``min(n, D)`` largest eigenvalues of
    :math:`S_w^{-1/2} S_b S_w^{-1/2}`. The scale of :math:`S_b` cancels; :math:`\delta` is
    absolute, so that of the embeddings does not.

    Args:
        features: Features or embeddings of shape ``(n, q, D)``: q augmented views of n images.
        delta: :math:`\delta`.
        eps: :math:`\epsilon`.

    Returns:
        Scalar between 1 and ``min(n - 1, D)`` (a little above by ``eps``), in float64, without
        gradient; on the CPU if ``features`` are on MPS. NaN if one is NaN or infinite, or if they
        are so large that :math:`\delta` vanishes in the rounding of :math:`S_w`.

    Raises:
        ValueError: If there are not at least 2 views of 2 images.

    Reference: Thilak et al., *LiDAR*, ICLR 2024, https://arxiv.org/abs/2312.04000

    Example:
        >>> images = torch.cat([torch.eye(3), -torch.eye(3)])
        >>> views = torch.stack([images, images], dim=1)  # of shape (6, 2, 3), two equal views
        >>> round(lidar(views).item(), 3)
        3.0
    """
    if features.ndim != 3 or min(features.shape[:2]) < 2:
        raise ValueError(
            "Expected `features` of shape (n, q, D), q >= 2 views of n >= 2 images, but got "
            f"{tuple(features.shape)}."
        )
    n, q, d = features.shape
    pieces = features.split(max(1, _PIECE // (q * d)))
    means = torch.cat([to_double(views).mean(dim=1) for views in pieces])
    within = means.new_zeros(d, d)
    for views, centres in zip(pieces, means.split(len(pieces[0])), strict=True):
        deviations = (to_double(views) - centres[:, None]).flatten(0, 1)
        within += deviations.T @ deviations / (n * (q - 1))
    within.diagonal().add_(delta)
    factor, failed = torch.linalg.cholesky_ex(within)
    if failed:
        return within.new_tensor(torch.nan)
    # L^-1 S_b L^-T has the eigenvalues of S_w^-1/2 S_b S_w^-1/2
    whitened = torch.linalg.solve_triangular(factor, centered(means).T, upper=False)
    return _effective_rank(singular_values(whitened).square(), eps)


@torch.no_grad()
def alpha_req(z: Tensor) -> Tensor:
    r"""Exponent :math:`\alpha` of the decay :math:`\lambda_k \propto k^{-\alpha}` of eigenvalues.

    Those of the covariance, in descending order: the negative slope of the least squares line
    through :math:`(\log k, \log \lambda_k)`. Of ``r = min(N - 1, D)`` eigenvalues the ranks 11 to
    100 are fitted, or ``r / 10`` (rounded up) to ``r`` if there are fewer than 100, without those
    that are zero but for rounding. The paper reports the best representations near 1; one that
    collapses decays faster.

    Args:
        z: Features or embeddings of shape ``(N, D)``; centred here.

    Returns:
        Scalar in float64, without gradient; on the CPU if ``z`` is on MPS. NaN if ``z`` has a NaN
        or Inf, or less than two eigenvalues to fit.

    Reference: Agrawal et al., *alpha-ReQ*, NeurIPS 2022

    Example:
        >>> basis = torch.linalg.qr(torch.cat([torch.eye(9), -torch.eye(9)]))[0]
        >>> ranks = torch.arange(1.0, 10)
        >>> round(alpha_req(basis / ranks).item(), 3)  # eigenvalues 1 / k^2
        2.0
    """
    eigenvalues = singular_values(centered(to_double(z))).square()
    last = min(len(z) - 1, z.shape[1])
    first, last = (11, 100) if last >= 100 else (math.ceil(last / 10), last)
    fitted = eigenvalues[first - 1 : last]
    noise = len(eigenvalues) * torch.finfo(eigenvalues.dtype).eps * eigenvalues.max()
    kept = fitted > noise
    x = torch.arange(first, last + 1).to(fitted)[kept].log()
    x = x - x.mean()
    return -(x * fitted[kept].log()).sum() / x.square().sum()


def _effective_rank(values: Tensor, eps: float) -> Tensor:
    p = values / values.sum().clamp_min(torch.finfo(values.dtype).tiny) + eps
    return torch.exp(-(p * p.log()).sum())
