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

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_only

from duality_ssl.files import write_atomically


def run_loggers(run: Path, named: Sequence[Mapping[str, Any]] = ()) -> list[Logger]:
    """The loggers of a fit: TensorBoard and CSV in its folder, and those that the user names.

    Args:
        run: Folder of the run.
        named: The user's loggers, each a ``class_path`` with its ``init_args``.
    """
    place: dict[str, Any] = {"save_dir": run.parent.parent, "name": run.parent.name}
    place["version"] = run.name
    tensorboard = RunTensorBoardLogger(**place, default_hp_metric=False)
    return [tensorboard, RunCSVLogger(**place), *named_loggers(run, named)]


def named_loggers(run: Path, named: Sequence[Mapping[str, Any]]) -> list[Logger]:
    """The loggers that the user names; a ``save_dir`` left at its default is below the run's."""
    return [_build(each, run) for each in named]


def _build(logger: Mapping[str, Any], run: Path) -> Logger:
    cls = pkgutil.resolve_name(logger["class_path"])
    arguments = {**logger.get("init_args", {}), **logger.get("dict_kwargs", {})}
    save_dir = inspect.signature(cls).parameters.get("save_dir")
    if save_dir is not None and arguments.get("save_dir", save_dir.default) == save_dir.default:
        arguments["save_dir"] = str(run / (save_dir.default or ""))
    built: Logger = cls(**arguments)
    return built


class RunCSVLogger(CSVLogger):
    """Writes ``metrics.csv``, and appends to one that exists.

    After a kill the last row may be cut off; it is dropped. A new column is added to a copy of the
    file, which takes its place.
    """

    @property
    def rows(self) -> int:
        """Rows in the file and in the buffer."""
        return self.experiment.rows + len(self.experiment.metrics)

    @rank_zero_only
    def go_on(self, step: int, rows: int | None = None) -> None:
        """Drop the rows that a resumed run will log again.

        Args:
            step: Steps of the checkpoint: later rows are dropped.
            rows: Rows of the file at the checkpoint; None if unknown.
        """
        self.experiment.cut(step, rows)

    @property
    @rank_zero_experiment
    def experiment(self) -> "_Writer":
        """The file's writer."""
        if self._experiment is None:
            self._experiment = _Writer(self.log_dir)
        return self._experiment  # type: ignore[return-value]


class _Writer(ExperimentWriter):
    def __init__(self, log_dir: str) -> None:
        super().__init__(log_dir)
        self.rows = 0
        self.cut(math.inf, None)

    def _check_log_dir_exists(self) -> None:
        """Delete nothing."""

    def save(self) -> None:
        """Append the new rows."""
        self.rows += len(self.metrics)
        super().save()

    def cut(self, step: float, rows: int | None) -> None:
        """Keep the first rows, up to the given step."""
        self.save()
        path = Path(self.metrics_file_path)
        if not path.is_file():
            return
        whole, end, _ = path.read_bytes().rpartition(b"\n")
        table = csv.DictReader(io.StringIO((whole + end).decode(), newline=""))
        kept = [row for row in islice(table, rows) if int(row["step"]) < step]
        self.metrics_keys = list(table.fieldnames or ()) if kept else []
        self.rows = len(kept)
        if kept:
            self._rewrite(kept)
        else:
            path.unlink()

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        with Path(self.metrics_file_path).open(newline="") as file:
            self._rewrite(list(csv.DictReader(file)))

    def _rewrite(self, rows: list[dict[str, Any]]) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self.metrics_keys)
        writer.writeheader()
        writer.writerows(rows)
        content = text.getvalue().encode()
        write_atomically(Path(self.metrics_file_path), lambda file: file.write(content))


class RunTensorBoardLogger(TensorBoardLogger):
    """Has TensorBoard hide what an interrupted run has logged again."""

    @rank_zero_only
    def go_on(self, step: int, rows: int | None = None) -> None:
        """Hide the points of this step and later ones, as ``purge_step`` does.

        ``purge_step`` itself is needed before Lightning reads the checkpoint.
        """
        from tensorboard.compat.proto.event_pb2 import (  # type: ignore[import-untyped]
            Event,
            SessionLog,
        )

        start = SessionLog(status=SessionLog.START)
        self.experiment._get_file_writer().add_event(Event(session_log=start), step)
