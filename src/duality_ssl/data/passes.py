"""Passes over the images of a data module outside a Trainer, for protocols that need a network."""

from collections.abc import Iterator, Sequence
from copy import copy
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from duality_ssl.data.augment.pipeline import Augmentation
from duality_ssl.data.augment.view import View
from duality_ssl.data.datamodule import SSLDataModule
from duality_ssl.data.datasets import Batch, FileDataset
from duality_ssl.data.loader import BatchLoader, outlive_signals
from duality_ssl.data.sampler import BatchRequest
from duality_ssl.randomness import EVALUATION, derive_seed

Rows = NDArray[np.int64]


class Passes:
    """Batches of some of the images that a test reads, in one process.

    The draws are a function of the seed and of what is asked for: they neither change those of a
    run nor depend on them.

    Args:
        data: The data module, set up for a test.
        split: The probe's training or validation set.
        device: Device of the batches.
        seed: Seed of order and augmentation.
    """

    def __init__(
        self,
        data: SSLDataModule,
        split: Literal["train", "val"],
        device: torch.device,
        seed: int = 0,
    ) -> None:
        self.data = data
        self.device = device
        self.seed = seed
        loader: Any = data.test_dataloader()[("train", "val").index(split)]
        self._dataset = loader.dataset
        self.labels: Tensor = self._dataset.images.labels
        """Classes of all images, shape ``(N,)``; -1 is unlabelled."""

    def shuffled(self, rows: Rows, batch_size: int, epoch: int) -> list[Rows]:
        """Deal rows out to batches of one size, in an order of this epoch; drop a smaller last."""
        generator = np.random.default_rng(derive_seed(EVALUATION, self.seed, epoch))
        order = generator.permutation(rows)[: len(rows) // batch_size * batch_size]
        return list(order.reshape(-1, batch_size))

    def plain(self, rows: Rows, batch_size: int = 256) -> Iterator[tuple[Tensor, Tensor]]:
        """Images without augmentation, shape ``(B, C, S, S)``, and their labels, in order."""
        batches = np.array_split(rows, -(-len(rows) // batch_size))
        for batch in self._load([BatchRequest(part, 0, None) for part in batches], ()):
            (images,), labels = self.data.on_after_batch_transfer(batch, 0)
            yield images, labels

    def views(
        self, batches: Sequence[Rows], views: Sequence[View], epoch: int = 0
    ) -> Iterator[tuple[list[Tensor], Tensor]]:
        """Augmented images, ``(B, C, S, S)`` a view, and their labels, of the given batches."""
        data = self.data
        augmentations = [Augmentation(v, data.image_size, data.mean, data.std) for v in views]
        requests = [
            BatchRequest(rows, epoch, derive_seed(EVALUATION, self.seed, epoch, number))
            for number, rows in enumerate(batches)
        ]
        cropped = isinstance(self._dataset, FileDataset)
        for batch in self._load(requests, views):
            generator = torch.Generator().manual_seed(batch.seed or 0)
            crops = batch.images if cropped else batch.images * len(views)
            pairs = zip(augmentations, crops, strict=True)
            yield (
                [
                    augment(images.expand(-1, data.channels, -1, -1), generator, cropped=cropped)
                    for augment, images in pairs
                ],
                batch.labels,
            )

    def _load(self, requests: list[BatchRequest], views: Sequence[View]) -> Iterator[Batch]:
        """Read the batches, crop them where that is part of decoding, and send them."""
        dataset = copy(self._dataset)
        if isinstance(dataset, FileDataset):
            dataset.views, dataset.sizes = tuple(views), ()
            dataset.seed = derive_seed(EVALUATION, self.seed)
        loader = BatchLoader(
            dataset,
            batch_size=None,
            sampler=_Requests(requests),
            num_workers=self.data.num_workers,
            worker_init_fn=outlive_signals,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # else each pass draws a number from the process's own
        )
        for batch in loader:
            images = tuple(x.to(self.device, non_blocking=True) for x in batch.images)
            yield batch._replace(images=images, labels=batch.labels.to(self.device))


class _Requests(list[BatchRequest]):
    """A list in the place of a sampler."""

    epoch = start = 0

    @property
    def size(self) -> int:
        """Images of the pass."""
        return sum(len(request.indices) for request in self)
