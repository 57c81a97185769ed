"""Orientation tags: what is read of a turned file is what is read of the upright image."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageOps, PngImagePlugin
from torch import Tensor

from duality_ssl.data.decode import Box, _reduce, centre_box, read_crops

SIDE = 32
SIZE = (73, 50)  # width and height of the file: neither a square nor a multiple of 8
FORMATS = {
    "JPEG": {"quality": 100, "subsampling": 0},
    "PNG": {},
    "WEBP": {"lossless": True},
    "TIFF": {},
}


def picture(size: tuple[int, int]) -> Image.Image:
    """A smooth image without any symmetry."""
    small = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def tagged(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif


def save(path: Path, size: tuple[int, int], orientation: int, kind: str = "JPEG") -> Path:
    options: dict[str, Any] = FORMATS[kind]
    picture(size).save(path, kind, exif=tagged(orientation), **options)
    return path


def upright(path: Path, to: Path) -> Path:
    """The same image, turned by Pillow and without a tag."""
    with Image.open(path) as file:
        turned = ImageOps.exif_transpose(file)
    turned.convert("RGB").save(to, "PNG", exif=b"")
    return to


def boxes(width: int, height: int) -> list[Box]:
    """All of it, and two parts that lie in no middle."""
    short = 0.9 * min(width, height)
    across, down = 0.1 * width, 0.15 * height
    parts = Box(3, 1, width - across, height - down), Box(width - short, 2, short, short)
    return [Box(0, 0, width, height), *parts]


def read(path: Path) -> Tensor:
    """Crops as in training and the one of evaluation, shape (4, 3, SIDE, SIDE)."""
    crops = read_crops(path, SIDE, boxes)
    return torch.stack([*crops, *read_crops(path, SIDE, centre_box(SIDE), beyond=True)]).float()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", FORMATS)
def test_crops_are_those_of_the_upright_image(kind: str, orientation: int, tmp_path: Path) -> None:
    """The two passes of Pillow's resize round once each, in the order of the file's axes."""
    path = save(tmp_path / "turned", SIZE, orientation, kind)
    ours = read(path)
    assert (ours - read(upright(path, tmp_path / "upright"))).abs().max() <= 1
    if orientation > 1:  # and they are not the crops of what lies in the file
        picture(SIZE).save(tmp_path / "lying", "PNG")
        assert ((ours - read(tmp_path / "lying")).abs().mean(dim=(1, 2, 3)) > 5).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_crops_of_a_reduced_decode(orientation: int, tmp_path: Path) -> None:
    """But for the resampling; a box that is a pixel off would show."""
    path = save(tmp_path / "turned", (401, 302), orientation)
    with Image.open(path) as file:
        assert _reduce(file, [*boxes(401, 302), *centre_box(SIDE)(401, 302)], SIDE) == 8
    error = read(path) - read(upright(path, tmp_path / "upright"))
    assert (error.abs().mean(dim=(1, 2, 3)) < 0.6).all()


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_boxes_are_drawn_for_the_upright_size(orientation: int, tmp_path: Path) -> None:
    seen = []

    def whole(width: int, height: int) -> list[Box]:
        seen.append((width, height))
        return [Box(0, 0, width, height)]

    read_crops(save(tmp_path / "a.jpg", SIZE, orientation), 8, whole)
    assert seen == [SIZE[::-1] if orientation == 6 else SIZE]


def test_tag_behind_the_pixels_of_a_png(tmp_path: Path) -> None:
    path, content = save(tmp_path / "a.png", SIZE, 6, "PNG"), io.BytesIO()
    picture(SIZE).save(content, "PNG")
    chunk = io.BytesIO()
    PngImagePlugin.putchunk(chunk, b"eXIf", tagged(6).tobytes()[6:])
    plain, end = content.getvalue()[:-12], content.getvalue()[-12:]
    (tmp_path / "late.png").write_bytes(plain + chunk.getvalue() + end)
    assert torch.equal(read(tmp_path / "late.png"), read(path))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # Pillow's, when it opens the file
@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0",
        b"Exif\0\0no directory of tags",
        tagged(6).tobytes()[:-8],
        tagged(0).tobytes(),
        tagged(9).tobytes(),
    ],
    ids=["empty", "rubbish", "cut", "0", "9"],
)
def test_damaged_tag_turns_nothing(exif: bytes, tmp_path: Path) -> None:
    picture(SIZE).save(tmp_path / "damaged.jpg", exif=exif)
    picture(SIZE).save(tmp_path / "plain.jpg")
    damaged = read(tmp_path / "damaged.jpg")
    assert torch.equal(damaged, read(tmp_path / "plain.jpg"))
