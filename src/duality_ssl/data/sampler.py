"""Whole index batches, a pure function of (seed, epoch), sharded over processes.

A loader built with ``DataLoader(dataset, batch_size=None, sampler=...)`` asks its data set for
whole batches. A request carries the seed of its batch's augmentation, so that what is drawn depends
neither on the number of workers, nor on what they fetched ahead, nor on where an interrupted run
was taken up again.
"""

import math
from collections.abc import Iterator, Sized
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import SequentialSampler
from torch.utils.data.distributed import DistributedSampler

from duality_ssl.distributed import rank, world_size
from duality_ssl.randomness import AUGMENT, ORDER, PROBE, derive_seed


class BatchRequest(NamedTuple):
    """What a sampler asks a data set for."""

    indices: NDArray[np.int64]
    """Samples of this process's batch (numpy: a tensor would take the way of shared memory)."""
    epoch: int
    """Epoch, for draws made a sample at a time."""
    seed: int | None
    """Seed of the augmentation of all processes' batch; None asks for images without any."""


class _BatchSampler(DistributedSampler, SequentialSampler):
    """Common ground of the two samplers.

    Lightning replaces a sampler that is no ``DistributedSampler`` in a distributed run, and one
    that is no ``SequentialSampler`` where ``overfit_batches`` is set. Ours shards by itself, hence
    the two base classes; all that is used of them is their names and ``set_epoch``.
    """

    def __init__(self, images: Sized, batch_size: int, seed: int, shuffle: bool) -> None:
        super().__init__(
            images,  # type: ignore[arg-type]
            num_replicas=world_size(),
            rank=rank(),
            shuffle=shuffle,
            seed=seed,
        )
        self.batch_size = batch_size
        self.start = 0  # batches of the epoch that a resumed run has seen already
        self.size = len(images)


class TrainBatches(_BatchSampler):
    """Shuffled batches of one size; the rest that fills no batch is left out.

    Batch ``k`` of all processes together is a contiguous piece of the epoch's permutation, in rank
    order: ``W`` processes of batch ``B`` see what one process of batch ``W * B`` sees.

    Args:
        images: The set to draw from.
        batch_size: Batch of one process.
        seed: Seed of the run, 0 or more.
        shuffle: False keeps the order of the set (for overfitting a few batches on purpose).
    """

    def __init__(self, images: Sized, batch_size: int, seed: int, shuffle: bool = True) -> None:
        super().__init__(images, batch_size, seed, shuffle)

    def __iter__(self) -> Iterator[BatchRequest]:  # type: ignore[override]
        order = np.arange(self.size)
        if self.shuffle:
            generator = torch.Generator().manual_seed(derive_seed(ORDER, self.seed, self.epoch))
            order = torch.randperm(self.size, generator=generator).numpy()
        for batch in range(self.start, len(self)):
            first = (batch * self.num_replicas + self.rank) * self.batch_size
            # of the whole batch, whoever has which part of it: the last 0 names no process
            seed = derive_seed(AUGMENT, self.seed, self.epoch, batch, 0)
            yield BatchRequest(order[first : first + self.batch_size].copy(), self.epoch, seed)

    def __len__(self) -> int:
        return self.size // (self.batch_size * self.num_replicas)


class EvalBatches(_BatchSampler):
    """Every sample exactly once, without augmentation.

    Each process has a contiguous share, so that shares joined in rank order are the set. Shares
    may differ by one sample; they are cut into equally many batches wherever that is possible
    (the batch is larger than one), for a process with a batch more than the others would wait for
    them.

    Args:
        images: The set to go through.
        batch_size: Largest batch of one process.
        seed: Seed of a permutation, the same in every epoch; None keeps the order of the set. A
            probe that learns from the batches must not see one class after the other.
    """

    def __init__(self, images: Sized, batch_size: int, seed: int | None = None) -> None:
        super().__init__(images, batch_size, seed or 0, shuffle=seed is not None)

    def __iter__(self) -> Iterator[BatchRequest]:  # type: ignore[override]
        order = np.arange(self.size)
        if self.shuffle:
            order = np.random.default_rng(derive_seed(PROBE, self.seed)).permutation(order)
        share = np.array_split(order, self.num_replicas)[self.rank]
        for indices in np.array_split(share, max(1, len(self)))[self.start :]:
            if len(indices):
                yield BatchRequest(indices, self.epoch, None)

    def __len__(self) -> int:
        return math.ceil(math.ceil(self.size / self.num_replicas) / self.batch_size)
