"""Several processes under Lightning: which strategies fit, and how a run ends that loses one."""

import logging
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

from lightning import Trainer
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    SingleDeviceStrategy,
    Strategy,
)

from duality_ssl._internals.lightning import SubprocessScriptLauncher
from duality_ssl.distributed import world_size


def check_strategy(strategy: str | Strategy) -> None:
    """Refuse a strategy that does not leave each process the whole network.

    Args:
        strategy: A name, as the command line takes it, or what became of it.

    Raises:
        ValueError: For FSDP, DeepSpeed and the like; by name also for ``ddp_spawn``, to which the
            command's callbacks cannot be sent.
    """
    if isinstance(strategy, str):
        name, fits = strategy, re.match(r"auto$|ddp(?!_spawn)", strategy) is not None
    else:
        name, fits = type(strategy).__name__, isinstance(strategy, _WHOLE)
    if not fits or isinstance(strategy, DeepSpeedStrategy):
        raise ValueError(
            f"Expected --trainer.strategy ddp (or auto), but got {name}: criteria, probes, LARS "
            "and checkpoints want the whole network in each process."
        )


_WHOLE = SingleDeviceStrategy | DDPStrategy


def check_processes(trainer: Trainer) -> None:
    """Raise ``ValueError`` unless ``torch.distributed`` knows the processes that the trainer has.

    Without it each would compute its criterion by itself, as under the strategy for TPUs.
    """
    if trainer.world_size != world_size():
        raise ValueError(
            f"Expected torch.distributed to know the {trainer.world_size} processes of "
            f"{type(trainer.strategy).__name__}, but it knows {world_size()}. "
            "Set --trainer.strategy ddp."
        )


class LostProcessError(ConnectionError):
    """Another process of the run has died or hangs; the message says what is known of it."""


@contextmanager
def one_for_all(trainer: Trainer) -> Iterator[None]:
    """Let an error end the processes that this one has started too: one that hangs would stay.

    Raises:
        LostProcessError: In place of what a collective says when another process does not answer.
    """
    logging.getLogger(_OBSERVER).addFilter(_say_what_to_do)
    starter = os.environ.get(_STARTER)
    os.environ[_STARTER] = str(os.getpid())
    try:
        yield
    except Exception as error:
        said = " ".join(_of_collectives(error)) if trainer.world_size > 1 else ""
        dead, silent = _DEAD.search(said), _SILENT.search(said)
        # one that died has a code to tell, as soon as it is dead; one that hangs has none
        fates = _end_children(trainer, patience=2 if dead else 0)
        if not dead and not silent:
            raise
        if silent and starter == str(os.getppid()):
            fates += _end_starter(trainer, patience=20)
        who = f"Process {trainer.global_rank} of {trainer.world_size}"
        allowed = getattr(trainer.strategy, "_timeout", None)
        what = "lost its connection to another" if dead else f"has waited for another ({allowed})"
        fate = ", ".join(fates) or "it died or hangs, see what it said last"
        raise LostProcessError(f"{who} {what}: {fate}. {_REMEDY}") from error
    finally:
        os.environ.pop(_STARTER, None)


_STARTER = "DUALITY_SSL_STARTER"  # whose process starts the others, as Lightning's launcher does
# what gloo, NCCL and the store that processes meet at say
_DEAD = re.compile("Connection (closed|reset) by peer|Broken pipe|ncclRemoteError")
_SILENT = re.compile(
    "Application timeout|(Connect|Read|Socket|Wait|Write) [Tt]imeout|collective operation timeout"
    "|(?<!DataLoader )[Tt]imed out (after|waiting)"
)
_REMEDY = "Continue with --ckpt_path last."
_OBSERVER = "lightning.fabric.strategies.launchers.subprocess_script"


def _of_collectives(error: BaseException | None) -> Iterator[str]:
    """What an error and its causes say, where torch.distributed may have raised them."""
    while error is not None:
        if isinstance(error, RuntimeError):
            yield str(error)
        error = error.__cause__ or error.__context__


def _end_children(trainer: Trainer, patience: float) -> list[str]:
    """Kill the processes that this one has started; say of each how it was found.

    Args:
        trainer: Whose launcher started them.
        patience: Seconds to wait for each to end by itself.
    """
    fate = []
    launcher = trainer.strategy.launcher
    children = launcher.procs if isinstance(launcher, SubprocessScriptLauncher) else ()
    for rank, child in enumerate(children, trainer.global_rank + 1):
        try:
            fate.append(f"process {rank} ended with code {child.wait(patience)}")
        except subprocess.TimeoutExpired:
            fate.append(f"process {rank} did not end and was killed")
            child.kill()
    return fate


def _end_starter(trainer: Trainer, patience: float) -> list[str]:
    """Kill the process that has started this one; if it does not hang, it kills this one before.

    Args:
        trainer: Whose process this is.
        patience: Seconds to wait for that.
    """
    starter, give_up = os.getppid(), time.monotonic() + patience
    while time.monotonic() < give_up:
        time.sleep(0.1)
        if os.getppid() != starter:
            return []
    os.kill(starter, signal.SIGKILL)
    return [f"process {trainer.global_rank - trainer.local_rank} did not end and was killed"]


def _say_what_to_do(record: logging.LogRecord) -> bool:
    """Add the remedy to what Lightning's observer of processes says before it kills them all."""
    record.msg = re.sub("Forcefully terminating all.*", f"All others end. {_REMEDY}", record.msg)
    return True
