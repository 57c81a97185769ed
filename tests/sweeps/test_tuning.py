"""Which configuration a score chooses, and what the labelled score would have chosen."""

from typing import Any

import pytest

from duality_ssl.sweeps.tuning import choose

ROWS: list[dict[str, Any]] = [
    {"key": "a", "scores": {"top1": 0.5, "rankme": 30, "alpha_req": 0.2}},
    {"key": "b", "scores": {"top1": 0.9, "rankme": 20, "alpha_req": 1.9}},
    {"key": "c", "scores": {"top1": 0.8, "rankme": 40, "alpha_req": 1.3}},
    {"key": "d", "scores": {"top1": 0.9, "rankme": 40, "alpha_req": 0.7}},
    {"key": "e", "error": "failed"},
]


@pytest.mark.parametrize(
    ("score", "chosen", "gap"), [("top1", "b", 0), ("rankme", "c", 0.1), ("alpha_req", "c", 0.1)]
)
def test_score_chooses_the_first_of_the_best(score: str, chosen: str, gap: float) -> None:
    choice = choose(ROWS, score, "top1")
    assert (choice.chosen["key"], choice.oracle["key"]) == (chosen, "b")
    assert choice.gap == pytest.approx(gap)


def test_a_score_that_no_run_has_is_refused() -> None:
    with pytest.raises(ValueError, match=r"No run of 5 has the scores lidar and top1.*alpha_req"):
        choose(ROWS, "lidar", "top1")
    with pytest.raises(ValueError, match="none, as every run failed"):
        choose(ROWS[-1:], "top1", "top1")
