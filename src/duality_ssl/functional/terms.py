"""What the criteria add up: log-sum-exps, variance and covariance, coding rate; and the rank."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from duality_ssl.distributed import ALONE, Processes
from duality_ssl.functional._logsumexp import LogSumExps
from duality_ssl.functional._pairs import CenteredViews, HalfLogDets, OffDiagonalCross
from duality_ssl.functional._products import dimension_gram, full_precision
from duality_ssl.functional._vectors import Vectors, as_they_are
from duality_ssl.functional.normalization import (
    batch_normalized,
    centered,
    normalize_centered_rows,
    rows_in_ball,
    standardize_columns,
    unit_columns,
    unit_rows,
)

Similarity = Literal["cosine", "squared", "absolute"]
Normalization = Literal["embeddings", "centered", "standardized"]


@full_precision
def offdiagonal_logsumexp(similarities: Tensor, temperature: float = 1.0) -> Tensor:
    r"""Log-sum-exp of each row without its diagonal, :math:`\log \sum_{j \ne i} e^{s_{ij}/\tau}`.

    Args:
        similarities: Square matrix of shape ``(N, N)``, ``N >= 2``; left as it is.
        temperature: :math:`\tau`.

    Returns:
        Shape ``(N,)``; a sum, not a mean, over the ``N - 1`` others.
    """
    itself = torch.eye(len(similarities), dtype=torch.bool, device=similarities.device)
    return (similarities / temperature).masked_fill(itself, -torch.inf).logsumexp(dim=1)


@full_precision
def contrast_logits(
    z1: Tensor,
    z2: Tensor,
    length: float = 1.0,
    similarity: Similarity = "cosine",
    normalization: Normalization = "embeddings",
    processes: Processes = ALONE,
) -> tuple[Tensor, Tensor]:
    r"""Logit of each positive pair, and the log-sum-exp of each sample's negatives in both views.

    Args:
        z1: Embeddings of the first view, shape ``(N, D)``, ``N >= 2``.
        z2: Embeddings of the second view, shape ``(N, D)``.
        length: Norm that the embeddings get: with the temperature :math:`\tau` in it,
            :math:`\tau^{-1/2}` (``squared``: :math:`\tau^{-1/4}`), similarities need no division.
        similarity: From a product :math:`p` to its logit: ``cosine`` :math:`p`, ``squared``
            :math:`p^2`, ``absolute`` :math:`|p|`.
        normalization: ``embeddings`` scales rows, see :func:`normalize_rows`; ``centered`` centres
            dimensions before, see :func:`normalize_centered_rows`; ``standardized`` scales
            dimensions to ``length`` times :math:`\sqrt{N/D}`, see :func:`standardize_columns`.
        processes: Those who have the batch's other rows; they share the tiles.

    Returns:
        Logits of shape ``(N,)``, and the log-sum-exp over the ``2 N - 2`` others, without itself
        and its partner, of the rows of ``z1`` and of ``z2``, shape ``(2, N)``. Computed in tiles:
        from about ``N = 2900`` on memory grows with N, not with its square.
    """
    z1, z2 = processes.gather(z1), processes.gather(z2)
    n, d = z1.shape
    views: list[tuple[Tensor, Tensor, Tensor]]
    if normalization == "embeddings":  # in the products, without a matrix of its own
        scales = [unit_rows(z.detach(), length) for z in (z1, z2)]
        views = [(z, v.factor, v.curvature) for z, v in zip((z1, z2), scales, strict=True)]
    elif normalization == "centered":
        views = [_scaled(normalize_centered_rows(z, length)) for z in (z1, z2)]
    else:
        views = [_scaled(standardize_columns(z, length * (n / d) ** 0.5)) for z in (z1, z2)]
    result: tuple[Tensor, Tensor] = LogSumExps.apply(similarity, processes, *views[0], *views[1])
    return result


@full_precision
def variance_hinge(variance: Tensor) -> Tensor:
    r"""Hinge on the standard deviation, :math:`\frac1D\sum_j \max(0, 1 - \sqrt{v_j + 10^{-4}})`.

    Args:
        variance: Variance of each dimension, shape ``(D,)``, unbiased (over ``N - 1``), or of each
            in both views, ``(2, D)``.

    Returns:
        Scalar in [0, 0.99], a mean over dimensions and views, as in VICReg's released code.

    Reference: Bardes et al., *VICReg*, ICLR 2022, eq. 1, https://arxiv.org/abs/2105.04906
    """
    return torch.relu(1 - torch.sqrt(variance + 1e-4)).mean()


@full_precision
def regularized_dimensions(
    z1: Tensor, z2: Tensor, temperature: float | None = None, processes: Processes = ALONE
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Invariance, variances and covariance penalties of two views, in one pass (VICReg, -exp).

    Args:
        z1: Embeddings of the first view, shape ``(N, D)``; centred here, but for the invariance.
        z2: Embeddings of the second view, shape ``(N, D)``.
        temperature: None for :math:`\frac1D\sum_{i \ne j} C_{ij}^2` of the covariance C over
            ``N - 1`` (eq. 9), computed on the smaller side; :math:`\tau` for
            :math:`\frac1D\sum_i\log\sum_{j \ne i} e^{C_{ij}/\tau}` (eq. 12), with ``N < D`` in
            tiles of C: an exponential has no second side.
        processes: Those who have the batch's other rows.

    Returns:
        The mean squared difference of the views over N and D, a scalar; the unbiased variances of
        both views' dimensions, shape ``(2, D)``; the penalty of each view, shape ``(2,)``, divided
        by D as in VICReg's released code, not by ``D (D - 1)``.
    """
    n, d = len(z1) * processes.world_size, z1.shape[1]
    factor = None if temperature is None else 1 / ((n - 1) * temperature)
    if factor is not None and d > n:
        z1, z2 = processes.gather(z1), processes.gather(z2)
        vectors = [centered(z).T for z in (z1, z2)]
        return mse_loss(z1, z2), *_variances_and_logsumexps(vectors, factor, processes)
    distance, norms, penalties = CenteredViews.apply(factor, processes, z1.T, z2.T)
    scale = d * (1 if factor else (n - 1) ** 2)
    return distance / (n * d), norms / (n - 1), penalties / scale


