"""Image files: a set of them, decoded and cropped when a batch is asked for."""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from duality_ssl.data.augment import View
from duality_ssl.data.decode import BadImageError, Box, centre_box, read_crops
from duality_ssl.data.loader import Batch
from duality_ssl.data.sampler import BatchRequest
from duality_ssl.data.transforms import draw_boxes
from duality_ssl.randomness import CROP, derive_seed

_SUBSTITUTES = 16  # neighbours tried for an image that cannot be read


@dataclass(frozen=True)
class FileImages:
    """Image files, decoded when they are asked for.

    Args:
        root: Folder that the paths are relative to.
        paths: Encoded paths, shape ``(N,)``: one array, for a list of a million strings would be
            copied page by page into every worker as its reference counts change.
        labels: Classes, shape ``(N,)``; -1 where there is none.
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

    def unlabelled(self) -> "FileImages":
        """The same images without their labels."""
        return FileImages(self.root, self.paths, torch.full_like(self.labels, -1))


class FolderDataset(Dataset[Batch | BadImageError]):
    """Answers a `BatchRequest` with decoded ``uint8`` images of one size.

    In training an image is decoded once and cropped once a view; the crop is a function of
    (seed, epoch, index, view) and of the size of the file's image. In evaluation `centre_box` is
    shown. An error travels to the main process as a value: raised in a worker it would arrive
    wrapped in the worker's stack.

    Args:
        images: The files.
        image_size: Side of the crops, in pixels.
        views: Distribution of each view's crops.
        seed: Seed of the run.
        on_bad_image: "error", or "skip": in training the next readable image takes the place (its
            batch keeps its size), in evaluation the image is left out.
    """

    def __init__(
        self,
        images: FileImages,
        image_size: int,
        views: tuple[View, ...],
        seed: int,
        on_bad_image: Literal["error", "skip"],
    ) -> None:
        self.images = images
        self.image_size = image_size
        self.views = views
        self.seed = seed
        self.on_bad_image = on_bad_image

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, request: BatchRequest) -> Batch | BadImageError:
        started = time.perf_counter()
        try:
            batch = self._collect(request)
        except BadImageError as error:
            return error
        return batch._replace(decode_seconds=time.perf_counter() - started)

    def _boxes(self, width: int, height: int, index: int, epoch: int) -> list[Box]:
        """One random box a view."""
        boxes = []
        for number, view in enumerate(self.views):
            seed = derive_seed(CROP, self.seed, epoch, index, number)
            generator = torch.Generator().manual_seed(seed)
            size = (height, width)
            top, left, h, w = draw_boxes(1, size, view.scale, view.ratio, generator)[0].tolist()
            boxes.append(Box(left, top, w, h))
        return boxes

    def _read(self, path: Path, index: int, request: BatchRequest) -> list[Tensor]:
        if request.seed is None:
            return read_crops(path, self.image_size, centre_box(self.image_size), beyond=True)
        return read_crops(
            path, self.image_size, lambda w, h: self._boxes(w, h, index, request.epoch)
        )

    def _collect(self, request: BatchRequest) -> Batch:
        substitute = request.seed is not None
        rows, kept, bad = [], [], []
        for index in request.indices.tolist():
            candidates = range(index, index + 1 + (_SUBSTITUTES if substitute else 0))
            for candidate in candidates:
                candidate %= len(self.images)
                path = self.images.path(candidate)
                try:
                    rows.append(self._read(path, index, request))
                except BadImageError:
                    if self.on_bad_image == "error":
                        raise
                    bad.append(str(path))
                    continue
                kept.append(candidate)
                break
            else:
                if substitute:
                    raise BadImageError(
                        f"Cannot read `{self.images.path(index)}`, nor any of the {_SUBSTITUTES} "
                        "images after it: check the folder."
                    )
        if not rows:
            raise BadImageError(
                f"Cannot read any of {len(bad)} images of a batch, as `{bad[0]}`: check the folder."
            )
        images = tuple(torch.stack(view) for view in zip(*rows, strict=True))
        # training has no use for the names, and they would travel with every batch
        paths = () if substitute else tuple(str(self.images.path(index)) for index in kept)
        return Batch(images, self.images.labels[kept], request.seed, tuple(bad), paths)
