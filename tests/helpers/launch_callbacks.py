"""What the tests of launched processes put into a fit, by ``--trainer.callbacks``."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer


class KeepWeights(Callback):
    """Writes each process's weights, and where it thinks that its run is, at the end of a fit."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        kept = {"weights": pl_module.state_dict(), "folder": trainer.log_dir}
        torch.save(kept, Path(f"rank-{trainer.global_rank}.pt"))


class Strike(Callback):
    """Has a process hang, or get a signal, when it begins its third step.

    Args:
        rank: The process.
        name: Name of the signal, or "hang".
    """

    def __init__(self, rank: int, name: str) -> None:
        self.rank, self.name = rank, name

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if (trainer.global_rank, trainer.global_step) != (self.rank, 2):
            return
        if self.name == "hang":
            time.sleep(3600)
        os.kill(os.getpid(), signal.Signals[self.name])
