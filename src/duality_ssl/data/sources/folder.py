"""Sources whose images are files in folders, with or without labels."""

import os
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info

from duality_ssl.data.datasets import FileImages
from duality_ssl.data.sources.base import ImageSource, Labels, Split, register_source
from duality_ssl.data.sources.layout import (
    EXTENSIONS,
    Listing,
    hold_out,
    labelled_by_folder,
    list_images,
)

_LAYOUT = "train/<class>/* and val/<class>/*, <class>/*, or images without labels in any folders"
_UNLABELLED_VAL = 5000  # images of an unlabelled folder that serve as a validation set


@register_source("folder")
class Folder(ImageSource):
    """A folder of image files, with or without labels.

    - ``root/train/<class>/*`` and ``root/val/<class>/*``: labelled.
    - ``root/train/<class>/*`` or ``root/<class>/*``, all images exactly one level down and in two
      folders or more: labelled. Without a ``val/`` a tenth of each class is held out, by the seed.
    - Everything else is unlabelled. Validation uses the images below ``root/val``, or else up to
      5000 of the training images, for monitors that need no held-out images (rank, collapse).

    Images are normalised with ImageNet's statistics.
    """

    channels = 3
    image_size = 224
    mean = (0.485, 0.456, 0.406)
    std = (0.229, 0.224, 0.225)
    auto: ClassVar[Labels] = "auto"
    """What ``labels="auto"`` means for this source."""

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names of the folders of the training images; None if there are no labels."""
        return self._train[1]

    def load(self, split: Split) -> FileImages:
        """The files of a split."""
        images, classes, held_out = self._train
        if split != "val":
            return images
        if held_out is not None:
            return held_out
        _, val = self._splits()
        if val is not None and classes is not None:
            return _labelled_validation(list_images(val), classes)
        if val is not None and (listing := list_images(val)).images:
            return _file_images(listing)
        count = min(len(images), _UNLABELLED_VAL)
        return images.subset(torch.arange(count) * len(images) // count)

    def _splits(self) -> tuple[Path, Path | None]:
        """The folders of the training and the validation images."""
        root = self._given_root(_LAYOUT)
        if not root.is_dir():
            raise FileNotFoundError(
                f"Expected `data.root`, a folder with {_LAYOUT}, but there is no folder `{root}`."
            )
        train, val = root / "train", root / "val"
        return train if train.is_dir() else root, val if val.is_dir() else None

    @cached_property
    def _train(self) -> tuple[FileImages, tuple[str, ...] | None, FileImages | None]:
        """The training images, the names of their classes, the held-out images."""
        folder, val = self._splits()
        listing = list_images(folder, without="val" if folder == self.root else None)
        if not listing.images:
            raise FileNotFoundError(
                f"Expected `data.root` to hold {_LAYOUT}, but found no image in `{folder}` "
                f"({', '.join(sorted(EXTENSIONS))})."
            )
        labels = self.auto if self.labels == "auto" else self.labels
        if not labelled_by_folder(listing, labels, folder != self.root and val is not None):
            hint = " To take its folders as classes set `data.labels` to folder."
            rank_zero_info(
                f"`{folder}`: {len(listing.images):,} images to train on, without labels."
                f"{hint if listing.folders else ''}"
            )
            return _file_images(listing), None, None
        classes = tuple(listing.folders)
        for entry in sorted(folder.iterdir()):
            # a class of files that cannot be read must not vanish
            if entry.is_dir() and entry.name not in (*classes, "val") and entry.name[0] != ".":
                raise FileNotFoundError(
                    f"Expected images in `{entry}` ({', '.join(sorted(EXTENSIONS))}), but found "
                    "none: remove the folder if it is no class."
                )
        images, held_out = _file_images(listing, classes), None
        if val is None:
            drawn = hold_out(images.labels, self.seed)
            if not drawn.any():
                raise ValueError(
                    f"Expected two images of a class in `{folder}`, one of which is held out for "
                    "validation, but each class has one: add images or val/<class>/*, or set "
                    "`data.labels` to none."
                )
            held_out, images = images.subset(drawn), images.subset(~drawn)
        held = "" if held_out is None else f", {len(held_out):,} more held out for validation"
        rank_zero_info(
            f"`{folder}`: {len(images):,} images to train on{held}, labelled by folder, of "
            f"{len(classes)} classes. To ignore the folders set `data.labels` to none."
        )
        return images, classes, held_out


@register_source("imagenet")
class ImageNet(Folder):
    """ImageNet as ``train/<wnid>/*`` and ``val/<wnid>/*``, for torchvision's ``ImageFolder``."""

    auto: ClassVar[Labels] = "folder"

    def _splits(self) -> tuple[Path, Path | None]:
        train, val = super()._splits()
        if train == self.root or val is None:
            raise FileNotFoundError(
                "Expected `data.root` to hold train/<wnid>/* and val/<wnid>/*, but one of them is "
                f"missing in `{self.root}`."
            )
        return train, val


def _file_images(listing: Listing, classes: tuple[str, ...] | None = None) -> FileImages:
    """The images of the class folders with their labels; all images without, if no classes."""
    names = listing.images if classes is None else listing.nested
    labels = torch.full((len(names),), -1)
    if classes is not None:
        sizes = torch.tensor([len(listing.folders.get(name, ())) for name in classes])
        labels = torch.arange(len(classes)).repeat_interleave(sizes)
    paths = np.array([os.fsencode(name) for name in names], dtype=np.bytes_)
    return FileImages(listing.folder, paths, labels)


def _labelled_validation(listing: Listing, classes: tuple[str, ...]) -> FileImages:
    if listing.loose or not listing.folders:
        raise ValueError(
            f"Expected class folders in `{listing.folder}`, but it holds {len(listing.loose)} "
            f"images and {len(listing.folders) or 'no'} folders with images: move each image into "
            "the folder of its class, or set `data.labels` to none."
        )
    if unknown := set(listing.folders) - set(classes):
        raise ValueError(
            f"Expected the folders in `{listing.folder}` to be named as those in train/, but "
            f"{min(unknown)} is not among them: rename or remove it, or set `data.labels` to none."
        )
    return _file_images(listing, classes)
