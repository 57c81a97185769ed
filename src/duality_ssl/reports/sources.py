"""Where the rows of a report come from: JSONL files, and folders of runs."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from duality_ssl.reports.rows import Row


def read(paths: Iterable[Path]) -> list[Row]:
    """Read the rows of files and folders, of each run the last; those of tuning are left out.

    Args:
        paths: JSONL files of rows; folders with such files, or with ``rows.jsonl`` of sweeps below
            them; or folders of evaluated runs.

    Raises:
        OSError: If a file cannot be read.
        ValueError: If a path holds no rows, or something else.
    """
    from duality_ssl.sweeps.rows import identity

    found = {identity(row): row for path in paths for row in _rows_of(path)}
    return [row for row in found.values() if row.get("phase", "grid") == "grid"]


def _rows_of(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        raise ValueError(f"Expected a file of rows or a folder of runs, but {path} does not exist.")
    if path.is_file():
        return _rows_of_file(path)
    files = sorted(path.glob("*.jsonl")) or sorted(path.rglob("rows.jsonl"))
    rows = [row for file in files for row in _rows_of_file(file)] or _rows_of_runs(path)
    if not rows:
        raise ValueError(
            f"Expected rows (*.jsonl) or evaluated runs in {path}, but found none. Evaluate a run "
            "with `duality-ssl test --ckpt_path RUN`."
        )
    return rows


def _rows_of_file(path: Path) -> list[dict[str, Any]]:
    from duality_ssl.sweeps.rows import read_rows

    try:
        return read_rows(path)
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"Expected every line of {path} to be a row of `duality-ssl sweep`, with `sweep`, "
            "`cell` and `seed`, but one is not. Leave the file out."
        ) from error


def _rows_of_runs(folder: Path) -> list[dict[str, Any]]:
    """A row for each run below a folder that `test` has evaluated."""
    from duality_ssl.sweeps.rows import read_run

    runs = sorted(file.parents[1] for file in folder.rglob("checkpoints/evaluation.json"))
    rows: list[dict[str, Any]] = [
        {"sweep": str(folder), "cell": _cell(run), "seed": _seed(run), **read_run(run)}
        for run in runs
    ]
    identities = {json.dumps([row["cell"], row["seed"]]) for row in rows}
    if len(identities) < len(rows):  # one method ran twice: its runs are cells of their own
        for run, row in zip(runs, rows, strict=True):
            row["cell"]["run"] = run.name
    return rows


def _cell(run: Path) -> dict[str, str]:
    evaluation = json.loads((run / "checkpoints" / "evaluation.json").read_text("utf-8"))
    return {"method": evaluation.get("method", "?"), "experiment": run.parents[1].name}


def _seed(run: Path) -> Any:
    config = yaml.safe_load((run / "config.yaml").read_text("utf-8"))
    return config.get("seed_everything")
