"""Seeds for what a training step draws, so that it is drawn again when the step is repeated."""

import os
import random
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer

from duality_ssl.distributed import rank
from duality_ssl.randomness import STEP, derive_seed


class StepSeed(Callback):
    """Seeds torch's, numpy's and Python's generators before each training step, if there is a seed.

    The seed of a step is a function of the run's (`lightning.seed_everything`), the epoch, the
    batch and the process. What dropout and stochastic depth draw is thereby the same however often
    a run was interrupted, and whatever workers, validations and other callbacks have drawn before.
    A generator's state in the checkpoint would have to be of the same device and number of
    processes, and would miss what a resumed run draws to get to the next batch.
    """

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seed this step."""
        seed = os.environ.get("PL_GLOBAL_SEED")
        if seed is not None:
            drawn = derive_seed(STEP, int(seed), trainer.current_epoch, batch_idx, rank())
            torch.manual_seed(drawn)
            np.random.seed(drawn % 2**32)  # noqa: NPY002 the generator that others share
            random.seed(drawn)
