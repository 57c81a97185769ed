"""What the criteria add up: log-sum-exps, variance and covariance, coding rate; and the rank."""

from collections.abc import Callable

import torch
from torch import Tensor

from duality_ssl.functional._products import (
    dimension_gram,
    full_precision,
    half_log_det,
    product,
    self_product,
)
from duality_ssl.functional.normalization import centered


def _offdiagonal_logsumexp(logits: Tensor, *dims: int) -> tuple[Tensor, ...]:
    """Return the log-sum-exp along each of ``dims``, with -inf written over the diagonal.

    Not recorded by autograd, which is exact: the softmax weight of -inf is zero, so the gradient
    that comes back is zero there already. Saves the mask and two passes over the matrix.
    """
    with torch.no_grad():
        logits.fill_diagonal_(-torch.inf)
    return tuple(torch.logsumexp(logits, dim) for dim in dims)


@full_precision
def offdiagonal_logsumexp(similarities: Tensor, temperature: float = 1.0) -> Tensor:
    r"""Log-sum-exp of each row without its diagonal, :math:`\log \sum_{j \ne i} e^{s_{ij}/\tau}`.

    Args:
        similarities: Square matrix of shape ``(N, N)``, ``N >= 2``; left as it is.
        temperature: :math:`\tau`.

    Returns:
        Shape ``(N,)``; a sum, not a mean, over the ``N - 1`` others.
    """
    return _offdiagonal_logsumexp(similarities / temperature, 1)[0]


