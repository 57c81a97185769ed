"""Folders of runs: where a run is, which of its checkpoints can be read, and who writes to it."""

import itertools
import re
import sys
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_warn

from duality_ssl.files import remove_temporary, write_atomically
from duality_ssl.runs.loggers import Named, run_loggers

if sys.platform != "win32":  # which has no such locks
    import fcntl

CONFIG = "config.yaml"
_FOLDER = "checkpoints"
_OF_FIT = {"state_dict", "optimizer_states", "global_step", "loops"}
_EPOCHS = 1000  # the Trainer's limit where neither epochs nor steps are limited


class Checkpoint(NamedTuple):
    """How far a fit was when it wrote a checkpoint: optimizer steps taken, epochs finished."""

    path: Path
    step: int
    epochs: int

    def is_complete(self, max_epochs: int | None, max_steps: int) -> bool:
        """Whether a trainer with these limits has nothing left to do; -1 is no limit."""
        if max_epochs is None:
            max_epochs = _EPOCHS if max_steps == -1 else -1
        return 0 <= max_epochs <= self.epochs or 0 <= max_steps <= self.step


def runs_folder(options: Mapping[str, Any]) -> Path:
    """Where the runs of options, by their dotted names, are: ``runs/EXPERIMENT/METHOD``."""
    experiment = options["experiment"] or options["data.source"]
    method = options["model.class_path"].rpartition(".")[2]
    return Path(options["trainer.default_root_dir"]) / experiment / method


def versions(folder: Path) -> list[Path]:
    """The folders ``version_N`` in a folder of runs, by their number."""
    runs = [path for path in folder.glob("version_*") if re.fullmatch(r"version_\d+", path.name)]
    return sorted(runs, key=_number)


def _number(run: Path) -> int:
    return int(run.name.removeprefix("version_"))


def claim_version(folder: Path, held: ExitStack) -> Path:
    """Create and lock the next ``version_N``; no two processes get the same one.

    A folder without ``config.yaml`` is free: a fit was killed as soon as it had created it.
    """
    taken = [_number(run) for run in versions(folder) if (run / CONFIG).is_file()]
    for number in itertools.count(max(taken, default=-1) + 1):
        run = folder / f"version_{number}"
        run.mkdir(parents=True, exist_ok=True)
        with suppress(ValueError):  # another process may have it
            held.enter_context(lock_run(run))
            if not (run / CONFIG).is_file():
                break
            held.close()
    return run


def run_of(checkpoint: Path) -> Path:
    """The folder of the run that wrote a checkpoint."""
    return checkpoint.absolute().parent.parent


def last_checkpoint(run: Path) -> Path:
    """Where ``last.ckpt`` is, or the newest other checkpoint if a kill came before the rename."""
    last = run / _FOLDER / "last.ckpt"
    newest = None if last.exists() else newest_checkpoint(run)
    return newest.path if newest else last


def newest_checkpoint(run: Path, but: Path | None = None) -> Checkpoint | None:
    """The readable checkpoint of a run with the most steps, except ``but``; warns of the others."""
    found = []
    for path in sorted((run / _FOLDER).glob("*.ckpt")):
        if path != but and path.is_file():
            try:
                found.append(_progress(path, _OF_FIT))
            except ValueError as error:
                rank_zero_warn(f"{error} It is skipped.")
    # of two at one step, best.ckpt was written first: its validation had not ended
    found.sort(key=lambda c: (c.step, c.epochs, c.path.stem != "best", c.path.stem == "last"))
    for checkpoint in reversed(found):  # checksums are of the whole file: only as far as needed
        try:
            _check_whole(checkpoint.path)
        except ValueError as error:
            rank_zero_warn(f"{error} It is skipped.")
        else:
            return checkpoint
    return None


def read_checkpoint(path: Path, of_fit: bool = True) -> Checkpoint:
    """Read how far a checkpoint is, and check that it is whole.

    A fit, which resumes from it (``of_fit``), needs more than the weights.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged or no checkpoint of a fit; names another one of the run.
    """
    try:
        if not path.is_file():
            raise FileNotFoundError(f"There is no checkpoint {path}.")
        _check_whole(path)
        return _progress(path, _OF_FIT if of_fit else {"state_dict"})
    except (FileNotFoundError, ValueError) as error:
        hint = "" if path.is_file() else " Name a .ckpt file, or the folder of a run."
        if other := newest_checkpoint(run_of(path), but=path.absolute()):
            hint = f" The one before it: --ckpt_path {other.path}"
        raise type(error)(f"{error}{hint}") from error