@full_precision
def regularized_samples(
    z1: Tensor, z2: Tensor, temperature: float, processes: Processes = ALONE
) -> tuple[Tensor, Tensor, Tensor]:
    r"""What :func:`regularized_dimensions` takes of dimensions, taken of samples (VICReg-ctr).

    Dimensions are centred over the batch, as there, and the matrix is transposed (table 1, eq. 13).

    Args:
        z1: Embeddings of the first view, shape ``(N, D)``; centred here, but for the invariance.
        z2: Embeddings of the second view, shape ``(N, D)``.
        temperature: :math:`\tau`.
        processes: Those who have the batch's other rows; they share the tiles.

    Returns:
        The mean squared difference of the views over N and D, a scalar; the unbiased variances of
        both views' rows :math:`\bar z_i` over the D dimensions, shape ``(2, N)``; of each view
        :math:`\frac1N\sum_i\log\sum_{j \ne i} e^{\bar z_i \cdot \bar z_j/((D - 1)\tau)}`, in
        tiles, shape ``(2,)``. A row keeps its own mean in the products.
    """
    z1, z2 = processes.gather(z1), processes.gather(z2)
    factor = 1 / ((z1.shape[1] - 1) * temperature)
    vectors = [centered(z) for z in (z1, z2)]
    return mse_loss(z1, z2), *_variances_and_logsumexps(vectors, factor, processes)


def _variances_and_logsumexps(
    views: list[Tensor], factor: float, processes: Processes
) -> tuple[Tensor, Tensor]:
    """Of both views' vectors ``(K, M)``: the variances ``(2, K)``, the mean log-sum-exps ``(2,)``.

    The log-sum-exps are those of the products of each vector with the others, times ``factor``.
    """
    lse = [LogSumExps.apply("cosine", processes, *_scaled(x, factor**0.5))[1] for x in views]
    return torch.stack([x.var(dim=1) for x in views]), torch.stack([x.mean() for x in lse])


