"""Rows: what a run was and what it scored, one JSON object a line."""

import csv
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

Row = dict[str, Any]

_POINTS = 100  # of a curve
_DIGITS = 5
_VERSION = re.compile(r"# duality_ssl (\S+)")
_SIZES = ("num_train", "num_val", "num_features")  # of evaluation.json, and no scores


def read_rows(path: Path) -> list[Row]:
    """Read the rows of a file, of each run the latest.

    A run is a cell with a seed; while tuning, with its options. A repeated run takes the place of
    its former row. A last line that was cut off is left out.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If another line is no row.
    """
    return [*{identity(row): row for row in all_rows(path)}.values()]


def all_rows(path: Path) -> list[Row]:
    """Read the rows of a file as `read_rows` does, with those that later ones replace."""
    rows = []
    *lines, torn = path.read_bytes().split(b"\n")
    for number, line in enumerate([*lines, torn], 1):
        try:
            row = json.loads(line) if line.strip() else None
        except ValueError as error:
            if line is torn:
                break
            raise ValueError(f"{path}, line {number}, is no row of JSON: {error}.") from error
        if row is not None:
            rows.append(row)
    return rows


def append_row(path: Path, row: Row) -> None:
    """Append a row in one write; a last line that was cut off is removed."""
    line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 1, 0))
        if size and file.read(1) != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def identity(row: Row) -> str:
    """What a later row replaces: the run of the same phase, cell and seed."""
    phase = row.get("phase", "grid")
    options = row["options"] if phase == "tune" else None
    return json.dumps([row["sweep"], phase, row["cell"], row["seed"], options], sort_keys=True)


def read_run(run: Path) -> Row:
    """Read what a folder of a run holds: ``version, epochs, scores, curves, arrays``.

    The files are ``config.yaml``, ``metrics.csv`` and ``checkpoints/evaluation.json``; of an
    untrained network only ``evaluation.json``. Scores are fractions, as in the files.

    Raises:
        OSError: If a file is missing.
    """
    config, metrics = run / "config.yaml", run / "metrics.csv"
    trained = metrics.is_file()
    evaluation = run / "checkpoints" / "evaluation.json" if trained else run / "evaluation.json"
    curves = read_curves(metrics) if trained else {}
    scores, arrays = read_evaluation(evaluation)
    online = [value for value in curves.get("val/probe_top1", []) if value is not None]
    version = _VERSION.match(config.read_text("utf-8")) if config.is_file() else None
    return {
        **({"version": version[1]} if version else {}),
        "epochs": int(curves["epoch"][-1] or 0) + 1 if curves else 0,
        "scores": ({"online_top1": online[-1]} if online else {}) | scores,
        "curves": curves,
        "arrays": arrays,
    }


def read_evaluation(path: Path) -> tuple[dict[str, float], dict[str, Any]]:
    """Scores and arrays of an ``evaluation.json``: every number at its top level but the sizes."""
    content = json.loads(path.read_text("utf-8"))
    numbers = {
        name: value
        for name, value in content.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and name not in _SIZES
    }
    return numbers, content.get("arrays", {})


def read_curves(path: Path) -> dict[str, list[float | None]]:
    """Curves of a ``metrics.csv``: ``epoch``, and for each other column its mean of the epoch.

    At most 100 epochs, spread evenly, with the first and the last; None where an epoch has none.
    """
    found: dict[int, dict[str, list[float]]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if not row.get("epoch"):
                continue
            values = found.setdefault(int(float(row["epoch"])), {})
            for name, text in row.items():
                if text and name not in ("epoch", "step"):
                    values.setdefault(name, []).append(float(text))
    epochs = _thinned(sorted(found))
    names = sorted({name for epoch in epochs for name in found[epoch]})
    return {"epoch": epochs} | {
        name: [_mean(found[epoch].get(name, [])) for epoch in epochs] for name in names
    }


def _thinned(values: Sequence[Any]) -> list[Any]:
    last = len(values) - 1
    if last < _POINTS:
        return [*values]
    return [values[round(i * last / (_POINTS - 1))] for i in range(_POINTS)]


def _mean(values: Sequence[float]) -> float | None:
    mean = fmean(values) if values else math.nan
    return float(f"{mean:.{_DIGITS}g}") if math.isfinite(mean) else None


def summary(row: Mapping[str, Any]) -> str:
    """A row in a few words: its first scores and its seconds, or its error."""
    if "error" in row:
        return f"failed: {row['error']}"
    scores = [f"{name} {value:.4g}" for name, value in row["scores"].items()]
    return ", ".join([*scores[:4], f"{row['seconds']:.0f} s"])
