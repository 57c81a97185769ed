r"""The geometry of embeddings on both sides of the duality, without labels.

The ``N x N`` Gram matrix is that of rows of norm 1, its entries are cosines; the ``D x D`` one is
that of centred columns of norm 1, its entries are correlations. Supplements D, E and G of the paper
look at them.

Source: Garrido et al., *On the duality between contrastive and non-contrastive self-supervised
learning*, ICLR 2023, https://arxiv.org/abs/2206.02574
"""

import torch
from torch import Tensor

from duality_ssl.functional import (
    column_fourth_norm_bounds,
    fourth_norms,
    full_precision,
    normalize_rows,
    row_fourth_norm_bounds,
    standardize_columns,
)

MAX_SAMPLES = 2_000
"""Most rows that a Gram matrix is made of."""
BINS = 64
"""Bins of a histogram, all of one width, from -1 to 1."""


@torch.no_grad()
@full_precision
def measure_geometry(z: Tensor) -> dict[str, Tensor]:
    r"""What supplements D, E and G of the paper measure.

    Rows of norm 1 are :math:`u_i`, their Gram matrix G; columns of norm 1 are :math:`v_j`; C is the
    correlation matrix of the dimensions. A matrix A has the diagonal dominance

    .. math:: \frac1n \sum_i \frac{|A_{ii}|}{\sum_j |A_{ij}|},

    which is 1 for a diagonal matrix, above 1/2 in the mean of rows that are strictly dominant, and
    ``1 / n`` if all entries are alike; rows of zeros are left out.

    Args:
        z: Features or embeddings of shape ``(N, D)``, ``N >= 2``; float32 inside, float64 stays
            float64. The Gram matrices take :math:`N^2 + D^2` entries.

    Returns:
        Scalars:

        - ``cosine_mean``: mean of the ``N (N - 1)`` cosines :math:`u_i \cdot u_j` of different
          samples; 0 by proposition 3.1 for the optimum of SimCLR and DCL, of uniform rows.
        - ``cosine_variance``: D times their variance; 1 by proposition 3.1.
        - ``column_fourth_ratio``: :math:`\sum_j \|u_{\cdot j}\|^4` of unit rows over its lower
          bound :math:`N^2 / D` of lemma 3.4, from 1 to D.
        - ``row_fourth_ratio``: :math:`\sum_i \|v_{i \cdot}\|^4` of unit columns over its lower
          bound :math:`D^2 / N`, from 1 to N.
        - ``gram_dominance``, ``covariance_dominance``: diagonal dominance of G and of C.

        Histograms of shape ``(64,)``, densities over bins of width 1/32 from -1 to 1:

        - ``gram_histogram``: of the entries of G off its diagonal.
        - ``covariance_histogram``: of the entries of C off its diagonal; zero if ``D = 1``.
    """
    n, d = z.shape
    rows, columns = normalize_rows(z), normalize_rows(z.T).T
    standardized = standardize_columns(z)
    gram, correlation = rows @ rows.T, standardized.T @ standardized
    cosines = off_diagonal_entries(gram)
    return {
        "cosine_mean": cosines.mean(),
        "cosine_variance": d * cosines.var(correction=0),
        "column_fourth_ratio": fourth_norms(rows)[1] / column_fourth_norm_bounds(n, d)[0],
        "row_fourth_ratio": fourth_norms(columns)[0] / row_fourth_norm_bounds(n, d)[0],
        "gram_dominance": _dominance(gram),
        "covariance_dominance": _dominance(correlation),
        "gram_histogram": _histogram(cosines),
        "covariance_histogram": _histogram(off_diagonal_entries(correlation)),
    }


def off_diagonal_entries(matrix: Tensor) -> Tensor:
    """The ``n (n - 1)`` entries of a square matrix that are not on its diagonal, row by row."""
    n = len(matrix)
    # after the first entry the diagonal comes at the end of each n + 1 entries
    return matrix.reshape(-1)[1:].view(n - 1, n + 1)[:, :-1].reshape(-1)


def _dominance(matrix: Tensor) -> Tensor:
    return (matrix.diagonal().abs() / matrix.abs().sum(dim=1)).nanmean()


def _histogram(values: Tensor) -> Tensor:
    """Density over `BINS` bins from -1 to 1, which rounding must not leave."""
    counts = torch.histc(values.clamp(-1, 1), BINS, -1, 1)
    return counts / max(1, values.numel()) * (BINS / 2)
