"""The two sides of the duality, watched during training for every method."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from duality_ssl.callbacks.means import EpochMonitor
from duality_ssl.callbacks.outputs import views
from duality_ssl.distributed import process_group
from duality_ssl.functional import (
    column_fourth_norm_bounds,
    dimension_contrastive,
    fourth_norms,
    full_precision,
    normalize_rows,
    row_fourth_norm_bounds,
    sample_contrastive,
)


class DualityMonitor(EpochMonitor):
    r"""Logs both criteria, the fourth norms against their lower bounds, and the cosines.

    On the embeddings of each view that the criterion saw (all processes), averaged over the views
    and over an epoch: ``duality/<name>``, with the names of :func:`duality_terms`.

    Args:
        every_n_steps: Batches between two measurements within an epoch; the first is measured.
        max_samples: Most rows of each view that are looked at.

    Raises:
        ValueError: If ``every_n_steps`` is below 1 or ``max_samples`` below 2.
    """

    def measure(self, outputs: Any) -> Iterator[dict[str, Tensor]]:
        for z in map(process_group().all_gather, views(outputs, "embeddings", "training_step")):
            terms = duality_terms(z[: self.max_samples])
            yield {f"duality/{name}": value for name, value in terms.items()}


@torch.no_grad()
@full_precision
def duality_terms(z: Tensor) -> dict[str, Tensor]:
    r"""The quantities of theorem 3.3 and lemma 3.4 for one view's embeddings.

    Rows have norm 1 (for ``rows_fourth_over_bound`` the columns have); nothing is centred.

    Args:
        z: Embeddings of shape ``(N, D)``, ``N >= 2``; float32 inside, float64 stays float64.

    Returns:
        Scalars, on the device of ``z``:

        - ``sample_contrastive``: :math:`L_c`, the squared off-diagonal of :math:`z z^T`.
        - ``dimension_contrastive``: :math:`L_{nc}`, the squared off-diagonal of :math:`z^T z`.
        - ``columns_fourth_over_bound``: :math:`\sum_j \|z_{\cdot j}\|^4` over its lower bound
          :math:`N^2/D`, at least 1 if no row is zero.
        - ``rows_fourth_over_bound``: :math:`\sum_i \|z_{i \cdot}\|^4` over its lower bound
          :math:`D^2/N`, at least 1 if no column is zero.
        - ``cosine_mean``, ``cosine_std``: of the N (N - 1) cosines between different samples.
        - ``theorem_residual``: of theorem 3.3, each norm computed from its own matrix, as a check:
          :math:`|\|z^T z\|_F^2 - \|z z^T\|_F^2| / \|z z^T\|_F^2`.

    Source: section 3 and supplements D and E of Garrido et al., ICLR 2023.
    """
    n, d = z.shape
    rows, columns = normalize_rows(z), normalize(z, dim=0)
    gram = rows @ rows.T
    gram_norm = gram.square().sum()
    residual = ((rows.T @ rows).square().sum() - gram_norm).abs() / gram_norm
    pairs = n * (n - 1)
    similarity = sample_contrastive(rows)
    cosine_mean = gram.fill_diagonal_(0).sum() / pairs
    cosine_var = similarity / pairs - cosine_mean.square()
    return {
        "sample_contrastive": similarity,
        "dimension_contrastive": dimension_contrastive(rows),
        "columns_fourth_over_bound": fourth_norms(rows)[1] / column_fourth_norm_bounds(n, d)[0],
        "rows_fourth_over_bound": fourth_norms(columns)[0] / row_fourth_norm_bounds(n, d)[0],
        "cosine_mean": cosine_mean,
        "cosine_std": cosine_var.clamp(min=0).sqrt(),
        "theorem_residual": residual,
    }
