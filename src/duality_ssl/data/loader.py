"""Whole batches from a set of images to the training loop: what a batch is, and who delivers it."""

import os
import signal
import threading
import warnings
from collections.abc import Iterator, Sequence
from copy import copy
from typing import Any, NamedTuple, Self, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from duality_ssl.data.sampler import BatchRequest, TrainBatches
from duality_ssl.data.sources import ArrayImages
from duality_ssl.distributed import rank, world_size


class Batch(NamedTuple):
    """Images on their way to the device, not augmented yet."""

    images: tuple[Tensor, ...]
    """``uint8``, shape ``(B, C, H, W)``: one tensor, or one a view if they are cropped already."""
    labels: Tensor
    """Classes, long, shape ``(B,)``; -1 where there is none."""
    seed: int | None
    """Seed of the augmentation of all processes' batch; None for none."""
    bad: tuple[str, ...] = ()
    """Files that could not be read and were passed over."""
    paths: tuple[str, ...] = ()
    """Files that the images are of, in evaluation; none for images in memory."""
    decode_seconds: float = 0.0
    """What reading files, decoding and cropping took, in whichever process did it."""


class PlainBatch(tuple[list[Tensor], Tensor]):
    """What an evaluation step gets, ``([images], labels)``, and in `paths` the files they are."""

    paths: tuple[str, ...]

    def __new__(cls, images: Tensor, labels: Tensor, paths: Sequence[str]) -> Self:
        """A pair that knows its files."""
        batch = super().__new__(cls, ([images], labels))
        batch.paths = tuple(paths)  # a loader makes lists of tuples
        return batch


class ArrayDataset(Dataset[Batch]):
    """Answers a `BatchRequest` with one indexed read of images in memory."""

    def __init__(self, images: ArrayImages) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, request: BatchRequest) -> Batch:
        rows = torch.from_numpy(request.indices)
        images = self.images.images[rows].contiguous()
        return Batch((images,), self.images.labels[rows], request.seed)


class BatchLoader(DataLoader[Any]):
    """A ``DataLoader`` of whole batches that reports bad images and can resume within an epoch.

    To be built with ``batch_size=None`` and one of the samplers of this package. Lightning stores
    `state_dict` in its checkpoints: a run interrupted within an epoch goes on with the batch that
    it would have had next.
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
                if self._given == len(self):  # nobody may ask for the end of the iteration
                    _report(bad, len(sampler.dataset))  # type: ignore[arg-type]
                    bad.clear()
                yield batch
        finally:
            _report(bad, len(sampler.dataset))  # type: ignore[arg-type]

    def state_dict(self) -> dict[str, int]:
        """Epoch, and how many of its batches have been given out."""
        return {"epoch": cast(TrainBatches, self.sampler).epoch, "batches": self._given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on after the batches that were given out, should the next epoch be that epoch."""
        self._resume = (state["epoch"], state["batches"])
        self._given = state["batches"]

    def names(self, batch: int) -> list[str]:
        """What this process's samples of a batch of this epoch are: files, or places in the set.

        They are asked of the sampler anew, so that no batch has to carry them. With "skip" for
        unreadable files, such a one is named and not its substitute.
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
        return self.dataset.images  # type: ignore[attr-defined]  # that of either data set


def outlive_signals(worker: int) -> None:
    """Have a worker ignore what a scheduler sends to every process of a job that it wants to end.

    The main process decides what to do, and its workers end when it does. A worker that ended by
    itself would end it too, with an error in the middle of a step. SIGTERM is obeyed from the main
    process alone, which sends it to a worker that it no longer needs and then waits for its end.
    """
    if not hasattr(signal, "sigwaitinfo"):  # nor has such a system a scheduler
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
        # each process reads files of its own and speaks for itself
        who = f"Process {rank()} passed" if world_size() > 1 else "Passed"
        warnings.warn(
            f"{who} over {len(bad)} of {total} images that cannot be read, as `{min(bad)}`.",
            stacklevel=2,
        )
