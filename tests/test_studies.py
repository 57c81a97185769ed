"""The figures and tables of the results are drawn from committed rows of runs, never typed."""

import importlib
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
FIGURES = ROOT / "docs" / "results" / "figures"


@pytest.fixture
def studies(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("studies")


def test_pages_show_what_the_rows_draw(studies: ModuleType) -> None:
    """Otherwise run benchmarks/studies.py."""
    drawn = set()
    for block in studies.blocks():
        shown = re.findall(
            rf"<!-- table {block.name} -->\n(.*?)<!-- end {block.name} -->",
            block.page.read_text("utf-8"),
            re.DOTALL,
        )
        text, svg = studies.content(block)
        assert [each.strip() for each in shown] == [text.strip()], block.name
        if svg is not None:
            drawn.add(f"{block.name}.svg")
            assert (FIGURES / f"{block.name}.svg").read_text("utf-8") == svg, block.name
    assert {path.name for path in FIGURES.glob("*")} == drawn


def test_pages_have_no_other_places(studies: ModuleType) -> None:
    known = {block.name for block in studies.blocks()}
    for page in (studies.RESULTS, studies.STUDIES):
        assert {*re.findall(r"<!-- table (\w+) -->", page.read_text("utf-8"))} <= known


def test_tuning_names_what_was_chosen_and_what_other_scores_would_lose(
    studies: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def row(rate: float, top1: float, rank: float) -> dict[str, Any]:
        options = {"model": "VICReg", "model.base_lr": rate, "trainer.max_epochs": 2}
        scores = {"few_label_top1": top1, "rankme": rank, "lidar": -rank, "alpha_req": rank / 10}
        return {"phase": "tune", "cell": {"method": "VICReg"}, "options": options, "scores": scores}

    rows = [row(0.1, 0.8, 12), row(0.2, 0.9, 5), row(0.4, 0.7, 30)]
    monkeypatch.setattr(studies, "FIGURES", tmp_path)
    for seed, each in enumerate(rows):
        (tmp_path / "studies").mkdir(exist_ok=True)
        studies.append_row(studies.rows_of("mine"), {**each, "sweep": "mine", "seed": seed})
    assert studies.tuning("mine").splitlines()[-1] == (
        "| VICReg | base_lr 0.2 | 90.0 | -20.0 | -0.0 | -10.0 |"
    )


def test_pixels_are_those_that_are_stored(studies: ModuleType) -> None:
    row = studies.measure_pixels("digits")
    assert {*row["scores"]} == {
        *("linear_top1", "linear_c", "knn_top1", "few_label_top1", "few_label_std")
    }
    assert row["scores"]["linear_top1"] > 0.94
    assert row["scores"]["knn_top1"] > 0.97
