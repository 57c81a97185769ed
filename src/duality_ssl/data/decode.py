"""One image file to 8-bit RGB crops, decoded no finer than the crops need."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import ExifTags, Image, JpegImagePlugin
from torch import Tensor
from torch.nn.functional import interpolate

from duality_ssl.data.augment.view import Interpolation

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
"""Formats that are read, whatever the name says. Some of Pillow's others start a program."""


class BadImageError(ValueError):
    """An image file cannot be decoded; the message names it."""


class Box(NamedTuple):
    """Part of an image, in pixels of its full size, not necessarily whole ones."""

    left: float
    top: float
    width: float
    height: float
    interpolation: Interpolation = "bilinear"
    """How the part is resized."""
    side: int | None = None
    """Height and width of the result; None for those of the other parts."""


# turns the pixels of a file upright, by its orientation tag
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_orientation(file: Image.Image) -> int:
    """The orientation in the EXIF or XMP tags of an open image, 1 to 8; 1 if they are damaged.

    That of a PNG or TIFF is known once the pixels are loaded; Pillow turns a TIFF by itself.
    """
    try:
        tag = file.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # OSError, SyntaxError, ValueError, struct.error, ...
        return 1
    return tag if isinstance(tag, int) and tag in _TRANSPOSE else 1


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a decoded image of any mode to 8-bit RGB, over white where it is transparent.

    16-bit values are scaled (65535 becomes 255), not clipped; float pixels are refused.
    """
    if image.mode.startswith("I"):  # 16-bit grey; Pillow opens some as "I"
        values = np.asarray(image).astype(np.int64)
        scaled = (values.clip(0, 65535) * 255 + 32767) // 65535
        return Image.fromarray(scaled.astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("its pixels are floats, whose range is not known")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image if image.mode == "RGB" else image.convert("RGB")


def read_crops(
    path: Path, side: int, boxes_of: Callable[[int, int], Sequence[Box]], *, beyond: bool = False
) -> list[Tensor]:
    """Read parts of an image file, each resized with antialiasing to a square.

    The first image of an animation or of several pages is read, and turned upright by its EXIF tag.
    A JPEG is decoded at 1/2, 1/4 or 1/8 of its size, for fewer inverse DCTs, if all boxes still
    have the pixels of their results or more each way.

    Args:
        path: The file.
        side: Height and width of the result, where a box says no other.
        boxes_of: Given width and height of the upright image, the parts to read.
        beyond: Whether pixels beyond a box contribute to its edges, as if the whole image were
            resized and then cropped.

    Returns:
        One square ``uint8`` tensor of shape ``(3, side, side)`` per box.

    Raises:
        BadImageError: If the file cannot be read, or has more pixels than Pillow decodes.
    """
    try:
        with Image.open(path, formats=FORMATS) as file:
            if 0 in file.size:
                raise ValueError("it has no pixels")
            if not isinstance(file, JpegImagePlugin.JpegImageFile):
                file.load()  # only a JPEG is decoded at a part of its size
            orientation = read_orientation(file)
            width, height = file.size[::-1] if orientation >= 5 else file.size
            boxes = boxes_of(width, height)
            scale = _reduce(file, boxes, side)
            file.load()
            image = to_rgb(file)
            if orientation > 1:
                image = image.transpose(_TRANSPOSE[orientation])
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, ...
        raise BadImageError(
            f"Cannot read the image `{path}`: {_reason(error, path)}. Repair or remove it, or set "
            "`data.on_bad_image` to skip."
        ) from None
    # a reduced image is a fraction of a pixel too long: at its end, which a turn may make its start
    x = image.width - width / scale if orientation in (2, 3, 6, 7) else 0
    y = image.height - height / scale if orientation in (3, 4, 7, 8) else 0
    reduced = [
        Box(left / scale + x, top / scale + y, wide / scale, high / scale, interpolation, own)
        for left, top, wide, high, interpolation, own in boxes
    ]
    return [_cut(image, box, box.side or side, beyond) for box in reduced]


def _reason(error: Exception, path: Path) -> str:
    text = getattr(error, "strerror", None) or str(error).replace(f" {str(path)!r}", "")
    return " ".join(text.split()).rstrip(".") or type(error).__name__


def _reduce(file: Image.Image, boxes: Sequence[Box], side: int) -> int:
    """Have a JPEG decoded at the smallest scale at which no box is smaller than its result."""
    sizes = [(min(box.width, box.height), box.side or side) for box in boxes]
    scale = next((s for s in (8, 4, 2) if all(low >= s * to for low, to in sizes)), 1)
    size = file.size
    if scale > 1:
        file.draft(None, (size[0] // scale, size[1] // scale))
    return scale if file.size != size else 1  # only a JPEG can be


def _cut(image: Image.Image, box: Box, side: int, beyond: bool) -> Tensor:
    left, top = box.left, box.top
    right, bottom = min(left + box.width, image.width), min(top + box.height, image.height)
    if not beyond:
        x, y = math.floor(left), math.floor(top)
        image = image.crop((x, y, math.ceil(right), math.ceil(bottom)))
        left, top, right, bottom = left - x, top - y, right - x, bottom - y
    if (left, top, right, bottom) != (0, 0, *image.size):
        edges = (left, top, right, bottom)
        kernel = Image.Resampling[box.interpolation.upper()]
        return _tensor(image.resize((side, side), kernel, edges))
    # three times as fast as Pillow, and equal but for a rounding in a thousand
    whole = _tensor(image).unsqueeze(0)
    return interpolate(whole, (side, side), mode=box.interpolation, antialias=True).squeeze(0)


def _tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def centre_box(size: int) -> Callable[[int, int], list[Box]]:
    """ImageNet's evaluation crop: the centre, after the shorter side is 256/224 of ``size``."""

    def boxes(width: int, height: int) -> list[Box]:
        shorter, short = round(size * 256 / 224), min(width, height)
        resized = (shorter * width // short, shorter * height // short)
        left, top = round((resized[0] - size) / 2), round((resized[1] - size) / 2)
        across, down = width / resized[0], height / resized[1]
        return [Box(left * across, top * down, size * across, size * down)]

    return boxes
