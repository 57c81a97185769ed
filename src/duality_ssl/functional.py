r"""The paper's maths: Tensor in, Tensor out, every Frobenius or log-det term on its smaller side.

An embedding matrix is ``z`` of shape ``(N, D)``, one row a sample. Because
:math:`\|z z^\top\|_F = \|z^\top z\|_F` and
:math:`\det(I + c\,z z^\top) = \det(I + c\,z^\top z)`, no function here builds a ``D x D`` matrix
where ``N < D``, nor an ``N x N`` one where ``D < N``, unless it takes the log-sum-exp of that very
matrix. Value and gradient are those of the other side.

Precision: every public function leaves autocast and computes half precision in float32; float64
stays float64.

**The limit of the far side.** An off-diagonal sum that is computed on the other side is a
difference of sums of squares, so its absolute error is about ``eps`` times the fourth-norm sums of
theorem 3.3 (``eps`` of the dtype, 6e-8 in float32). Seldom do they dwarf the sum itself: with
vectors of one norm (unit rows, or columns under a variance term) Welch's bound keeps the relative
error within a few ``eps * min(N, D) / |N - D|`` even at the criterion's optimum; at worst, when
``N`` and ``D`` are neighbours, about ``eps * N``. Norms that differ by orders of magnitude lose
more: next to one column 100 times longer than the others about four digits of the value are right,
1000 times two, 10,000 times none; of the gradient two more each. The side that is computed loses
none of this: its diagonal is set to zero, not subtracted.

Source, unless said otherwise: Garrido et al., *On the duality between contrastive and
non-contrastive self-supervised learning*, ICLR 2023, https://arxiv.org/abs/2206.02574.
"""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.autograd import Function

_P = ParamSpec("_P")
_R = TypeVar("_R")

# A shorter row has no direction: it normalises to zero, with zero gradient.
_SHORTEST = 1e-12
# The subtraction of a mean leaves about eps * |mean| of rounding noise, which must not be blown up
# to unit norm: what is within this many eps of the mean counts as constant.
_ROUNDING = 16.0


