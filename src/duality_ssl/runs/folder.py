"""Folders of runs: where a run is, which of its checkpoints can be read, and how far it is."""

import inspect
import pkgutil
import re
import sys
import zipfile
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from jsonargparse import Namespace
from lightning import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_warn

from duality_ssl.files import remove_temporary, write_atomically

if sys.platform != "win32":  # which has no such locks
    import fcntl

CONFIG = "config.yaml"
_FOLDER = "checkpoints"
_OF_FIT = {"state_dict", "optimizer_states", "global_step", "loops"}
_EPOCHS_OF_THE_TRAINER = 1000  # where neither epochs nor steps are limited


class Checkpoint(NamedTuple):
    """How far a fit was when it wrote a checkpoint."""

    path: Path
    step: int
    """Optimiser steps taken."""
    epochs: int
    """Epochs finished."""

    def is_complete(self, max_epochs: int | None, max_steps: int) -> bool:
        """Whether a trainer with these limits has nothing left to do; -1 is no limit."""
        if max_epochs is None:
            max_epochs = _EPOCHS_OF_THE_TRAINER if max_steps == -1 else -1
        return 0 <= max_epochs <= self.epochs or 0 <= max_steps <= self.step


def runs_folder(options: Mapping[str, Any]) -> Path:
    """Where the runs of these options are, ``runs/EXPERIMENT/METHOD``."""
    experiment = options["experiment"] or options["data"]["source"]
    method = options["model"]["class_path"].rpartition(".")[2]
    return Path(options["trainer"]["default_root_dir"]) / experiment / method


def newest_run(folder: Path) -> Path | None:
    """The ``version_N`` of the greatest N in a folder of runs; None if there is none."""
    runs = [path for path in folder.glob("version_*") if re.fullmatch(r"version_\d+", path.name)]
    return max(runs, key=lambda run: int(run.name.removeprefix("version_")), default=None)


def run_of(checkpoint: Path) -> Path:
    """The folder of the run that wrote a checkpoint."""
    return checkpoint.absolute().parent.parent


def own_folder(checkpoint: Path, options: Mapping[str, Any]) -> Path | None:
    """The run that a checkpoint is of, if these options name its experiment and method.

    Returns:
        Its folder, spelt as the options spell it where that is the same place; None if the run is
        of another experiment or method, or none of the command line.
    """
    run = run_of(checkpoint)
    config = run / CONFIG
    if not config.is_file():
        return None
    folder = runs_folder(options)
    try:
        former = runs_folder(yaml.safe_load(config.read_text(encoding="utf-8")))
    except (KeyError, TypeError):  # somebody's own
        return None
    if former != folder:
        return None
    spelt = folder / run.name
    return spelt if spelt.resolve() == run.resolve() else run


def last_checkpoint(run: Path) -> Path:
    """Where ``last.ckpt`` is; the newest other one, if a kill came before it had its name."""
    last = run / _FOLDER / "last.ckpt"
    newest = None if last.exists() else newest_checkpoint(run)
    return newest.path if newest else last


def newest_checkpoint(run: Path, but: Path | None = None) -> Checkpoint | None:
    """The checkpoint of a run that is furthest, of those that can be read; None if there is none.

    Each that cannot be read is named in a warning.

    Args:
        run: Folder of the run.
        but: A checkpoint to leave out.
    """
    found = []
    for path in sorted((run / _FOLDER).glob("*.ckpt")):
        if path == but or not path.is_file():
            continue
        try:
            found.append(_progress(path))
        except ValueError as error:
            rank_zero_warn(f"{error} It is passed over.")
    # of two at one step, best.ckpt was written first: its validation had not ended
    found.sort(key=lambda c: (c.step, c.epochs, c.path.stem != "best", c.path.stem == "last"))
    for checkpoint in reversed(found):
        try:
            _check_whole(checkpoint.path)
        except ValueError as error:
            rank_zero_warn(f"{error} It is passed over.")
        else:
            return checkpoint
    return None


def read_checkpoint(path: Path, of_fit: bool = True) -> Checkpoint:
    """Say how far a checkpoint is, and that it is whole.

    Args:
        path: The file.
        of_fit: Whether a fit is to go on with it, which takes more than the weights.

    Raises:
        FileNotFoundError: If it is not there.
        ValueError: If it is truncated, damaged, or something else than a checkpoint of a fit; the
            one before it is named, if the run has one.
    """
    try:
        checkpoint = _progress(path, _OF_FIT if of_fit else {"state_dict"})
        _check_whole(path)
    except ValueError as error:
        raise ValueError(f"{error}{one_before(path)}") from error
    return checkpoint


