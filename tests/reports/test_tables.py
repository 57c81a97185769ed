"""Tables of rows."""

import statistics
from typing import Any

import pytest
from helpers.synthetic_rows import figure_1, methods_alone

from duality_ssl.reports import table_markdown
from duality_ssl.reports.label_free import oracle_table
from duality_ssl.reports.tables import pivot_table, score_table

ROWS = figure_1()


def of(method: str, projector: str, d: int, score: str) -> list[float]:
    cell = {"method": method, "projector": projector, "d": d}
    return [100 * row["scores"][score] for row in ROWS if row["cell"] == cell]


def test_a_line_holds_the_mean_and_deviation_over_seeds() -> None:
    lines = table_markdown(ROWS, "scores").splitlines()
    assert lines[0].startswith(
        "| Method | Projector | Embedding dimension d | 5 labels a class | Linear |"
    )
    few, linear = (of("VICReg", "128-{d}", 64, name) for name in ("few_label_top1", "linear_top1"))
    expected = [
        f"{statistics.fmean(some):.1f} ± {statistics.stdev(some):.1f}" for some in (few, linear)
    ]
    (line,) = [line for line in lines if line.startswith("| VICReg | 128-d | 64 |")]
    assert [part.strip(" *") for part in line.split("|")[4:6]] == expected
    assert "over 3 seeds" in lines[-1]
    assert "210 runs; seeds 0 to 2; data: digits." in lines[-1]


def test_bold_is_what_lies_within_one_deviation_of_the_best() -> None:
    table = pivot_table(ROWS, "few_label_top1", "d", where={"projector": "128-{d}"})
    for column, d in enumerate((16, 32, 64, 128, 512), 1):
        methods = [row[0].text for row in table.body]
        runs = [of(method, "128-{d}", d, "few_label_top1") for method in methods]
        best = max(runs, key=statistics.fmean)
        least = statistics.fmean(best) - statistics.stdev(best)
        expected = [statistics.fmean(some) >= least for some in runs]
        assert [row[column].bold for row in table.body] == expected


def test_a_table_of_one_seed_has_no_deviation() -> None:
    table = score_table(figure_1(seeds=[0]), ["linear_top1", "rankme"])
    assert not [cell for row in table.body for cell in row if "±" in cell.text]
    assert "one run a cell" in table.caption
    assert all(not row[-1].bold for row in table.body)  # a large rank is not better


def test_the_oracle_gap_is_what_the_choice_lacks() -> None:
    rows: list[dict[str, Any]] = [
        {
            "sweep": "s",
            "cell": {"method": "A", "d": d},
            "seed": 0,
            "scores": {"few_label_top1": few, "rankme": rank, "alpha_req": alpha},
        }
        for d, few, rank, alpha in ((16, 0.9, 10, 1.4), (32, 0.95, 20, 1.1), (64, 0.92, 40, 0.7))
    ]
    table = oracle_table(rows)
    assert table.head == ["Method", "Cells", "Best", "RankMe", "α-ReQ"]
    expected = ["3", "95.0", "92.0 (−3.0)", "95.0 (0.0)"]
    assert [[cell.text for cell in row] for row in table.body] == [
        ["A", *expected],
        ["all", *expected],
    ]


def test_correlations_of_each_line_and_of_all() -> None:
    text = table_markdown(ROWS, "correlation", x=["rankme"], y="linear_top1")
    assert text.count("n = 42") == 5
    assert text.count("n = 210") == 1


def test_a_table_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="one of scores, pivot, correlation, oracle, but got 'a'"):
        table_markdown(ROWS, "a")
    with pytest.raises(ValueError, match="rows with finetune_top1, d, but none of 9 rows is"):
        table_markdown([*methods_alone()], "pivot", score="finetune_top1", column="d")
