r"""The paper's maths: Tensor in, Tensor out, every Frobenius or log-det term on its smaller side.

An embedding matrix is ``z`` of shape ``(N, D)``, one row a sample. A function that takes a
``group`` gets the rows ``(n, D)`` of this process, with ``N = W n``, and computes with those of all
W processes; see :class:`duality_ssl.distributed.Group`. By default one process has all rows.

Because :math:`\|z z^\top\|_F = \|z^\top z\|_F` and :math:`\det(I + c\,z z^\top) =
\det(I + c\,z^\top z)`, no function here builds a ``D x D`` matrix where ``N < D``, nor an ``N x N``
one where ``D < N``. Value and gradient are those of the other side. The log-sum-exp of a matrix has
no other side: it is computed in tiles.

Precision: every public function of a tensor leaves autocast and computes half precision in
float32; float64 stays float64. Spectra, and similarities of representations, are float64.

Each function is its formula. Where a faster or smaller form pays, a kernel of ``_kernels/`` stands
in for it; under the transforms of ``torch.func`` and for a second derivative the formula is taken.

**The limit of the far side.** An off-diagonal sum that is computed on the other side is a
difference of sums of squares, so its absolute error is about ``eps`` times the fourth-norm sums of
theorem 3.3 (``eps`` of the dtype, 6e-8 in float32): a few ``eps * min(N, D) / |N - D|`` of the sum
for vectors of one norm, more for norms that differ by orders of magnitude (docs/criteria.md). The
side that is computed loses none of this: its diagonal is set to zero, not subtracted.

The linear theory of stop-gradient and EMA is about weights, not embeddings, and is not exported
here: see :mod:`~duality_ssl.functional.linear_dynamics`.

Source, unless said otherwise: Garrido et al., *On the duality between contrastive and
non-contrastive self-supervised learning*, ICLR 2023, https://arxiv.org/abs/2206.02574.
"""

from duality_ssl.functional.alignment import alignment, uniformity
from duality_ssl.functional.codes import code_temperature, divergence_from_uniform, random_codes
from duality_ssl.functional.coding_rate import coding_rate
from duality_ssl.functional.covariance import (
    cross_correlation,
    squared_correlation,
    squared_covariance,
    variance,
    variance_hinge,
)
from duality_ssl.functional.duality import (
    column_fourth_norm_bounds,
    dimension_contrastive_bounds,
    fourth_norms,
    norm_regularizer,
    row_fourth_norm_bounds,
    sample_contrastive_bounds,
)
from duality_ssl.functional.entropy import matrix_entropy
from duality_ssl.functional.gram import (
    cross_gram,
    dimension_contrastive,
    dimension_gram,
    sample_contrastive,
    sample_gram,
)
from duality_ssl.functional.logsumexp import (
    contrast_logits,
    covariance_logsumexp,
    logsumexp_of_keys,
    logsumexp_of_others,
    sample_logsumexp,
)
from duality_ssl.functional.normality import epps_pulley, quantile_distances
from duality_ssl.functional.normalization import (
    centered,
    normalize_centered_rows,
    normalize_columns,
    normalize_rows,
    project_to_ball,
    standardize_columns,
)
from duality_ssl.functional.nuclear_norm import nuclear_norm
from duality_ssl.functional.precision import full_precision
from duality_ssl.functional.similarity import linear_cka, rsa
from duality_ssl.functional.sinkhorn import sinkhorn
from duality_ssl.functional.spectrum import alpha_req, lidar, rankme, singular_values
from duality_ssl.functional.supervision import (
    class_logits,
    class_sums,
    supervision_gap,
    supervision_gap_bound,
)
from duality_ssl.functional.whitening import whiten

__all__ = [
    "alignment",
    "alpha_req",
    "centered",
    "class_logits",
    "class_sums",
    "code_temperature",
    "coding_rate",
    "column_fourth_norm_bounds",
    "contrast_logits",
    "covariance_logsumexp",
    "cross_correlation",
    "cross_gram",
    "dimension_contrastive",
    "dimension_contrastive_bounds",
    "dimension_gram",
    "divergence_from_uniform",
    "epps_pulley",
    "fourth_norms",
    "full_precision",
    "lidar",
    "linear_cka",
    "logsumexp_of_keys",
    "logsumexp_of_others",
    "matrix_entropy",
    "norm_regularizer",
    "normalize_centered_rows",
    "normalize_columns",
    "normalize_rows",
    "nuclear_norm",
    "project_to_ball",
    "quantile_distances",
    "random_codes",
    "rankme",
    "row_fourth_norm_bounds",
    "rsa",
    "sample_contrastive",
    "sample_contrastive_bounds",
    "sample_gram",
    "sample_logsumexp",
    "singular_values",
    "sinkhorn",
    "squared_correlation",
    "squared_covariance",
    "standardize_columns",
    "supervision_gap",
    "supervision_gap_bound",
    "uniformity",
    "variance",
    "variance_hinge",
    "whiten",
]
