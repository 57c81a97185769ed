"""Which configuration of each method a sweep takes, chosen with labels or without."""

from collections.abc import Sequence
from typing import NamedTuple

from duality_ssl.sweeps.rows import Row

_NEAREST_ONE = ("alpha_req", "alpha_req_features")  # all other scores: the larger, the better


class Choice(NamedTuple):
    """What a score chooses, and what the labelled score would have chosen."""

    chosen: Row
    oracle: Row
    gap: float
    """How much more the oracle's row has of the labelled score."""


def choose(rows: Sequence[Row], score: str, oracle: str) -> Choice:
    """Choose among the rows of a method; of equals the first.

    RankMe and LiDAR choose the largest, alpha-ReQ the one nearest to 1 (Agrawal et al., NeurIPS
    2022), accuracies the largest.

    Args:
        rows: Rows of tuning, each with scores unless it failed.
        score: The score that chooses.
        oracle: The labelled score.

    Raises:
        ValueError: If no row has both scores.
    """
    scored = [row for row in rows if {score, oracle} <= row.get("scores", {}).keys()]
    if not scored:
        known = sorted({name for row in rows for name in row.get("scores", {})})
        raise ValueError(
            f"No run of {len(rows)} has the scores {score} and {oracle}. Those there are: "
            f"{', '.join(known) or 'none, as every run failed'}."
        )
    chosen = max(scored, key=lambda row: _merit(row, score))
    best = max(scored, key=lambda row: _merit(row, oracle))
    return Choice(chosen, best, best["scores"][oracle] - chosen["scores"][oracle])


def _merit(row: Row, score: str) -> float:
    value = float(row["scores"][score])
    return -abs(value - 1) if score in _NEAREST_ONE else value
