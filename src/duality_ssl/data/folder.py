"""Folders of image files: listing them, cropping them where they are decoded."""

import os
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from duality_ssl.data.augment import View
from duality_ssl.data.decode import BadImageError, Box, centre_box, read_crops
from duality_ssl.data.formats import describe
from duality_ssl.data.loader import Batch
from duality_ssl.data.sampler import CROP, BatchRequest, derive_seed
from duality_ssl.data.sources import ImageSource, Split, register_source
from duality_ssl.data.transforms import draw_boxes

EXTENSIONS = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
_LAYOUT = "train/<class>/* and val/<class>/*, or images and nothing else"
_UNLABELLED_VAL = 5000  # images of an unlabelled folder that stand in for a validation set
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


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in EXTENSIONS  # noqa: PTH122


def _list_images(folder: Path, prefix: str, deep: bool) -> list[str]:
    """Sorted paths of the images in a folder, each behind ``prefix``.

    Hidden entries are none, nor are pipes and devices, which may never answer. A link to a folder
    is not followed, so that no loop of links is walked.
    """
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                inside = f"{prefix}{entry.name}/"
                found += _list_images(folder / entry.name, inside, deep) if deep else []
            elif _is_image(entry.name) and (entry.is_file() or entry.is_symlink()):
                found.append(prefix + entry.name)  # a link to nothing, too, so that it is reported
    return sorted(found)


def _class_folders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def _check_links(folder: Path) -> None:
    """Raise ``ValueError`` if a link among the class folders leads to no class."""
    with os.scandir(folder) as entries:
        links = sorted(e.name for e in entries if e.is_symlink() and not e.name.startswith("."))
    for link in (folder / name for name in links):
        lost = not link.exists()
        if lost or folder.resolve().is_relative_to(link.resolve()):
            where = "nowhere" if lost else "to a folder that it lies in"
            raise ValueError(
                f"Expected `{link}` to lead to the folder of a class, but it leads {where}: mend "
                "or remove the link."
            )


@register_source("folder")
class Folder(ImageSource):
    """A folder of image files, with or without labels.

    - ``root/train/<class>/*`` and ``root/val/<class>/*``: labelled. Class folders may have
      folders of their own.
    - ``root/*`` or ``root/train/*``, files and no folders: unlabelled. ``root/val/*`` is the
      validation set where it exists; else up to 5000 of the images, evenly spaced, are it, which
      serves what needs no held-out images (rank, collapse).

    Normalised with ImageNet's statistics. Orientation tags (EXIF) are applied, which torchvision's
    ``ImageFolder`` does not do.
    """

    channels = 3
    image_size = 224
    mean = (0.485, 0.456, 0.406)
    std = (0.229, 0.224, 0.225)

    @cached_property
    def _train(self) -> Path:
        root = self._root(_LAYOUT)
        return root / "train" if (root / "train").is_dir() else root

    @cached_property
    def _train_files(self) -> tuple[FileImages, tuple[str, ...] | None]:
        """The training images and the names of their classes."""
        folder = self._train
        flat = _list_images(folder, "", deep=False)
        classes = _class_folders(folder)
        if folder != self.root and classes and not flat:
            return self._labelled(folder, tuple(classes)), tuple(classes)
        if flat and (not classes or folder == self.root):
            return self._unlabelled(folder, flat), None
        if flat:
            raise ValueError(
                f"Expected `{folder}` to hold either class folders or images, but it holds "
                f"{len(classes)} folders and {len(flat)} images: move the images into a class."
            )
        raise FileNotFoundError(f"Expected `data.root` to hold {_LAYOUT}, but {describe(folder)}.")

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names of the folders in ``train/``; None if there are no labels."""
        return self._train_files[1]

    def load(self, split: Split) -> FileImages:
        """The files of a split."""
        train, classes = self._train_files
        if split != "val":
            return train
        folder = self._root(_LAYOUT) / "val"
        if classes is None:
            flat = _list_images(folder, "", deep=False) if folder.is_dir() else []
            if flat and folder != self._train:
                return self._unlabelled(folder, flat)
            count = min(len(train), _UNLABELLED_VAL)
            return train.subset(torch.arange(count) * len(train) // count)
        if not folder.is_dir():
            raise FileNotFoundError(
                f"Expected val/<class>/* beside `{self._train}`, but {describe(folder.parent)}."
            )
        found = _class_folders(folder)
        if not found:
            flat = _list_images(folder, "", deep=False)
            raise ValueError(
                f"Expected class folders in `{folder}`, named as in train/, but it holds "
                f"{len(flat)} images and no folders: {self._sorting_hint}."
            )
        if unknown := sorted(set(found) - set(classes)):
            raise ValueError(
                f"Expected the folders in `{folder}` to be named as those in train/, but "
                f"{', '.join(unknown[:5])} {'are' if len(unknown) > 1 else 'is'} not among them."
            )
        return self._labelled(folder, classes)

    _sorting_hint = "move each image into the folder of its class"

    def _labelled(self, folder: Path, classes: tuple[str, ...]) -> FileImages:
        _check_links(folder)
        names: list[str] = []
        labels: list[int] = []
        for label, name in enumerate(classes):
            inside = _list_images(folder / name, f"{name}/", deep=True)
            if not inside and folder == self._train:
                raise FileNotFoundError(
                    f"Expected images ({', '.join(sorted(EXTENSIONS))}) in `{folder / name}`, "
                    "but found none: remove the folder if it is no class."
                )
            names += inside
            labels += [label] * len(inside)
        if not names:
            raise FileNotFoundError(
                f"Expected images in the class folders of `{folder}`, but found none: put the "
                "validation images there."
            )
        return FileImages(folder, _encode(names), torch.tensor(labels, dtype=torch.long))

    def _unlabelled(self, folder: Path, names: list[str]) -> FileImages:
        return FileImages(folder, _encode(names), torch.full((len(names),), -1))


def _encode(names: list[str]) -> NDArray[np.bytes_]:
    return np.array([os.fsencode(name) for name in names], dtype=np.bytes_)


@register_source("imagenet")
class ImageNet(Folder):
    """ImageNet as torchvision's ``ImageFolder`` wants it: ``train/<wnid>/*``, ``val/<wnid>/*``."""

    _sorting_hint = (
        "the archive of the validation images is flat, sort them into a folder for each wnid "
        "(torchvision.datasets.ImageNet and the script valprep.sh do)"
    )


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
