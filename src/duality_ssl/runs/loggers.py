"""Loggers of a run: after a resume each row is logged once, and a user's loggers are added."""

import csv
import inspect
import io
import math
import pkgutil
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from duality_ssl.files import write_atomically

Named = Sequence[Mapping[str, Any]]
"""Loggers that the user names, each a ``class_path`` with its ``init_args``."""


def run_loggers(run: Path, step: int | None, named: Named) -> list[Logger]:
    """The loggers of a fit: TensorBoard and CSV in its folder, and those that the user names.

    TensorBoard hides points after ``step``, the checkpoint's, which are logged again.
    """
    place = run.parent.parent, run.parent.name, run.name
    tensorboard = TensorBoardLogger(*place, default_hp_metric=False, purge_step=step)
    return [tensorboard, RunCSVLogger(run), *named_loggers(run, named)]


def named_loggers(run: Path, named: Named) -> list[Logger]:
    """Build the user's loggers; a ``save_dir`` left at its default is below the run's folder."""
    loggers = []
    for logger in named:
        cls = pkgutil.resolve_name(logger["class_path"])
        arguments = {**logger.get("init_args", {}), **logger.get("dict_kwargs", {})}
        save_dir = inspect.signature(cls).parameters.get("save_dir")
        if save_dir is not None and arguments.get("save_dir", save_dir.default) == save_dir.default:
            arguments["save_dir"] = str(run / (save_dir.default or ""))
        try:
            loggers.append(cls(**arguments))
        except Exception as error:  # of the service behind it
            raise ValueError(f"{cls.__name__} cannot start: {error}") from error
    return loggers


class RunCSVLogger(Logger):
    """Writes ``metrics.csv`` in the folder of a run, and appends to one that exists."""

    def __init__(self, run: Path) -> None:
        super().__init__()
        self._path = run / "metrics.csv"
        self._columns: list[str] = []
        self._rows: int | None = None  # unknown until the file is read

    @property
    def rows(self) -> int:
        if self._rows is None:
            self.rewind(math.inf)
        return self._rows or 0

    @property
    def name(self) -> str:
        return self._path.parent.parent.name

    @property
    def version(self) -> str:
        return self._path.parent.name

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Leave them to ``config.yaml`` and TensorBoard."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append a row."""
        count, row = self.rows, {**metrics, "step": step}
        if new := row.keys() - set(self._columns):
            with self._path.open(newline="") if count else io.StringIO() as file:
                rows = [*csv.DictReader(file)]
            self._columns = sorted({*self._columns, *new})
            self._write([*rows, row])
        else:
            with self._path.open("a", newline="") as file:
                csv.DictWriter(file, self._columns).writerow(row)
        self._rows = count + 1

    @rank_zero_only
    def rewind(self, step: float, rows: int | None = None) -> None:
        """Keep the rows before a step, at most ``rows``; a resumed run logs the others again."""
        content = self._path.read_bytes() if self._path.is_file() else b""
        whole, end, _ = content.rpartition(b"\n")  # a kill may have cut off the last row
        table = csv.DictReader(io.StringIO((whole + end).decode(), newline=""))
        kept = [row for row in islice(table, rows) if int(row["step"]) < step]
        self._columns, self._rows = list(table.fieldnames or ()) if kept else [], len(kept)
        if kept:
            self._write(kept)
        else:
            self._path.unlink(missing_ok=True)

    def _write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self._columns)
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(self._path, lambda file: file.write(text.getvalue().encode()))
