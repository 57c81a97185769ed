"""Ends the other processes of a run with this one."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from lightning import Trainer


@contextmanager
def end_together(trainer: Trainer) -> Iterator[None]:
    """Kill the processes that this one has started if it fails.

    A process that hangs makes the others fail at the timeout of ``torch.distributed``, and would
    itself stay, with its GPU. ``torchrun`` and ``srun --kill-on-bad-exit`` end it; Lightning, which
    starts the processes of ``--trainer.devices 2``, ends them only when one of them dies.
    """
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
