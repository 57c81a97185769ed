"""Which images a folder holds, and whether its folders are classes."""

import os
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from duality_ssl.data.sources.base import Labels
from duality_ssl.randomness import HOLD_OUT, derive_seed

EXTENSIONS = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
"""Extensions of images, in lower case."""


@dataclass(frozen=True)
class Listing:
    """Images of a folder, as sorted paths relative to it."""

    folder: Path
    loose: list[str]  # directly in the folder
    folders: dict[str, list[str]]  # at any depth of each of its folders, by name

    @property
    def nested(self) -> list[str]:
        """Images in its folders."""
        return [*chain.from_iterable(self.folders.values())]

    @property
    def images(self) -> list[str]:
        """All images."""
        return [*self.loose, *self.nested]


def list_images(folder: Path, without: str | None = None) -> Listing:
    """List the images in a folder and below it.

    Hidden entries are skipped, and so are pipes and devices, which may never answer. A link in the
    folder itself may lead to another folder; links further down are not followed, so there are no
    loops. The folder named ``without`` is skipped.

    Raises:
        ValueError: If a link in the folder is broken, or leads to a folder that contains it.
    """
    loose, folders = [], {}
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or entry.name == without:
                continue
            if entry.is_dir():
                _check_link(folder / entry.name)
                folders[entry.name] = _list_below(folder / entry.name, f"{entry.name}/")
            elif _is_image(entry):
                loose.append(entry.name)
            else:
                _check_link(folder / entry.name)
    return Listing(folder, sorted(loose), dict(sorted(folders.items())))


def _list_below(folder: Path, prefix: str) -> list[str]:
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                found += _list_below(folder / entry.name, f"{prefix}{entry.name}/")
            elif _is_image(entry):
                found.append(prefix + entry.name)
    return sorted(found)


def _is_image(entry: os.DirEntry[str]) -> bool:
    suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122
    # a broken link too, so that it is reported
    return suffix in EXTENSIONS and (entry.is_file() or entry.is_symlink())


def _check_link(path: Path) -> None:
    """Raise ``ValueError`` if a path is a broken link, or one to a folder that contains it."""
    if not path.is_symlink():
        return
    broken = not path.exists()
    if broken or path.parent.resolve().is_relative_to(path.resolve()):
        where = "nowhere" if broken else "to a folder that contains it"
        raise ValueError(
            f"Expected `{path}` to lead to a folder of images, but it leads {where}: repair or "
            "remove the link."
        )


def labelled_by_folder(listing: Listing, labels: Labels, validated: bool) -> bool:
    """Whether the folders in a folder of training images are their classes.

    With ``labels`` "folder" they are, with "none" they are not. With "auto" they are if there is a
    ``train/`` and a ``val/`` (``validated``), or if all images are exactly one level down in two
    folders or more.

    Raises:
        ValueError: If images lie beside class folders, or if ``labels`` is "folder" and there are
            no folders.
    """
    if labels == "none" or (labels == "auto" and not listing.folders):
        return False
    if not listing.folders:
        raise ValueError(
            f"Expected class folders in `{listing.folder}`, but it holds {len(listing.loose)} "
            "images and no folders: sort them, or set `data.labels` to none."
        )
    depths = {name: {i.count("/") for i in images} for name, images in listing.folders.items()}
    several = sum(1 in found for found in depths.values()) > 1
    classes = labels == "folder" or validated
    if listing.loose and (classes or several):
        raise ValueError(
            f"Expected `{listing.folder}` to hold either class folders or images, but it holds "
            f"{len(depths)} folders and {len(listing.loose)} images beside the "
            f"{len(listing.nested)} in them: move the images into a class or away, or set "
            f"`data.labels` to none, which takes all {len(listing.images)} without labels."
        )
    return classes or (several and all(found <= {1} for found in depths.values()))


def hold_out(labels: Tensor, seed: int) -> Tensor:
    """Draw a tenth of each class, rounded: a mask of shape ``(N,)``.

    At least one image is drawn of each class, but none of a class of one image.
    """
    generator = torch.Generator().manual_seed(derive_seed(HOLD_OUT, seed))
    order = torch.randperm(len(labels), generator=generator)
    order = order[labels[order].argsort(stable=True)]  # class by class
    sizes = labels.bincount()
    counts = torch.where(sizes > 1, ((sizes + 5) // 10).clamp(min=1), 0)
    place = torch.arange(len(labels)) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    drawn = torch.zeros(len(labels), dtype=torch.bool)
    drawn[order] = place < counts.repeat_interleave(sizes)
    return drawn
