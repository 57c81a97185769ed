r"""The paper's maths: Tensor in, Tensor out, every Frobenius or log-det term on its smaller side.

An embedding matrix is ``z`` of shape ``(N, D)``, one row a sample. Because
:math:`\|z z^\top\|_F = \|z^\top z\|_F` and
:math:`\det(I + c\,z z^\top) = \det(I + c\,z^\top z)`, no function here builds a ``D x D`` matrix
where ``N < D``, nor an ``N x N`` one where ``D < N``. Value and gradient are those of the other
side. The log-sum-exp of a matrix has no other side: it is taken in tiles.

Precision: every public function of a tensor leaves autocast and computes half precision in
float32; float64 stays float64.

Derivatives: what multiplies matrices by a backward pass of its own has a first derivative only, and
says so when it is asked for a graph of it (``create_graph=True``).

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

from duality_ssl.functional._products import full_precision
from duality_ssl.functional.duality import (
    column_fourth_norm_bounds,
    dimension_contrastive,
    dimension_contrastive_bounds,
    fourth_norms,
    norm_regularizer,
    row_fourth_norm_bounds,
    sample_contrastive,
    sample_contrastive_bounds,
)
from duality_ssl.functional.normalization import (
    centered,
    normalize_centered_rows,
    normalize_rows,
    project_to_ball,
    standardize_columns,
)
from duality_ssl.functional.terms import (
    coding_rate,
    contrast_logits,
    cosines_and_coding_rates,
    cross_correlation,
    cross_gram,
    cross_gram_in_ball,
    offdiagonal_logsumexp,
    rankme,
    regularized_dimensions,
    regularized_samples,
    squared_covariance,
    variance_hinge,
)

__all__ = [
    "centered",
    "coding_rate",
    "column_fourth_norm_bounds",
    "contrast_logits",
    "cosines_and_coding_rates",
    "cross_correlation",
    "cross_gram",
    "cross_gram_in_ball",
    "dimension_contrastive",
    "dimension_contrastive_bounds",
    "fourth_norms",
    "full_precision",
    "norm_regularizer",
    "normalize_centered_rows",
    "normalize_rows",
    "offdiagonal_logsumexp",
    "project_to_ball",
    "rankme",
    "regularized_dimensions",
    "regularized_samples",
    "row_fourth_norm_bounds",
    "sample_contrastive",
    "sample_contrastive_bounds",
    "squared_covariance",
    "standardize_columns",
    "variance_hinge",
]
