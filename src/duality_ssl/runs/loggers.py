"""Loggers that a run goes on with: what came after its checkpoint is logged once, not twice."""

import csv
import io
import math
from itertools import islice
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_only

from duality_ssl.files import write_atomically


class RunCSVLogger(CSVLogger):
    """Writes ``metrics.csv``, and goes on with one that is there.

    A kill leaves whole rows but for the last, which is dropped; a new column is added to a copy of
    the file, which takes its place.
    """

    @property
    def rows(self) -> int:
        """Rows in the file, with those that wait to be written."""
        return self.experiment.rows + len(self.experiment.metrics)

    @rank_zero_only
    def go_on(self, step: int, rows: int | None = None) -> None:
        """Drop what a run will log again.

        Args:
            step: Steps that the run had taken at its checkpoint: later rows are dropped.
            rows: Rows that the file had then; None if nobody knows.
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
        """Keep the first rows, as far as they are of earlier steps."""
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
    """Has TensorBoard leave out what a run that was interrupted has logged again."""

    @rank_zero_only
    def go_on(self, step: int, rows: int | None = None) -> None:
        """Hide what is there of this step and later ones, as ``purge_step`` does.

        Lightning opens the file before it reads the checkpoint.
        """
        from tensorboard.compat.proto.event_pb2 import (  # type: ignore[import-untyped]
            Event,
            SessionLog,
        )

        start = SessionLog(status=SessionLog.START)
        self.experiment._get_file_writer().add_event(Event(session_log=start), step)
