"""The tables of the results page are rendered from figures, never typed."""

import importlib
import importlib.util
import itertools
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

from duality_ssl.data import create_source, sources

ROOT = Path(__file__).parents[1]


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The benchmark as a module, with a page and figures of the test's own."""
    spec = importlib.util.spec_from_file_location("results", ROOT / "benchmarks/results.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "FIGURES", tmp_path)
    monkeypatch.setattr(module, "PAGE", tmp_path / "page.md")
    return module


def test_table_stands_between_its_markers(results: ModuleType, tmp_path: Path) -> None:
    figures = {
        **{"row": "vicreg", "seed": 3, "machine": "2 threads", "torch": "2.11"},
        **{"seconds": 61.4, "online_top1": 0.975, "linear_top1": 0.9911, "knn_top1": 0.98},
        **{"few_label_top1": 0.91, "few_label_std": 0.02, "rankme": 70.4},
    }
    untrained = {key: value for key, value in figures.items() if key not in ("seconds", "rankme")}
    rows = [figures, {**untrained, "row": "untrained", "online_top1": None}]
    (tmp_path / "digits.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- table digits -->\nold\n<!-- end digits -->\nafter\n")
    for _ in range(2):  # a second time changes nothing
        results.render()
        text = page.read_text()
        assert "| VICReg | 61 s | 97.5 | 99.1 | 91.0 ± 2.0 | 98.0 | 70 |" in text
        assert "| *untrained network* |  |  | 99.1 | 91.0 ± 2.0 | 98.0 |  |" in text
        assert text.startswith("before\n<!-- table digits -->\n|")
        assert text.endswith("torch 2.11.\n<!-- end digits -->\nafter\n")
        assert "old" not in text


def test_every_row_has_a_label(results: ModuleType) -> None:
    rows = {row for table in results.ROWS.values() for row in table}
    assert rows <= results.LABELS.keys()


def test_pixels_are_those_that_are_stored(results: ModuleType) -> None:
    figures = results.pixels("digits", seed=0)
    assert figures["linear_top1"] > 0.94
    assert "rankme" not in figures
    assert figures["knn_top1"] > 0.97


def test_the_table_of_the_sweep_is_that_of_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    sweep = importlib.import_module("vicreg_ctr")
    rows = sweep.read()
    settings = {(row["temperature"], row["factor"], row["seed"]) for row in rows}
    assert settings == {*itertools.product(sweep.TEMPERATURES, sweep.FACTORS, sweep.SEEDS)}
    assert f"<!-- table vicreg_ctr -->\n{sweep.table(rows)}\n<!--" in sweep.PAGE.read_text()
    twice = [
        {**rows[0], "few_label_top1": top1, "seed": seed} for seed, top1 in enumerate((0.9, 0.92))
    ]
    assert sweep.table(twice).endswith("| 0.1 | 1.25 | 0.5 | 97.2 ± 0.0 | 91.0 ± 1.4 |")


def test_the_sweep_holds_out_a_fifth_of_train(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.setattr(sources.base, "_SOURCES", dict(sources.base._SOURCES))
    importlib.import_module("vicreg_ctr").register_held_out_fifth()
    digits, of_train = create_source("digits").load("train"), create_source("digits_of_train")
    train, val = of_train.load("train"), of_train.load("val")
    assert (len(train), len(val)) == (1149, 288)
    images = torch.cat([train.images, val.images]).flatten(1)
    assert sorted(images.tolist()) == sorted(digits.images.flatten(1).tolist())
    assert val.labels.bincount().min() > 20


def test_the_page_has_a_place_for_every_table() -> None:
    text = (ROOT / "docs/results.md").read_text()
    for table in ("digits", "fashion_mnist"):
        assert text.index(f"<!-- table {table} -->") < text.index(f"<!-- end {table} -->")
