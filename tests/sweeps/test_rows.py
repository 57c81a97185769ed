"""Rows: what is read from a run's folder, and a file of rows that survives a kill."""

import json
from pathlib import Path
from typing import Any

import pytest

from duality_ssl.sweeps.rows import all_rows, append_row, read_curves, read_rows, read_run, summary


def row(**changes: Any) -> dict[str, Any]:
    plain = {"sweep": "a", "cell": {"method": "VICReg", "d": 16}, "options": {}, "seed": 0}
    return plain | {"key": "1", "scores": {"linear_top1": 0.5}, "seconds": 1.0} | changes


def test_a_torn_last_line_is_left_out_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "results/rows.jsonl"
    append_row(path, row())
    with path.open("a") as file:
        file.write('{"sweep": "a", "ce')
    assert read_rows(path) == [row()]
    append_row(path, row(seed=1, note="é"))
    assert read_rows(path) == [row(), row(seed=1, note="é")]
    assert path.read_text("utf-8").count("\n") == 2


def test_a_whole_line_that_is_no_row_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{json.dumps(row())}\nno row\n")
    with pytest.raises(ValueError, match=r"rows.jsonl, line 2, is no row of JSON"):
        read_rows(path)


def test_the_latest_row_of_a_run_counts(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    trial = row(phase="tune", options={"model.base_lr": 0.1})
    rows = [
        row(error="a sentence"),
        *(trial, trial | {"options": {"model.base_lr": 0.2}}),
        row(seed=1),
        row(key="2", options={"model.base_lr": 0.2}),
    ]
    for each in rows:
        append_row(path, each)
    assert read_rows(path) == [rows[4], *rows[1:4]]
    assert all_rows(path) == rows


def test_row_of_a_run(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.yaml").write_text("# duality_ssl 0.1.0\nseed_everything: 0\n")
    (tmp_path / "metrics.csv").write_text(
        "epoch,lr,step,train/loss,val/probe_top1\n"
        "0,,4,2.0,\n0,,9,1.0,\n0,,9,,0.25\n,0.1,9,,\n1,,19,0.123456,\n1,,19,nan,\n1,,19,,0.75\n"
    )
    evaluation = {
        **{"linear_top1": 0.9, "rankme": 12, "method": "VICReg", "per_class": {"0": 1.0}},
        **{"num_train": 10, "num_val": 5, "num_features": 3, "checkpoint": "last.ckpt"},
        **{"arrays": {"spectrum": [2, 1]}, "flag": True},
    }
    (tmp_path / "checkpoints/evaluation.json").write_text(json.dumps(evaluation))
    assert read_run(tmp_path) == {
        "version": "0.1.0",
        "epochs": 2,
        "scores": {"online_top1": 0.75, "linear_top1": 0.9, "rankme": 12},
        "curves": {
            "epoch": [0, 1],
            "train/loss": [1.5, None],
            "val/probe_top1": [0.25, 0.75],
        },
        "arrays": {"spectrum": [2, 1]},
    }


def test_long_curves_keep_100_points_with_both_ends(tmp_path: Path) -> None:
    lines = [f"{epoch},{epoch},{epoch / 3}" for epoch in range(1000)]
    (tmp_path / "metrics.csv").write_text("\n".join(["epoch,step,train/loss", *lines]))
    curves = read_curves(tmp_path / "metrics.csv")
    assert len(curves["epoch"]) == len({*curves["epoch"]}) == 100
    assert (curves["epoch"][0], curves["epoch"][-1]) == (0, 999)
    assert curves["train/loss"][1] == 3.3333


def test_summary_of_a_row() -> None:
    assert summary(row()) == "linear_top1 0.5, 1 s"
    assert summary({"error": "It failed."}) == "failed: It failed."