@full_precision
def negatives_logsumexp(
    h1: Tensor, h2: Tensor, similarity: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    r"""Log-sum-exp over the ``2 N - 2`` negatives, in both views, of each of the ``2 N`` samples.

    Args:
        h1: Normalised embeddings of the first view, shape ``(N, D)``, with the temperature in
            their norm.
        h2: The same of the second view.
        similarity: From the matrix of products to that of the logits, elementwise; must return a
            tensor of its own or one whose gradient does not need it (it is masked in place).

    Returns:
        For the rows of ``h1`` and of ``h2``, both of shape ``(N,)``. The positive is left out.
    """
    # Three blocks, not the full (2N, 2N): the fourth is the transpose of the third.
    (within1,) = _offdiagonal_logsumexp(similarity(self_product(h1)), 1)
    (within2,) = _offdiagonal_logsumexp(similarity(self_product(h2)), 1)
    across1, across2 = _offdiagonal_logsumexp(similarity(product(h1, h2)), 1, 0)
    return torch.logaddexp(within1, across1), torch.logaddexp(within2, across2)


@full_precision
def variance_hinge(variance: Tensor) -> Tensor:
    r"""Hinge on the standard deviation, :math:`\frac1D\sum_j \max(0, 1 - \sqrt{v_j + 10^{-4}})`.

    Args:
        variance: Variance of each dimension, shape ``(D,)``, unbiased (over ``N - 1``).

    Returns:
        Scalar in [0, 0.99], a mean over dimensions; halving over views is left to the criterion.

    Reference: Bardes et al., *VICReg*, ICLR 2022, eq. 1, https://arxiv.org/abs/2105.04906
    """
    return torch.relu(1 - torch.sqrt(variance + 1e-4)).mean()


@full_precision
def variance_and_covariance(z: Tensor) -> tuple[Tensor, Tensor]:
    r"""Per-dimension variance and VICReg's covariance term, from one product (eq. 10).

    Args:
        z: Embeddings of shape ``(N, D)``, ``N >= 2``; centred here.

    Returns:
        Unbiased variances of shape ``(D,)`` and the scalar
        :math:`\frac{1}{D}\sum_{i \ne j} C_{ij}^2`, :math:`C = z^\top z / (N - 1)` of the centred z:
        divided by ``D`` as in VICReg's released code, not by ``D (D - 1)``. With ``N < D`` it comes
        from the ``N x N`` Gram matrix.
    """
    n, d = z.shape
    criterion, norms = dimension_gram(centered(z))
    return norms / (n - 1), criterion / ((n - 1) ** 2 * d)


def squared_covariance(z: Tensor) -> Tensor:
    r"""VICReg's covariance term alone, :math:`\frac{1}{D}\sum_{i \ne j} C_{ij}^2`.

    Args:
        z: Embeddings of shape ``(N, D)``, ``N >= 2``; centred here.

    Returns:
        Scalar, zero if and only if the dimensions are uncorrelated; see
        :func:`variance_and_covariance`.
    """
    return variance_and_covariance(z)[1]


@full_precision
def variance_and_covariance_logsumexp(z: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    r"""Per-dimension variance and VICReg-exp's covariance term.

    Args:
        z: Embeddings of shape ``(N, D)``, ``N >= 2`` and ``D >= 2``; centred here.
        temperature: :math:`\tau`.

    Returns:
        Unbiased variances of shape ``(D,)`` and the scalar
        :math:`\frac{1}{D}\sum_i \log\sum_{j \ne i} e^{C_{ij}/\tau}`, :math:`C = z^\top z / (N - 1)`
        of the centred z. An exponential has no second side: this is the ``D x D`` matrix.
    """
    scaled = centered(z).T * (1 / ((len(z) - 1) * temperature)) ** 0.5
    # Not the diagonal of the logits, whose backward is one more D x D matrix.
    variance = scaled.square().sum(dim=1) * temperature
    (repulsion,) = _offdiagonal_logsumexp(self_product(scaled), 1)
    return variance, repulsion.mean()


@full_precision
def coding_rate(z: Tensor, distortion: float) -> Tensor:
    r"""Coding rate :math:`R(z) = \frac12 \log\det(I + \frac{D}{N \epsilon^2} z^\top z)` (TCR).

    Args:
        z: Embeddings of shape ``(N, D)``; TCR gives them unit rows. Not centred, not scaled here.
        distortion: :math:`\epsilon^2`, positive.

    Returns:
        Scalar, in nats, from a Cholesky factor of the smaller side. Unit rows are always safe;
        where the eigenvalues of :math:`\frac{D}{N \epsilon^2} z^\top z` exceed the dtype's
        ``1 / eps`` the 1 is lost beside them, and if the factorisation fails for it, value and
        gradient are NaN.

    Reference: Yu et al., *Learning Diverse and Discriminative Representations via the Principle of
    Maximal Coding Rate Reduction*, NeurIPS 2020, section 2.1, https://arxiv.org/abs/2006.08558
    """
    n, d = z.shape
    return half_log_det(z, d / (n * distortion))


@torch.no_grad()
def rankme(z: Tensor, eps: float = 1e-7) -> Tensor:
    r"""Effective rank: the exponential of the entropy of the normalised singular values.

    .. math:: \exp\Bigl(-\sum_k p_k \log p_k\Bigr), \qquad
        p_k = \frac{\sigma_k(z)}{\sum_l \sigma_l(z)} + \epsilon

    Args:
        z: Embeddings of shape ``(N, D)``, as they are: neither centred nor normalised.
        eps: :math:`\epsilon`.

    Returns:
        Scalar between 1 and ``min(N, D)`` (a little above by ``eps``), in float64, without
        gradient; on the CPU if ``z`` is on MPS, which has no float64. The singular values are
        square roots of eigenvalues of the smaller Gram matrix in float64: those under 1e-8 of the
        largest are noise, as they are for ``eps``. NaN if ``z`` has a NaN or Inf.

    Reference: Garrido et al., *RankMe*, ICML 2023, section 3, https://arxiv.org/abs/2210.02885
    """
    z = (z.cpu() if z.device.type == "mps" else z).double()
    with torch.autocast(z.device.type, enabled=False):
        gram = z @ z.T if len(z) <= z.shape[1] else z.T @ z
        if not gram.isfinite().all():  # LAPACK would raise an error about convergence
            return gram.new_tensor(torch.nan)
        values = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()
        p = values / values.sum().clamp_min(torch.finfo(values.dtype).tiny) + eps
        return torch.exp(-(p * p.log()).sum())
