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

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
"""What a file may hold, whatever its name says; Pillow's others are many, and some run programs."""


class BadImageError(ValueError):
    """An image file cannot be decoded; the message names it."""


class Box(NamedTuple):
    """Part of an image, in pixels of its whole size; numbers need not be whole."""

    left: float
    top: float
    width: float
    height: float


class Orientation(NamedTuple):
    """How the pixels of a file become the upright image.

    Rows and columns are exchanged where it is ``transposed``; then left and right where it is
    ``mirrored``, top and bottom where it is ``flipped``.
    """

    transposed: bool = False
    mirrored: bool = False
    flipped: bool = False

    def size(self, stored: tuple[int, int]) -> tuple[int, int]:
        """Width and height of the upright image."""
        return (stored[1], stored[0]) if self.transposed else stored

    def stored(self, box: Box, width: int, height: int) -> Box:
        """Where the file has a part of the upright image, which has this width and height."""
        # not below 0, by a rounding of numbers that are not whole
        left = max(0, width - box.left - box.width) if self.mirrored else box.left
        top = max(0, height - box.top - box.height) if self.flipped else box.top
        if self.transposed:
            return Box(top, left, box.height, box.width)
        return Box(left, top, box.width, box.height)

    def upright(self, crop: Tensor) -> Tensor:
        """Turn what was cut out of the file, shape ``(C, H, W)``."""
        crop = crop.transpose(1, 2) if self.transposed else crop
        axes = [axis for axis, mirror in ((2, self.mirrored), (1, self.flipped)) if mirror]
        return crop.flip(axes) if axes else crop


_ORIENTATIONS = {
    2: Orientation(mirrored=True),
    3: Orientation(mirrored=True, flipped=True),
    4: Orientation(flipped=True),
    5: Orientation(transposed=True),
    6: Orientation(transposed=True, mirrored=True),
    7: Orientation(transposed=True, mirrored=True, flipped=True),
    8: Orientation(transposed=True, flipped=True),
}


def read_orientation(file: Image.Image) -> Orientation:
    """The orientation that the EXIF or XMP tags of an open image say; upright if they are damaged.

    Of a PNG and a TIFF it is known once the pixels are loaded (Pillow then has turned a TIFF).
    """
    try:
        tag = file.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # OSError, SyntaxError, ValueError, struct.error, ...
        tag = None
    return _ORIENTATIONS.get(tag, Orientation()) if isinstance(tag, int) else Orientation()


def to_rgb(image: Image.Image) -> Image.Image:
    """Bring a decoded image of any mode to 8-bit RGB.

    Grey, palette and CMYK images are converted; transparency is composited over white; 16-bit
    values are scaled (65535 becomes 255), not clipped.

    Raises:
        ValueError: If the mode has no known range (float pixels).
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):  # 16-bit grey; "I" is how older files of it are opened
        values = np.asarray(image).astype(np.int64)
        scaled = (values.clip(0, 65535) * 255 + 32767) // 65535
        return Image.fromarray(scaled.astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("its pixels are floats, whose range is not known")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def read_crops(
    path: Path, side: int, boxes_of: Callable[[int, int], Sequence[Box]], *, beyond: bool = False
) -> list[Tensor]:
    """Read parts of an image file, each resized (bilinear, antialiased) to a square.

    Of an animation or several pages the first is read.

    A JPEG is decoded at 1/2, 1/4 or 1/8 of its size (libjpeg then computes that many fewer inverse
    DCTs) where all boxes still have ``side`` pixels or more each way; the resize takes it from
    there. Boxes are those of the whole size, whatever the file is decoded at, and of the upright
    image: an orientation tag (EXIF) is applied.

    Args:
        path: The file.
        side: Height and width of what is returned.
        boxes_of: Given width and height of the upright image, the parts to read.
        beyond: Whether pixels beyond a box have a share in what is at its edge, as where an image
            is resized whole and cut then; otherwise only those have that an edge cuts through.

    Returns:
        For each box ``uint8``, shape ``(3, side, side)``.

    Raises:
        BadImageError: If the file is missing, truncated, corrupt, of a mode without a known range,
            or of more pixels than Pillow decodes (179 million, unless its `MAX_IMAGE_PIXELS` says
            otherwise).
    """
    try:
        with Image.open(path, formats=FORMATS) as file:
            if 0 in file.size:
                raise ValueError("it has no pixels")
            if not isinstance(file, JpegImagePlugin.JpegImageFile):
                file.load()  # no other is decoded at a part of its size
            orientation = read_orientation(file)
            width, height = orientation.size(file.size)
            boxes = [orientation.stored(box, width, height) for box in boxes_of(width, height)]
            scale = _reduce(file, boxes, side)
            file.load()
            image = to_rgb(file)
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, ...
        raise BadImageError(
            f"Cannot read the image `{path}`: {_reason(error, path)}. Repair or remove it, or set "
            "`data.on_bad_image` to skip."
        ) from None
    crops = [_cut(image, Box(*(x / scale for x in box)), side, beyond) for box in boxes]
    return [orientation.upright(crop) for crop in crops]


def _reason(error: Exception, path: Path) -> str:
    if isinstance(error, Image.DecompressionBombError):
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0)  # what Pillow warns of, it refuses twice
        return f"it claims to have more than {most:,} pixels, the most that are decoded"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror  # all else that it says is the path again
    text = str(error).replace(f" {str(path)!r}", "")
    return " ".join(text.split()).rstrip(".") or type(error).__name__


def _reduce(file: Image.Image, boxes: Sequence[Box], side: int) -> int:
    """Have a JPEG decoded at the smallest size at which no box is smaller than ``side``."""
    shortest = min(min(box.width, box.height) for box in boxes)
    scale = next((s for s in (8, 4, 2) if shortest >= s * side), 1)
    size = file.size
    if scale > 1:
        file.draft(None, (size[0] // scale, size[1] // scale))
    return scale if file.size != size else 1  # only JPEG can


def _cut(image: Image.Image, box: Box, side: int, beyond: bool) -> Tensor:
    left, top = box.left, box.top
    right, bottom = min(left + box.width, image.width), min(top + box.height, image.height)
    if not beyond:
        x, y = math.floor(left), math.floor(top)
        image = image.crop((x, y, math.ceil(right), math.ceil(bottom)))
        left, top, right, bottom = left - x, top - y, right - x, bottom - y
    if (left, top, right, bottom) != (0, 0, *image.size):
        edges = (left, top, right, bottom)
        return _tensor(image.resize((side, side), Image.Resampling.BILINEAR, edges))
    # the same numbers but for a rounding in a thousand, three times as fast
    whole = _tensor(image).unsqueeze(0)
    return interpolate(whole, (side, side), mode="bilinear", antialias=True).squeeze(0)


def _tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def centre_box(size: int) -> Callable[[int, int], list[Box]]:
    """The part that ImageNet's protocol shows at ``size`` pixels.

    The middle of the image whose shorter side is resized to 256/224 of ``size``.
    """

    def boxes(width: int, height: int) -> list[Box]:
        shorter, short = round(size * 256 / 224), min(width, height)
        resized = (shorter * width // short, shorter * height // short)
        left, top = round((resized[0] - size) / 2), round((resized[1] - size) / 2)
        across, down = width / resized[0], height / resized[1]
        return [Box(left * across, top * down, size * across, size * down)]

    return boxes
