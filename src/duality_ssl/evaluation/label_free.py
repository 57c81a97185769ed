"""Label-free protocols on the rows of one matrix, features or embeddings."""

from typing import Any

import torch
from torch import Tensor

from duality_ssl.evaluation.geometry import BINS, MAX_SAMPLES, measure_geometry
from duality_ssl.evaluation.settings import Settings
from duality_ssl.functional import alpha_req, singular_values

RANKME_SAMPLES = 25_600
"""Most samples that a spectrum is computed from, as in the paper of RankMe."""
_ENTRIES = 128  # of an array in `evaluation.json`


def spectrum(z: Tensor, settings: Settings) -> dict[str, Any]:
    """Decay of the spectrum, as ``alpha_req``, and the spectrum.

    The array ``spectrum`` has the 128 largest singular values of the matrix, which is not centred,
    over the largest. ``alpha_req`` is left out where it is not defined.
    """
    rows = evenly_spaced(z, RANKME_SAMPLES)
    values = singular_values(rows)[:_ENTRIES]
    shares = values / values[0].clamp_min(torch.finfo(values.dtype).tiny)
    return {**finite({"alpha_req": alpha_req(rows)}), "arrays": {"spectrum": rounded(shares)}}


def geometry(z: Tensor, settings: Settings) -> dict[str, Any]:
    """`measure_geometry` of at most 2,000 rows, spread evenly over the set; none of a single row.

    A histogram has 65 ``edges`` and the ``density`` between them.
    """
    if len(z) < 2:
        return {}
    measured = measure_geometry(evenly_spaced(z, MAX_SAMPLES).float())
    edges = rounded(torch.linspace(-1, 1, BINS + 1))
    return {
        **finite({name: value for name, value in measured.items() if value.ndim == 0}),
        "arrays": {
            name: {"edges": edges, "density": rounded(value)}
            for name, value in measured.items()
            if value.ndim == 1
        },
    }


def evenly_spaced(z: Tensor, count: int) -> Tensor:
    """At most ``count`` rows, spread evenly over all."""
    if len(z) <= count:
        return z
    rows = torch.linspace(0, len(z) - 1, count, dtype=torch.float64).round().long()
    return z[rows.to(z.device)]


def finite(scores: dict[str, Tensor]) -> dict[str, float]:
    """The scores that are defined, as numbers: JSON has no NaN."""
    return {name: value.item() for name, value in scores.items() if value.isfinite()}


def rounded(values: Tensor) -> list[float]:
    """Numbers of five significant digits."""
    return [float(f"{value:.5g}") for value in values.tolist()]