def one_before(path: Path) -> str:
    """The end of a sentence on a checkpoint that cannot be used: which other one its run has."""
    run = run_of(path)
    path = path.absolute()
    others = newest_checkpoint(run, but=path) if path.parent.name == _FOLDER else None
    return f" The one before it: --ckpt_path {others.path}" if others else ""


def _progress(path: Path, needed: AbstractSet[str] = _OF_FIT) -> Checkpoint:
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint {path}.{one_before(path)}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a damaged file can fail in any way
        raise ValueError(
            f"{path} ({path.stat().st_size:,} bytes) cannot be read as a checkpoint: it is "
            "truncated, or something else."
        ) from error
    lacking = needed - content.keys() if isinstance(content, dict) else needed
    if lacking:
        names = ", ".join(sorted(lacking))
        raise ValueError(f"{path} is no checkpoint to go on from: it lacks {names}.")
    if "loops" not in content:
        return Checkpoint(path, 0, 0)
    try:
        epochs = content["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
        return Checkpoint(path, int(content["global_step"]), int(epochs))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no checkpoint to go on from: it counts no epochs.") from error


def _check_whole(path: Path) -> None:
    """Compare every byte with its checksum, which loading does not do."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read to its end: {error}.") from error
    if damaged:
        raise ValueError(f"{path} is damaged: the checksum of {damaged} is wrong.")


class RunFolder(SaveConfigCallback):
    """Keeps the folder of a run: ``config.yaml``, no left-overs, one fit at a time.

    ``config.yaml`` says what the run runs with now. If it goes on with other values, what it had
    until then stays as ``config-until-step-N.yaml``. How it goes on is no part of the file: taken
    by ``-c``, it starts a run of its own.

    Args:
        *args: Those of Lightning's callback; ``overwrite`` says that the run goes on in its folder.
        **kwargs: Likewise.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._held = ExitStack()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """See that all processes mean the same run; tidy its folder, and write the file."""
        run = Path(trainer.log_dir or trainer.default_root_dir)  # asked of every process
        goes_on_from = self.config.ckpt_path
        firsts = trainer.strategy.broadcast(goes_on_from)
        if goes_on_from != firsts:
            raise ValueError(
                f"Process {trainer.global_rank} would go on from {goes_on_from}, and the first one "
                f"from {firsts}: not every machine sees the run's files yet. Start it again."
            )
        if not trainer.is_global_zero:
            return
        path = run / self.config_filename
        if not self.overwrite:
            self._held.enter_context(alone_in(run))
            if path.exists():
                raise ValueError(f"Another run has just taken {run} for itself. Start this again.")
        for folder in (run, run / _FOLDER):
            remove_temporary(folder)
        new = self._as_yaml()
        old = path.read_text(encoding="utf-8") if path.is_file() else None
        if old is not None and yaml.safe_load(old) != yaml.safe_load(new):
            step = _progress(Path(goes_on_from)).step if goes_on_from else 0
            kept = run / f"{path.stem}-until-step-{step}{path.suffix}"
            if not kept.exists():
                _write(kept, old)
        if new != old:
            _write(path, new)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Let others have the folder."""
        self._held.close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let others have the folder."""
        self._held.close()

    def _as_yaml(self) -> str:
        config = self.config.clone()
        config.ckpt_path, config.resume = None, False
        _leave_out_replaced(config.model.get("init_args.optimizer"))
        text: str = self.parser.dump(config, skip_none=False)
        return text


def _leave_out_replaced(optimizer: Any) -> None:
    """Drop the optimiser's own learning rate and weight decay: the method's are what it gets."""
    if not isinstance(optimizer, Namespace):  # a function, or a method that takes none
        return
    parameters = inspect.signature(pkgutil.resolve_name(optimizer.class_path)).parameters
    for name in ("lr", "weight_decay"):
        # one without a default is needed to read the file again
        if name in parameters and parameters[name].default is not inspect.Parameter.empty:
            optimizer.init_args.pop(name, None)


def _write(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write(text.encode()))


@contextmanager
def alone_in(run: Path) -> Iterator[None]:
    """Hold the folder of a run, which one fit at a time may write to.

    The lock ends with the process, however it ends. Where the system has none, there is none.

    Raises:
        ValueError: If another process holds it.
    """
    with (run / ".lock").open("a") as file:
        try:
            if sys.platform != "win32":
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise ValueError(
                f"Another process is training in {run}: wait for its end, or give this run a name "
                "of its own with --experiment."
            ) from error
        except OSError:
            pass
        yield
