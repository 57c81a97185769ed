"""Which of Lightning's strategies a method can train under, and the end of their processes."""

import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from lightning import Trainer
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    SingleDeviceStrategy,
    Strategy,
    XLAStrategy,
)


def check_strategy(strategy: str | Strategy) -> None:
    """Refuse a strategy, or its name, that does not leave each process the whole network.

    Raises:
        ValueError: For FSDP, DeepSpeed, XLA and the like; by name also for ``ddp_spawn``, which
            would have to pickle the callbacks of the command.
    """
    if isinstance(strategy, str):
        name, fits = strategy, re.match(r"auto$|ddp(?!_spawn)", strategy) is not None
    else:
        name = type(strategy).__name__
        fits = isinstance(strategy, SingleDeviceStrategy | DDPStrategy)
    if not fits or isinstance(strategy, DeepSpeedStrategy | XLAStrategy):
        raise ValueError(
            f"Expected --trainer.strategy ddp (or auto), but got {name}: criteria, probes, LARS "
            "and checkpoints need the whole network in each process."
        )


@contextmanager
def end_together(trainer: Trainer) -> Iterator[None]:
    """Kill the processes that this one has started if it fails; one that hangs would stay."""
    try:
        yield
    except Exception as error:
        if trainer.strategy.launcher is not None:
            trainer.strategy.launcher.kill(signal.SIGKILL)
        if trainer.world_size > 1 and isinstance(error, RuntimeError):
            error.add_note(
                "If another process of the run died or hangs (see its last message), resume with "
                "--ckpt_path last."
            )
        raise
