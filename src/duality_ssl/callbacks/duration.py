"""Estimate how long a fit takes, before its first step."""

import copy
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from duality_ssl.batches import training_views
from duality_ssl.data.datasets import Batch
from duality_ssl.data.sampler import BatchRequest

_REPEATS = 3  # the fastest counts: the first also chooses kernels and fills caches


class DurationEstimate(Callback):
    """Logs before the first step how long a fit takes, start-up and checkpoints not counted.

    Loads and augments a batch of training images and trains a copy of the network on it, a few
    times; the network and the random generators stay as they are. A batch of validation counts as
    one load and, of V views, the part 1 / (3 V) of a step: one view, and no backward pass, which is
    two thirds.
    A resumed run is estimated from its epoch on. Runs of several processes, and those that
    ``max_steps`` limits, are not estimated.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure, and log the estimate."""
        epochs = (trainer.max_epochs or -1) - trainer.current_epoch
        endless = epochs < 0 or math.isinf(trainer.num_training_batches)
        if trainer.world_size > 1 or trainer.max_steps != -1 or endless:
            return
        devices = [pl_module.device] if pl_module.device.type == "cuda" else []
        with torch.random.fork_rng(devices), copied(pl_module):
            measured = measure(trainer, pl_module)
        if measured is None:
            return
        load, step, views = measured
        workers = trainer.datamodule.num_workers  # type: ignore[attr-defined]
        train = max(load / workers, step) if workers else load + step
        forward = step / (3 * views)
        validate = max(load / workers, forward) if workers else load + forward
        batches = sum(map(float, trainer.num_val_batches)) / (trainer.check_val_every_n_epoch or 1)
        epoch = trainer.num_training_batches * train + batches * validate
        rank_zero_info(f"The fit takes {spell(epochs * epoch)}, by the speed of its first batch.")


@contextmanager
def copied(module: nn.Module) -> Iterator[None]:
    """Let a module compute with copies of its parts, in train mode."""
    parts = nn.ModuleDict(dict(module.named_children()))
    for name, part in copy.deepcopy(parts).train().items():
        setattr(module, name, part)
    try:
        yield
    finally:
        for name, part in parts.items():
            setattr(module, name, part)


def measure(trainer: Trainer, module: Any) -> tuple[float, float, int] | None:
    """Seconds to load a batch, and to augment it and train the network on it; its views.

    None if an image cannot be read: the loader says which one.
    """
    loader: Any = trainer.train_dataloader
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    request: BatchRequest = next(iter(loader.sampler))
    loads: list[float] = []
    steps: list[float] = []
    for _ in range(_REPEATS):
        since = time.perf_counter()
        batch = loader.dataset[request]
        loads.append(time.perf_counter() - since)
        if not isinstance(batch, Batch):
            return None
        since = time.perf_counter()
        batch = trainer.strategy.batch_to_device(batch, module.device)
        large, small, labels = training_views(data.on_after_batch_transfer(batch, 0))
        with torch.enable_grad(), trainer.precision_plugin.forward_context():
            terms, _, _ = module.compute_terms(large, small, labels)
        terms["loss"].backward()
        if module.device.type == "cuda":
            torch.cuda.synchronize(module.device)
        steps.append(time.perf_counter() - since)
    return min(loads), min(steps), len(large) + len(small)


def spell(seconds: float) -> str:
    """Seconds in words: "about 12 min"."""
    if seconds < 90:
        return f"about {max(1, round(seconds))} s"
    if seconds < 90 * 60:
        return f"about {round(seconds / 60)} min"
    return f"about {seconds / 3600:.1f} h"