def _scaled(x: Tensor, factor: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    vectors = as_they_are(x)
    return vectors.x, vectors.factor * factor, vectors.curvature


@full_precision
def squared_covariance(z: Tensor) -> Tensor:
    r"""VICReg's covariance term of one view, :math:`\frac{1}{D}\sum_{i \ne j} C_{ij}^2`.

    Args:
        z: Embeddings of shape ``(N, D)``, ``N >= 2``; centred here.

    Returns:
        Scalar, zero if and only if the dimensions are uncorrelated, divided by D as in
        :func:`regularized_dimensions`.
    """
    n, d = z.shape
    return dimension_gram(centered(z))[0] / ((n - 1) ** 2 * d)


def _cross(
    x1: Tensor, x2: Tensor, view1: Vectors, view2: Vectors, samples: int, processes: Processes
) -> tuple[Tensor, Tensor]:
    result: tuple[Tensor, Tensor] = OffDiagonalCross.apply(
        samples, processes, x1, x2, *view1[1:], *view2[1:]
    )
    return result


@full_precision
def cross_gram(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    r"""Products of two matrices' rows: of each row with its partner, and squared with the others.

    Args:
        a: Shape ``(N, D)``.
        b: Shape ``(N, D)``.

    Returns:
        The scalar :math:`\sum_{i \ne j} (a_i \cdot b_j)^2`, computed on the smaller side with
        :math:`\|a b^\top\|_F^2 = \langle a^\top a, b^\top b\rangle`, and the products
        :math:`a_i \cdot b_i` of shape ``(N,)``.
    """
    return _cross(a, b, as_they_are(a), as_they_are(b), 0, ALONE)


@full_precision
def cross_gram_in_ball(
    z1: Tensor, z2: Tensor, radius: float, processes: Processes = ALONE
) -> tuple[Tensor, Tensor]:
    """:func:`cross_gram` of the views' rows, those longer than ``radius`` shortened to it.

    Args:
        z1: Embeddings of the first view, shape ``(N, D)``.
        z2: Embeddings of the second view, shape ``(N, D)``.
        radius: Radius of the ball, positive; see :func:`project_to_ball`.
        processes: Those who have the batch's other rows.

    Returns:
        The scalar and the products of shape ``(N,)``.
    """
    views = [rows_in_ball(z.detach(), radius) for z in (z1, z2)]
    return _cross(z1, z2, views[0], views[1], 0, processes)


@full_precision
def cross_correlation(
    z1: Tensor, z2: Tensor, processes: Processes = ALONE
) -> tuple[Tensor, Tensor]:
    r"""Correlations :math:`X_{ij}` of dimension i in one view with j in the other (Barlow Twins).

    Args:
        z1: Embeddings of the first view, shape ``(N, D)``; standardised here, see
            :func:`standardize_columns`.
        z2: Embeddings of the second view, shape ``(N, D)``.
        processes: Those who have the batch's other rows.

    Returns:
        The scalar :math:`\sum_{i \ne j} X_{ij}^2`, computed on the smaller side, and the diagonal
        :math:`X_{jj}` of shape ``(D,)``.
    """
    if len(z1) > z1.shape[1] and processes.world_size == 1:
        return _whole_cross_correlation(z1, z2)
    views = [unit_columns(z.detach(), processes=processes) for z in (z1, z2)]
    return _cross(z1.T, z2.T, views[0], views[1], 1, processes)


def _whole_cross_correlation(z1: Tensor, z2: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`cross_correlation` as published: where D x D is the small side, nothing is faster."""
    (h1, constant1), (h2, constant2) = batch_normalized(z1), batch_normalized(z2)
    x = (h1.T @ h2 / len(z1)).masked_fill(constant1[:, None] | constant2, 0)
    diagonal = x.diagonal()
    return (x - diagonal.diag()).square().sum(), diagonal


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
    gram = d / (n * distortion) * (z @ z.T if n <= d else z.T @ z)
    factor, info = torch.linalg.cholesky_ex(gram + torch.eye(len(gram)).to(gram))
    rate = factor.diagonal().log().sum()
    return rate * torch.where(info == 0, 1.0, torch.nan)


@full_precision
def cosines_and_coding_rates(
    z1: Tensor, z2: Tensor, distortion: float, processes: Processes = ALONE
) -> tuple[Tensor, Tensor, Tensor]:
    """Cosine of each positive pair, and the coding rate of each view's unit rows (TCR).

    Args:
        z1: Embeddings of the first view, shape ``(N, D)``.
        z2: Embeddings of the second view, shape ``(N, D)``.
        distortion: As in :func:`coding_rate`.
        processes: Those who have the batch's other rows; each factorises both small matrices.

    Returns:
        Cosines of shape ``(N,)``, and two scalars in nats.
    """
    view1, view2 = unit_rows(z1.detach()), unit_rows(z2.detach())
    n, d = len(z1) * processes.world_size, z1.shape[1]
    result: tuple[Tensor, Tensor, Tensor] = HalfLogDets.apply(
        d / (n * distortion), processes, z1, z2, *view1[1:], *view2[1:]
    )
    return result


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