def _promote(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64:
        return value.float()
    return value


def full_precision(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Run ``function`` outside autocast, its tensors in float32 or, if they are, in float64.

    Args:
        function: Takes at least one tensor.

    Returns:
        The function, with the signature that it had.
    """

    @functools.wraps(function)
    def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        tensors = (value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        with torch.autocast(next(tensors).device.type, enabled=False):
            promoted = {name: _promote(value) for name, value in kwargs.items()}
            return function(*map(_promote, args), **promoted)

    return wrapper


# --------------------------------------------------------------------------------------------------
# Products on the smaller side. By hand, since autograd knows neither that a Gram matrix is
# symmetric, so that half of its backward is wasted, nor that the gradient of the fourth norms fits
# into the same pass.


def _gram(z: Tensor) -> tuple[Tensor, Tensor]:
    """Return the smaller Gram matrix of ``z`` and the squared norms of its rows."""
    if len(z) <= z.shape[1]:
        gram = z @ z.T
        return gram, gram.diagonal().clone()
    return z.T @ z, z.square().sum(dim=1)


class _OffDiagonalGram(Function):
    """``z -> (sum_{i != j} (z_i . z_j)^2, the squared norms of the rows)``."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> tuple[Tensor, Tensor]:
        gram, norms = _gram(z)
        if len(z) <= z.shape[1]:
            gram.fill_diagonal_(0)
            value = gram.square().sum()
        else:  # theorem 3.3; the diagonal of the other side is the fourth-norm sum of the columns
            value = gram.square().sum() - norms.square().sum()
        ctx.save_for_backward(z, gram, norms)
        return value, norms.clone()

    @staticmethod
    def backward(ctx: Any, grad_value: Tensor, grad_norms: Tensor) -> Tensor:
        z, gram, norms = ctx.saved_tensors
        with torch.autocast(z.device.type, enabled=False):
            near = len(z) <= z.shape[1]
            if torch.is_grad_enabled():  # a second derivative is wanted: it passes through the Gram
                gram, norms = _gram(z)
                gram = gram - gram.diagonal().diag() if near else gram
            if near:
                return (4 * grad_value * gram + (2 * grad_norms).diag()) @ z
            weights = 2 * grad_norms - 4 * grad_value * norms
            return torch.addcmul(z @ (4 * grad_value * gram), weights[:, None], z)


class _OffDiagonalCross(Function):
    """``a, b -> (sum_{i != j} (a_i . b_j)^2, the products a_i . b_i)``."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        if len(a) <= a.shape[1]:
            cross = a @ b.T
            products = cross.diagonal().clone()
            cross.fill_diagonal_(0)
            value = cross.square().sum()
            ctx.save_for_backward(a, b, cross)
        else:  # ||a b^T||_F^2 = <a^T a, b^T b>
            products = (a * b).sum(dim=1)
            gram_a, gram_b = a.T @ a, b.T @ b
            value = (gram_a * gram_b).sum() - products.square().sum()
            ctx.save_for_backward(a, b, gram_a, gram_b, products)
        return value, products.clone()

    @staticmethod
    def backward(ctx: Any, grad_value: Tensor, grad_products: Tensor) -> tuple[Tensor, Tensor]:
        a, b, *saved = ctx.saved_tensors
        with torch.autocast(a.device.type, enabled=False):
            again = torch.is_grad_enabled()  # as above
            if len(a) <= a.shape[1]:
                cross = a @ b.T if again else saved[0]
                cross = cross - cross.diagonal().diag() if again else cross
                weights = 2 * grad_value * cross + grad_products.diag()
                return weights @ b, weights.T @ a
            gram_a, gram_b, products = (a.T @ a, b.T @ b, (a * b).sum(dim=1)) if again else saved
            on_products = (grad_products - 2 * grad_value * products)[:, None]
            grad_a = torch.addcmul(a @ (2 * grad_value * gram_b), on_products, b)
            grad_b = torch.addcmul(b @ (2 * grad_value * gram_a), on_products, a)
            return grad_a, grad_b


class _SelfProduct(Function):
    """``z -> z z^T``, with one product in the backward pass, ``(G + G^T) z``, instead of two."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return z @ z.T

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors
        with torch.autocast(z.device.type, enabled=False):
            return (grad + grad.T) @ z


def _self_product(z: Tensor) -> Tensor:
    product: Tensor = _SelfProduct.apply(z)
    return product


class _HalfLogDet(Function):
    """``z -> logdet(I + scale z^T z) / 2`` and, as gradient, ``scale (I + scale z z^T)^-1 z``."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, scale: float) -> Tensor:
        near = len(z) <= z.shape[1]
        matrix = (z @ z.T if near else z.T @ z).mul_(scale)
        matrix.diagonal().add_(1)
        # `cholesky` would synchronise with the device to raise: a failure is a NaN instead.
        factor, info = torch.linalg.cholesky_ex(matrix)
        factor.diagonal().masked_fill_(info != 0, torch.nan)
        ctx.save_for_backward(z, factor)
        ctx.scale = scale
        return factor.diagonal().log().sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        z, factor = ctx.saved_tensors
        with torch.autocast(z.device.type, enabled=False):
            near = len(z) <= z.shape[1]
            if torch.is_grad_enabled():
                identity = torch.eye(len(factor), dtype=z.dtype, device=z.device)
                gram = z @ z.T if near else z.T @ z
                factor = torch.linalg.cholesky(identity + ctx.scale * gram)
            inverse = grad * ctx.scale * torch.cholesky_inverse(factor)
            return (inverse @ z if near else z @ inverse), None


# --------------------------------------------------------------------------------------------------
# Section 3: the two criteria and what lies between them


@full_precision
def sample_gram(z: Tensor) -> tuple[Tensor, Tensor]:
    r"""Sample-contrastive criterion and the rows' squared norms, from one product.

    Args:
        z: Embeddings of shape ``(N, D)``.

    Returns:
        :math:`L_c = \|z z^\top - \mathrm{diag}(z z^\top)\|_F^2` (section 3; a plain sum, no mean)
        and :math:`(\|z_{i,\cdot}\|^2)_i` of shape ``(N,)``. For the error on the far side
        (``N > D``) see the module.
    """
    result: tuple[Tensor, Tensor] = _OffDiagonalGram.apply(z)
    return result


def dimension_gram(z: Tensor) -> tuple[Tensor, Tensor]:
    r"""Dimension-contrastive criterion and the columns' squared norms, from one product.

    Args:
        z: Embeddings of shape ``(N, D)``.

    Returns:
        :math:`L_{nc} = \|z^\top z - \mathrm{diag}(z^\top z)\|_F^2` (section 3; a plain sum, no
        mean) and :math:`(\|z_{\cdot,j}\|^2)_j` of shape ``(D,)``. For the error on the far side
        (``N < D``) see the module.
    """
    return sample_gram(z.T)


def sample_contrastive(z: Tensor) -> Tensor:
    r"""Sample-contrastive criterion :math:`L_c = \sum_{i \ne j} (z_i \cdot z_j)^2` (section 3).

    Args:
        z: Embeddings of shape ``(N, D)``, of any norm.

    Returns:
        Scalar sum over the ordered pairs of samples, computed on the smaller side.
    """
    return sample_gram(z)[0]


def dimension_contrastive(z: Tensor) -> Tensor:
    r"""Dimension-contrastive criterion :math:`L_{nc} = \sum_{i \ne j} (z^\top z)_{ij}^2` (sec. 3).

    Args:
        z: Embeddings of shape ``(N, D)``, neither centred nor scaled here.

    Returns:
        Scalar sum over the ordered pairs of dimensions, computed on the smaller side.
    """
    return dimension_gram(z)[0]


@full_precision
def fourth_norms(z: Tensor) -> tuple[Tensor, Tensor]:
    r"""Fourth-norm sums of theorem 3.3: :math:`L_{nc} + \mathrm{columns} = L_c + \mathrm{rows}`.

    Args:
        z: Embeddings of shape ``(N, D)``.

    Returns:
        Rows :math:`\sum_i \|z_{i,\cdot}\|^4` and columns :math:`\sum_j \|z_{\cdot,j}\|^4`, scalars.
    """
    squares = z.square()
    return squares.sum(dim=1).square().sum(), squares.sum(dim=0).square().sum()


def norm_regularizer(z: Tensor) -> Tensor:
    r"""Difference of the two criteria, :math:`L_{reg} = L_{nc} - L_c` (equation 10).

    Args:
        z: Embeddings of shape ``(N, D)``.

    Returns:
        Scalar :math:`\sum_i \|z_{i,\cdot}\|^4 - \sum_j \|z_{\cdot,j}\|^4`, of either sign.
    """
    rows, columns = fourth_norms(z)
    return rows - columns


def column_fourth_norm_bounds(n: int, d: int, norm: float = 1.0) -> tuple[float, float]:
    r"""Lemma 3.4, rows of norm a: :math:`\frac{N^2}{D} a^4 \le \sum_j \|z_j\|^4 \le N^2 a^4`.

    Args:
        n: Samples N.
        d: Dimensions D.
        norm: The norm a of every row. For rows of different norms the bounds hold with the root
            mean square of the norms, by Cauchy-Schwarz.

    Returns:
        Lower bound (all columns of one norm, as in a constant matrix) and upper (one column only).
    """
    upper = n**2 * norm**4
    return upper / d, upper


def row_fourth_norm_bounds(n: int, d: int, norm: float = 1.0) -> tuple[float, float]:
    r"""Lemma 3.4, columns of norm a: :math:`\frac{D^2}{N} a^4 \le \sum_i \|z_i\|^4 \le D^2 a^4`.

    Args:
        n: Samples N.
        d: Dimensions D.
        norm: The norm a of every column, or the root mean square of their norms.

    Returns:
        Lower bound (all rows of one norm, as in a constant matrix) and upper (one row only).
    """
    return column_fourth_norm_bounds(d, n, norm)


def sample_contrastive_bounds(dimension: Tensor, n: int, d: int) -> tuple[Tensor, Tensor]:
    r"""Corollary 3.4.1, unit rows: :math:`L_{nc} - N + N^2/D \le L_c \le L_{nc} - N + N^2`.

    Args:
        dimension: :math:`L_{nc}` of embeddings whose rows have unit norm.
        n: Samples N.
        d: Dimensions D.

    Returns:
        Lower and upper bound of :math:`L_c`.
    """
    lower, upper = column_fourth_norm_bounds(n, d)
    return dimension - n + lower, dimension - n + upper


def dimension_contrastive_bounds(sample: Tensor, n: int, d: int) -> tuple[Tensor, Tensor]:
    r"""Corollary 3.4.1, unit columns: :math:`L_c - D + D^2/N \le L_{nc} \le L_c - D + D^2`.

    Args:
        sample: :math:`L_c` of embeddings whose columns have unit norm.
        n: Samples N.
        d: Dimensions D.

    Returns:
        Lower and upper bound of :math:`L_{nc}`.
    """
    return sample_contrastive_bounds(sample, d, n)


# --------------------------------------------------------------------------------------------------
# Normalisations


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


# --------------------------------------------------------------------------------------------------
# Contrast


def _mask_diagonal(matrix: Tensor) -> Tensor:
    """Fill the diagonal with -inf in place, for a log-sum-exp that follows.

    Not recorded by autograd, which is exact: the softmax weight of -inf is zero, so the gradient
    that comes back is zero there already. Saves the mask and two passes over the matrix.
    """
    with torch.no_grad():
        return matrix.fill_diagonal_(-torch.inf)


@full_precision
def offdiagonal_logsumexp(similarities: Tensor, temperature: float = 1.0) -> Tensor:
    r"""Log-sum-exp of each row without its diagonal, :math:`\log \sum_{j \ne i} e^{s_{ij}/\tau}`.

    Args:
        similarities: Square matrix of shape ``(N, N)``, ``N >= 2``.
        temperature: :math:`\tau`.

    Returns:
        Shape ``(N,)``; a sum, not a mean, over the ``N - 1`` others.
    """
    return torch.logsumexp(_mask_diagonal(similarities / temperature), dim=1)


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
    within1 = torch.logsumexp(_mask_diagonal(similarity(_self_product(h1))), dim=1)
    within2 = torch.logsumexp(_mask_diagonal(similarity(_self_product(h2))), dim=1)
    across = _mask_diagonal(similarity(h1 @ h2.T))
    across1, across2 = torch.logsumexp(across, dim=1), torch.logsumexp(across, dim=0)
    return torch.logaddexp(within1, across1), torch.logaddexp(within2, across2)


@full_precision
def cross_gram(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    r"""Products of two matrices' rows: of each row with its partner, and squared with the others.

    Args:
        a: Shape ``(N, D)``; the transposed embeddings for a cross-correlation of dimensions.
        b: Shape ``(N, D)``.

    Returns:
        The scalar :math:`\sum_{i \ne j} (a_i \cdot b_j)^2`, computed on the smaller side with
        :math:`\|a b^\top\|_F^2 = \langle a^\top a, b^\top b\rangle`, and the products
        :math:`a_i \cdot b_i` of shape ``(N,)``.
    """
    result: tuple[Tensor, Tensor] = _OffDiagonalCross.apply(a, b)
    return result


# --------------------------------------------------------------------------------------------------
# Variance, covariance, coding rate, rank


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
    return variance, torch.logsumexp(_mask_diagonal(_self_product(scaled)), dim=1).mean()


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
    rate: Tensor = _HalfLogDet.apply(z, d / (n * distortion))
    return rate


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
        gradient. The singular values are square roots of eigenvalues of the smaller Gram matrix in
        float64: those under 1e-8 of the largest are noise, as they are for ``eps``. NaN if ``z``
        has a NaN or Inf.

    Reference: Garrido et al., *RankMe*, ICML 2023, section 3, https://arxiv.org/abs/2210.02885
    """
    with torch.autocast(z.device.type, enabled=False):
        z = z.double()
        gram = z @ z.T if len(z) <= z.shape[1] else z.T @ z
        if not gram.isfinite().all():  # LAPACK would raise an error about convergence
            return gram.new_tensor(torch.nan)
        values = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()
        p = values / values.sum().clamp_min(torch.finfo(values.dtype).tiny) + eps
        return torch.exp(-(p * p.log()).sum())
