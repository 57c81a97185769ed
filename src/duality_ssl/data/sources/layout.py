"""Which images a folder holds, and whether its folders are classes."""

import os
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from duality_ssl.data.sampler import shuffle_by_class
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
    folders: dict[str, list[str]]  # at any depth of each of its folders that has some, by name

    @property
    def nested(self) -> list[str]:
        """Images in its folders."""
        return [*chain.from_iterable(self.folders.values())]

    @property
    def images(self) -> list[str]:
        """All images."""
        return [*self.loose, *self.nested]


def list_images(folder: Path, without: str | None = None) -> Listing:
    """List the images in a folder and below it, but for those in its folder named ``without``.

    Hidden entries are skipped, and so are pipes and devices, which may never answer. A link in the
    folder itself may lead to another folder; links further down are not followed, so there are no
    loops.
    """
    loose: list[str] = []
    folders: dict[str, list[str]] = {}
    for name in sorted(_find_images(folder, without)):
        first, nested, _ = name.partition("/")
        if not nested:
            loose.append(name)
        else:
            folders.setdefault(first, []).append(name)
    return Listing(folder, loose, dict(sorted(folders.items())))


def _find_images(folder: Path, without: str | None, prefix: str = "") -> list[str]:
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or prefix + entry.name == without:
                continue
            if entry.is_dir(follow_symlinks=not prefix):
                found += _find_images(folder / entry.name, without, f"{prefix}{entry.name}/")
            elif _is_image(entry):
                found.append(prefix + entry.name)
    return found


def _is_image(entry: os.DirEntry[str]) -> bool:
    suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122
    # a broken link too, so that it is reported
    return suffix in EXTENSIONS and (entry.is_file() or entry.is_symlink())


def labelled_by_folder(listing: Listing, labels: Labels, validated: bool) -> bool:
    """Whether the folders in a folder of training images are their classes.

    With ``labels`` "folder" they are, with "none" they are not. With "auto" they are if there is a
    ``train/`` and a ``val/`` (``validated``), or if all images are exactly one level down in two
    folders or more. Raises ``ValueError`` if images lie beside class folders.
    """
    if labels == "none":
        return False
    depths = [{name.count("/") for name in names} for names in listing.folders.values()]
    several = sum(1 in found for found in depths) > 1
    classes = labels == "folder" or (validated and bool(depths))
    if listing.loose and (classes or several):
        raise ValueError(
            f"Expected `{listing.folder}` to hold either class folders or images, but it holds "
            f"{len(depths)} folders and {len(listing.loose)} images beside the "
            f"{len(listing.nested)} in them: move the images into a class or away, or set "
            f"`data.labels` to none, which takes all {len(listing.images)} without labels."
        )
    return classes or (several and all(found == {1} for found in depths))


def hold_out(labels: Tensor, seed: int) -> Tensor:
    """Draw a tenth of each class, rounded: a mask of shape ``(N,)``.

    At least one image is drawn of each class, but none of a class of one image.
    """
    order, place, size = shuffle_by_class(labels, derive_seed(HOLD_OUT, seed))
    counts = torch.where(size > 1, ((size + 5) // 10).clamp(min=1), 0)
    drawn = torch.zeros(len(labels), dtype=torch.bool)
    drawn[order] = place < counts
    return drawn
