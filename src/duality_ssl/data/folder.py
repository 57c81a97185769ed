"""Sources whose images are files in folders, labelled by these or not."""

import os
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray

from duality_ssl.data.file_images import FileImages
from duality_ssl.data.formats import describe
from duality_ssl.data.layout import (
    EXTENSIONS,
    Labels,
    Listing,
    hold_out,
    labelled_by_folder,
    list_images,
)
from duality_ssl.data.sources import ImageSource, Split, register_source

_LAYOUT = "train/<class>/* and val/<class>/*, <class>/*, or images without labels in any folders"
_ENDINGS = ", ".join(sorted(EXTENSIONS))
_UNLABELLED_VAL = 5000  # images of an unlabelled folder that stand in for a validation set


@register_source("folder")
class Folder(ImageSource):
    """A folder of image files, with or without labels.

    - ``root/train/<class>/*`` and ``root/val/<class>/*``: labelled. Class folders may have
      folders of their own, and ``val/`` may lack classes.
    - ``root/train/<class>/*`` or ``root/<class>/*``, all images exactly one level down and in two
      folders or more: labelled. Without a ``val/`` a tenth of each class, drawn by the seed, is
      held out for validation and not trained on.
    - All else is unlabelled: all images below ``root/train`` or ``root``. Those below ``root/val``
      are the validation set where there are any; else up to 5000 of the training images, evenly
      spaced, are it, which serves what needs no held-out images (rank, collapse).

    Which of these it is is said once. Normalised with ImageNet's statistics. Orientation tags
    (EXIF) are applied, which torchvision's ``ImageFolder`` does not do.
    """

    channels = 3
    image_size = 224
    mean = (0.485, 0.456, 0.406)
    std = (0.229, 0.224, 0.225)
    labels: Labels = "auto"
    """Whether folders are classes: "folder" and "none" overrule what is said above."""
    seed: int = 0
    """Draws the images that are held out."""

    def _splits(self) -> tuple[Path, Path | None]:
        """The folders of the training and the validation images."""
        root = self._root(_LAYOUT)
        train, val = root / "train", root / "val"
        return train if train.is_dir() else root, val if val.is_dir() else None

    @cached_property
    def _train(self) -> tuple[FileImages, tuple[str, ...] | None, FileImages | None]:
        """The training images, the names of their classes, the images that are held out."""
        folder, val = self._splits()
        listing = list_images(folder, without="val" if folder == self.root else None)
        if not listing.images:
            raise FileNotFoundError(
                f"Expected `data.root` to hold {_LAYOUT} ({_ENDINGS}), but found no image: "
                f"{describe(folder)}."
            )
        validated = folder != self.root and val is not None
        if not labelled_by_folder(listing, self.labels, validated):
            rank_zero_info(_describe_unlabelled(listing))
            return _unlabelled(listing), None, None
        for name, inside in listing.folders.items():
            if not inside:
                raise FileNotFoundError(
                    f"Expected images ({_ENDINGS}) in `{folder / name}`, but found none: remove "
                    "the folder if it is no class."
                )
        classes = tuple(listing.folders)
        images, held_out = _labelled(listing, classes), None
        if val is None:
            drawn = hold_out(images.labels, self.seed)
            if not drawn.any():
                raise ValueError(
                    f"Expected two images of a class in `{folder}`, one of which is held out for "
                    "validation, but each class has one: add images or val/<class>/*, or set "
                    "`data.labels` to none."
                )
            held_out, images = images.subset(drawn), images.subset(~drawn)
        rank_zero_info(_describe_labelled(folder, images, classes, held_out))
        return images, classes, held_out

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
            return self._labelled_validation(list_images(val), classes)
        if val is not None and (listing := list_images(val)).images:
            return _unlabelled(listing)
        count = min(len(images), _UNLABELLED_VAL)
        return images.subset(torch.arange(count) * len(images) // count)

    _sorting_hint = "move each image into the folder of its class"

    def _labelled_validation(self, listing: Listing, classes: tuple[str, ...]) -> FileImages:
        folder, loose = listing.folder, len(listing.loose)
        if loose or not listing.folders:
            holds = f"{len(listing.folders) or 'no'} folders"
            raise ValueError(
                f"Expected class folders in `{folder}`, named as those of the training images, "
                f"but it holds {loose} images and {holds}: {self._sorting_hint}, or set "
                "`data.labels` to none."
            )
        if unknown := sorted(set(listing.folders) - set(classes)):
            raise ValueError(
                f"Expected the folders in `{folder}` to be named as those in train/, but "
                f"{', '.join(unknown[:5])} {'are' if len(unknown) > 1 else 'is'} not among them: "
                "rename or remove them, or set `data.labels` to none."
            )
        if not listing.nested:
            raise FileNotFoundError(
                f"Expected images in the class folders of `{folder}`, but found none: put the "
                "validation images there."
            )
        return _labelled(listing, classes)


def _labelled(listing: Listing, classes: tuple[str, ...]) -> FileImages:
    sizes = torch.tensor([len(listing.folders.get(name, ())) for name in classes])
    labels = torch.arange(len(classes)).repeat_interleave(sizes)
    return FileImages(listing.folder, _encode(listing.nested), labels)


def _unlabelled(listing: Listing) -> FileImages:
    names = listing.images
    return FileImages(listing.folder, _encode(names), torch.full((len(names),), -1))


def _encode(names: list[str]) -> NDArray[np.bytes_]:
    return np.array([os.fsencode(name) for name in names], dtype=np.bytes_)


def _describe_labelled(
    folder: Path, images: FileImages, classes: tuple[str, ...], held_out: FileImages | None
) -> str:
    names = ", ".join(classes[:5]) + ", ..." * (len(classes) > 5)
    held = (
        f" {len(held_out):,} more, a tenth of each class drawn by the seed, are held out for "
        "validation, as there is no val/."
        if held_out is not None
        else ""
    )
    return (
        f"`{folder}`: {len(images):,} images to train on, labelled by folder, of {len(classes)} "
        f"classes ({names}).{held} To ignore the folders set `data.labels` to none."
    )


def _describe_unlabelled(listing: Listing) -> str:
    said = f"`{listing.folder}`: {len(listing.images):,} images to train on, without labels"
    if not listing.nested:
        return f"{said}."
    remedy = "" if listing.loose else " To take the folders as classes set `data.labels` to folder."
    return f"{said}, from folders of any depth.{remedy}"


@register_source("imagenet")
class ImageNet(Folder):
    """ImageNet as torchvision's ``ImageFolder`` wants it: ``train/<wnid>/*``, ``val/<wnid>/*``."""

    labels = "folder"

    _sorting_hint = (
        "the archive of the validation images is flat, sort them into a folder for each wnid "
        "(torchvision.datasets.ImageNet and the script valprep.sh do)"
    )

    def _splits(self) -> tuple[Path, Path | None]:
        train, val = super()._splits()
        root = self._root(_LAYOUT)
        if train == root or val is None:
            raise FileNotFoundError(
                "Expected `data.root` to hold train/<wnid>/* and val/<wnid>/*, but "
                f"{describe(root)}."
            )
        return train, val
