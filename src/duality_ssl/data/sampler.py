"""Which samples are used, and in which batches: a function of (seed, epoch), whatever came before.

A loader built with ``DataLoader(dataset, batch_size=None, sampler=...)`` asks its data set for
whole batches. A request carries the seed of its batch's augmentation, so the draws depend neither
on the number of workers, nor on what they prefetched, nor on where an interrupted run was resumed.
"""

import math
from collections.abc import Iterator, Sized
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import SequentialSampler
from torch.utils.data.distributed import DistributedSampler

from duality_ssl.distributed import rank, world_size
from duality_ssl.randomness import AUGMENT, HOLD_OUT, ORDER, PROBE, SUBSET, derive_seed


def draw_subset(labels: Tensor, subset: int | float, seed: int) -> Tensor:
    """Draw a count or a fraction of the samples, each class in proportion: sorted indices."""
    n, fraction = len(labels), isinstance(subset, float)
    if not 0 < subset <= (1 if fraction else n):
        raise ValueError(
            f"Expected `data.subset` to be 1 to {n} images, a count without a decimal point, or a "
            f"fraction in (0, 1], but got {subset}."
        )
    count = max(1, round(subset * n)) if fraction else int(subset)
    order, place, size = shuffle_by_class(labels, derive_seed(SUBSET, seed))
    keys = (place + 0.5) / size  # the smallest are spread over the classes in proportion
    return order[keys.argsort(stable=True)[:count]].sort().values


def hold_out(labels: Tensor, part: float, seed: int) -> Tensor:
    """Draw a part of the samples to hold out, each class in proportion: a mask ``(N,)``."""
    n = len(labels)
    if not 0 < round(part * n) < n:
        raise ValueError(
            f"Expected `data.validation` to hold out some of {n} images, and not all, but got "
            f"{part}."
        )
    held = torch.zeros(n, dtype=torch.bool)
    held[draw_subset(labels, float(part), derive_seed(HOLD_OUT, seed))] = True
    return held


def shuffle_by_class(labels: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """A random order, class by class; for each its place in its class, and the size of that."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    order = order[labels[order].argsort(stable=True)]
    _, sizes = labels.unique(return_counts=True)
    place = torch.arange(len(labels)) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    return order, place, sizes.repeat_interleave(sizes)


class BatchRequest(NamedTuple):
    """What a sampler asks a data set for."""

    indices: NDArray[np.int64]
    """Samples of this process's batch (NumPy: tensors would be passed by shared memory)."""
    epoch: int
    """Epoch, for draws made per sample."""
    seed: int | None
    """Seed of the augmentation of all processes' batch; None for no augmentation."""


class _BatchSampler(DistributedSampler, SequentialSampler):
    # Lightning replaces a sampler that is no `DistributedSampler` in a distributed run, and one
    # that is no `SequentialSampler` with `overfit_batches`; only `set_epoch` is used of the two

    def __init__(self, images: Sized, batch_size: int, seed: int, shuffle: bool = True) -> None:
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
    """Shuffled batches of one size; a smaller last batch is dropped.

    ``W`` processes of batch ``B`` see what one process of batch ``W * B`` sees: each has, by its
    rank, a piece of it. Without ``shuffle`` the order is the set's, to overfit a few batches.
    """

    def __iter__(self) -> Iterator[BatchRequest]:  # type: ignore[override]
        order = np.arange(self.size)
        if self.shuffle:
            generator = torch.Generator().manual_seed(derive_seed(ORDER, self.seed, self.epoch))
            order = torch.randperm(self.size, generator=generator).numpy()
        for batch in range(self.start, len(self)):
            first = (batch * self.num_replicas + self.rank) * self.batch_size
            # one seed for the batch of all processes, hence 0 and not the rank
            seed = derive_seed(AUGMENT, self.seed, self.epoch, batch, 0)
            yield BatchRequest(order[first : first + self.batch_size].copy(), self.epoch, seed)

    def __len__(self) -> int:
        return self.size // (self.batch_size * self.num_replicas)


class EvalBatches(_BatchSampler):
    """Every sample exactly once, without augmentation.

    The shares of the processes, in rank order, are the set; they may differ by one sample. They are
    cut into equally many batches where possible, as processes wait for each other at every batch.

    A seed permutes the set, in every epoch alike: a probe that learns from the batches must not see
    one class after the other.
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
