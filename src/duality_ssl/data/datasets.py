"""Sets of images in memory or in files, and the data sets that make batches of them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from duality_ssl.data.augment.view import View, draw_boxes
from duality_ssl.data.decode import BadImageError, Box, centre_box, read_crops
from duality_ssl.data.sampler import BatchRequest
from duality_ssl.randomness import CROP, derive_seed

_SUBSTITUTES = 16  # following images that are tried in place of one that cannot be read


@dataclass(frozen=True)
class ArrayImages:
    """Images in memory.

    Args:
        images: ``uint8``, shape ``(N, C, H, W)``.
        labels: Classes, shape ``(N,)``; None for a set without labels.

    Raises:
        ValueError: If a shape or the dtype is another.
    """

    images: Tensor
    labels: Tensor = None  # type: ignore[assignment]  # None becomes a tensor of -1

    def __post_init__(self) -> None:
        """Check, and fill in the labels."""
        if self.images.ndim != 4 or self.images.dtype != torch.uint8:
            raise ValueError(
                "Expected `images` to be uint8 of shape (N, C, H, W), but got "
                f"{self.images.dtype} of shape {tuple(self.images.shape)}."
            )
        labels = torch.full((len(self.images),), -1) if self.labels is None else self.labels
        if labels.shape != self.images.shape[:1]:
            raise ValueError(
                f"Expected one label per image, but got {len(self.images)} images and labels of "
                f"shape {tuple(labels.shape)}."
            )
        object.__setattr__(self, "labels", labels.long())

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, indices: Tensor) -> "ArrayImages":
        """Some of the images."""
        return ArrayImages(self.images[indices], self.labels[indices])


@dataclass(frozen=True)
class FileImages:
    """Image files, decoded when they are asked for.

    Args:
        root: Folder that the paths are relative to.
        paths: Encoded paths, shape ``(N,)``. One array: a list of a million strings would be copied
            page by page into every worker as its reference counts change.
        labels: Classes, shape ``(N,)``; -1 for no label.
    """

    root: Path
    paths: NDArray[np.bytes_]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, index: int) -> Path:
        """Path of one file."""
        return self.root / os.fsdecode(self.paths[index])

    def subset(self, indices: Tensor) -> "FileImages":
        """Some of the images."""
        return FileImages(self.root, self.paths[indices.numpy()], self.labels[indices])


Images = ArrayImages | FileImages


class Batch(NamedTuple):
    """Images on their way to the device, not augmented yet."""

    images: tuple[Tensor, ...]
    """``uint8``, shape ``(B, C, H, W)``: one tensor, or one per view if cropped already."""
    labels: Tensor
    """Classes, long, shape ``(B,)``; -1 for no label."""
    seed: int | None
    """Seed of the augmentation of all processes' batch; None for no augmentation."""
    bad: tuple[str, ...] = ()
    """Files that could not be read and were skipped."""
    paths: tuple[str, ...] = ()
    """Files of the images, in evaluation; none for images in memory."""


class PlainBatch(tuple[list[Tensor], Tensor]):
    """Input of an evaluation step, ``([images], labels)``, with the files in `paths`."""

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


@dataclass(eq=False)
class FileDataset(Dataset[Batch | BadImageError]):
    """Answers a `BatchRequest` with decoded ``uint8`` images of one size.

    In training an image is decoded once and cropped once per view; the crop is a function of (seed,
    epoch, index, view) and of the size of the file's image. In evaluation `centre_box` is cropped.
    With ``on_bad_image`` "skip" the next readable image takes the place of a bad one in training
    (the batch keeps its size); in evaluation it is left out. An error travels to the main process
    as a value: raised in a worker it would arrive wrapped in the worker's traceback.
    """

    images: FileImages
    image_size: int
    views: tuple[View, ...]
    seed: int
    on_bad_image: Literal["error", "skip"]
    sizes: tuple[int, ...] = ()
    """Side of each view in pixels; by default ``image_size``."""

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, request: BatchRequest) -> Batch | BadImageError:
        try:
            return self._collect(request)
        except BadImageError as error:
            return error

    def _collect(self, request: BatchRequest) -> Batch:
        training = request.seed is not None
        rows: list[list[Tensor]] = []
        kept: list[int] = []
        bad: list[str] = []
        for index in request.indices.tolist():
            for candidate in range(index, index + 1 + _SUBSTITUTES * training):
                place = candidate % len(self.images)
                path = self.images.path(place)
                try:
                    rows.append(self._read(path, index, request))
                except BadImageError:
                    if self.on_bad_image == "error":
                        raise
                    bad.append(str(path))
                else:
                    kept.append(place)
                    break
        if len(rows) < (len(request.indices) if training else 1):
            raise BadImageError(
                f"Cannot read any of {len(bad)} images, as `{bad[0]}`: check the folder."
            )
        images = tuple(torch.stack(view) for view in zip(*rows, strict=True))
        # training does not use the names, and they would travel with every batch
        paths = () if training else tuple(str(self.images.path(place)) for place in kept)
        return Batch(images, self.images.labels[kept], request.seed, tuple(bad), paths)

    def _read(self, path: Path, index: int, request: BatchRequest) -> list[Tensor]:
        if request.seed is None:
            return read_crops(path, self.image_size, centre_box(self.image_size), beyond=True)
        return read_crops(
            path, self.image_size, lambda w, h: self.draw_crops(w, h, index, request.epoch)
        )

    def draw_crops(self, width: int, height: int, index: int, epoch: int) -> list[Box]:
        """Draw one random box per view for an image of this size."""
        boxes, size = [], (height, width)
        for number, view in enumerate(self.views):
            seed = derive_seed(CROP, self.seed, epoch, index, number)
            generator = torch.Generator().manual_seed(seed)
            top, left, h, w = draw_boxes(1, size, view.scale, view.ratio, generator)[0].tolist()
            side = self.sizes[number] if self.sizes else None
            boxes.append(Box(left, top, w, h, view.interpolation, side))
        return boxes
