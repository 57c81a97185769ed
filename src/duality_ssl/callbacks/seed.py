"""One seed per training step: a resumed run draws what the interrupted one would have drawn."""

import os
import random
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer

from duality_ssl.distributed import rank
from duality_ssl.randomness import STEP, derive_seed


class StepSeed(Callback):
    """Seeds torch's, numpy's and Python's generators before each step of a seeded run.

    The seed of a step is a function of the run's (`lightning.seed_everything`), the epoch, the
    batch and the rank. So dropout and stochastic depth draw the same in a resumed run, whatever
    workers, validations and other callbacks have drawn before. A generator's state in the
    checkpoint would be bound to one device and world size.
    """

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        seed = os.environ.get("PL_GLOBAL_SEED")
        if seed is not None:
            drawn = derive_seed(STEP, int(seed), trainer.current_epoch, batch_idx, rank())
            torch.manual_seed(drawn)
            np.random.seed(drawn % 2**32)  # noqa: NPY002 the global generator
            random.seed(drawn)