def _check_whole(path: Path) -> None:
    """Compare the file with its checksums, which loading does not do."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except Exception as error:  # a damaged file can fail in any way
        raise _not_readable(path) from error
    if damaged:
        raise ValueError(f"{path} is damaged: the checksum of {damaged} is wrong.")


def _not_readable(path: Path) -> ValueError:
    return ValueError(
        f"{path} ({path.stat().st_size:,} bytes) cannot be read as a checkpoint: it is "
        "truncated, or a different kind of file."
    )


def _progress(path: Path, needed: set[str]) -> Checkpoint:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a damaged file can fail in any way
        raise _not_readable(path) from error
    lacking = needed - content.keys() if isinstance(content, dict) else needed
    if lacking:
        names = ", ".join(sorted(lacking))
        raise ValueError(f"{path} is no checkpoint to resume from: it lacks {names}.")
    if "loops" not in content:
        return Checkpoint(path, 0, 0)
    try:
        epochs = content["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
        return Checkpoint(path, int(content["global_step"]), int(epochs))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no checkpoint to resume from: it counts no epochs.") from error


class RunFolder(Callback):
    """Chooses the folder of a fit, once, and gives it to everything that writes there.

    A new fit claims the next ``version_N``, a resumed one keeps its folder. The first process locks
    it for as long as the fit lasts, and writes ``config.yaml``; former content stays as
    ``config-until-step-N.yaml``. Checkpoints, loggers and the profiler then write to the folder.

    Args:
        folder: Where the runs of the experiment and method are.
        config: Content of ``config.yaml``.
        run: Folder of the run that is resumed; None for a new one.
        checkpoint: What the fit starts from.
        loggers: Loggers that the user names.
    """

    def __init__(
        self,
        folder: Path,
        config: str,
        run: Path | None = None,
        checkpoint: Checkpoint | None = None,
        loggers: Named = (),
    ) -> None:
        self._folder, self._config, self._run = folder, config, run
        self._checkpoint, self._loggers = checkpoint, loggers
        self._held = ExitStack()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        checkpoint = str(self._checkpoint.path) if self._checkpoint else None
        first = trainer.strategy.broadcast(checkpoint)
        if checkpoint != first:
            raise ValueError(
                f"Process {trainer.global_rank} would resume from {checkpoint}, and the first one "
                f"from {first}: not every machine sees the run's files yet. Start it again."
            )
        run = self._prepare() if trainer.is_global_zero else None
        run = Path(trainer.strategy.broadcast(str(run)))
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                callback.dirpath = str(run / _FOLDER)
        step = self._checkpoint.step if self._checkpoint else None
        trainer.loggers = run_loggers(run, step, self._loggers)
        for logger in reversed(trainer.loggers):  # wandb wants to start before TensorBoard
            getattr(logger, "experiment", None)
        profiler = trainer.profiler  # type: ignore[attr-defined]
        if profiler.dirpath == trainer.default_root_dir:  # Lightning's choice without a logger
            profiler.dirpath = run

    def teardown(self, *args: Any, **kwargs: Any) -> None:
        self._held.close()

    on_exception = teardown

    def _prepare(self) -> Path:
        run = self._run or claim_version(self._folder, self._held)
        if self._run:
            self._held.enter_context(lock_run(run))
        for folder in (run, run / _FOLDER):
            remove_temporary(folder)
        path = run / CONFIG
        former = path.read_bytes() if path.is_file() else b""
        if former and yaml.safe_load(former) != yaml.safe_load(self._config):
            step = self._checkpoint.step if self._checkpoint else 0
            kept = path.with_name(f"config-until-step-{step}.yaml")
            if not kept.exists():
                write_atomically(kept, lambda file: file.write(former))
        write_atomically(path, lambda file: file.write(self._config.encode()))
        return run


@contextmanager
def lock_run(run: Path) -> Iterator[None]:
    """Lock the folder of a run until the process ends, where its file system can.

    Raises:
        ValueError: If another process holds the lock.
    """
    with (run / ".lock").open("a") as file:
        try:
            if sys.platform != "win32":
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise ValueError(
                f"Another process is training in {run}: wait for its end, or set --experiment."
            ) from error
        except OSError:
            pass
        yield
