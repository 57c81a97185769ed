"""Delivers whole batches to the training loop, also to a resumed one, with or without workers."""

import os
import signal
import threading
import warnings
from collections.abc import Iterator
from copy import copy
from typing import Any, cast

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader

from duality_ssl.data.datasets import Batch
from duality_ssl.data.sampler import BatchRequest, TrainBatches
from duality_ssl.distributed import rank, world_size


class BatchLoader(DataLoader[Any]):
    """A ``DataLoader`` of whole batches that reports bad images and can resume within an epoch.

    It is built with ``batch_size=None`` and one of the samplers of this package. Lightning stores
    `state_dict` in its checkpoints: a run interrupted within an epoch resumes with the next batch.
    """

    _resume: tuple[int, int] = (-1, 0)
    _given: int = 0

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        # A generator on purpose: nothing is requested before the first batch is wanted, while
        # Lightning calls `iter` once before it tells the sampler which epoch a resumed run is in.
        sampler = cast(TrainBatches, self.sampler)
        epoch, seen = self._resume
        sampler.start = seen if sampler.epoch == epoch else 0
        self._resume = (-1, 0)
        self._given = sampler.start
        bad: set[str] = set()
        try:
            for batch in super().__iter__():
                if isinstance(batch, Exception):
                    try:
                        raise batch
                    finally:  # an error that this frame holds would keep the workers alive
                        del batch
                bad.update(batch.bad)
                self._given += 1
                if self._given == len(self):  # the consumer may not ask for the end
                    _report(bad, sampler.size)
                    bad.clear()
                yield batch
        finally:
            _report(bad, sampler.size)

    def state_dict(self) -> dict[str, int]:
        """Epoch, and how many of its batches have been delivered."""
        return {"epoch": cast(TrainBatches, self.sampler).epoch, "batches": self._given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Skip the delivered batches if the next epoch is the interrupted one."""
        self._resume = (state["epoch"], state["batches"])
        self._given = state["batches"]

    def names(self, batch: int) -> list[str]:
        """Names of this process's samples in a batch of this epoch: files, or places in the set.

        The sampler is asked anew, so that no batch has to carry them. With "skip", the name of an
        unreadable file stands for its substitute.
        """
        sampler = copy(cast(TrainBatches, self.sampler))
        sampler.start = batch
        indices = next(iter(sampler)).indices.tolist()
        path = getattr(self._images, "path", None)
        return [f"image {i}" if path is None else str(path(i)) for i in indices]

    def glance(self, count: int) -> Tensor:
        """At most ``count`` images, evenly spaced over the set, without augmentation: ``uint8``."""
        count = min(count, len(self._images))
        indices = np.arange(count) * len(self._images) // count
        batch = self.dataset[BatchRequest(indices, epoch=0, seed=None)]
        if isinstance(batch, Exception):
            raise batch
        images: Tensor = batch.images[0]
        return images

    @property
    def _images(self) -> Any:
        return self.dataset.images  # type: ignore[attr-defined]  # of either data set


def outlive_signals(worker: int) -> None:
    """Have a worker ignore the signals that a scheduler sends to all processes of a job.

    A worker that ended by itself would end the main process with an error in the middle of a step.
    SIGTERM is obeyed only from the main process, which sends it to a worker that it no longer needs
    and then waits for its end.
    """
    if not hasattr(signal, "sigwaitinfo"):  # a system without schedulers
        return
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # a handler is not told the sender
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def _report(bad: set[str], total: int) -> None:
    if bad:
        # each process reads its own files and reports them
        who = f"Process {rank()} skipped" if world_size() > 1 else "Skipped"
        warnings.warn(
            f"{who} {len(bad)} of {total} images that cannot be read, as `{min(bad)}`.",
            stacklevel=2,
        )
