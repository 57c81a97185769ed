"""Image files to crops: every mode, reduced decodes, orientation tags."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.image_files import write_image
from PIL import ExifTags, Image, ImageOps, PngImagePlugin
from torch import Tensor
from torchvision import transforms as tv
from torchvision.transforms import functional as tvf

from duality_ssl.data.decode import Box, _reduce, centre_box, read_crops


def decode(path: Path) -> np.ndarray:
    """All of a square image at its own size, shape (H, W, 3)."""
    with Image.open(path) as image:
        side = image.width
    (crop,) = read_crops(path, side, lambda w, h: [Box(0, 0, w, h)])
    return crop.permute(1, 2, 0).numpy()


def gradient() -> np.ndarray:
    """Values 0 to 65535 over 16 x 16 pixels, few of them multiples of 257."""
    return (np.linspace(0, 1, 256) ** 2 * 65535).round().astype(np.uint16).reshape(16, 16)


def test_grey_and_bilevel_images(tmp_path: Path) -> None:
    grey = (gradient() >> 8).astype(np.uint8)
    Image.fromarray(grey).save(tmp_path / "l.png")
    out = decode(tmp_path / "l.png")
    np.testing.assert_array_equal(out, np.repeat(grey[:, :, None], 3, axis=2))
    Image.fromarray(grey).convert("1").save(tmp_path / "1.png")
    assert set(np.unique(decode(tmp_path / "1.png"))) == {0, 255}


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bits_are_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(gradient()).save(tmp_path / f"deep.{suffix}")
    out = decode(tmp_path / f"deep.{suffix}")
    np.testing.assert_array_equal(out[:, :, 0], np.round(gradient() / 257).astype(np.uint8))
    np.testing.assert_array_equal(out[:, :, 0], out[:, :, 2])


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_composited_over_white(tmp_path: Path, mode: str) -> None:
    image = Image.new(mode, (4, 4), (0,) * (len(mode) - 1) + (0,))
    image.putpixel((1, 1), (0,) * (len(mode) - 1) + (255,))
    image.putpixel((2, 2), (0,) * (len(mode) - 1) + (51,))
    image.save(tmp_path / "a.png")
    out = decode(tmp_path / "a.png")
    assert out[0, 0].tolist() == [255] * 3  # hidden black is not seen
    assert out[1, 1].tolist() == [0] * 3
    assert out[2, 2].tolist() == [204] * 3


@pytest.mark.parametrize("transparent", [False, True])
def test_palette(tmp_path: Path, transparent: bool) -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    image.putpixel((0, 0), 0)
    image.save(tmp_path / "p.png", **({"transparency": 0} if transparent else {}))
    out = decode(tmp_path / "p.png")
    assert out[1, 1].tolist() == [10, 200, 30]
    assert out[0, 0].tolist() == ([255] * 3 if transparent else [0] * 3)


def test_cmyk_jpeg(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16), (200, 40, 90)).convert("CMYK").save(tmp_path / "c.jpg", quality=95)
    assert Image.open(tmp_path / "c.jpg").mode == "CMYK"
    out = decode(tmp_path / "c.jpg").astype(int)
    assert abs(out - [200, 40, 90]).max() <= 8


def test_float_pixels_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.ones((4, 4), dtype=np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(ValueError, match=r"Cannot read the image .*f.tif`: its pixels are floats"):
        decode(tmp_path / "f.tif")


@pytest.mark.parametrize("size", [(300, 400), (500, 333), (224, 224), (40, 30)])
def test_evaluation_sees_torchvisions_centre_crop(size: tuple[int, int], tmp_path: Path) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8))
    image.save(tmp_path / "noise.png")
    reference = tv.Compose([tv.Resize(256), tv.CenterCrop(224), tv.PILToTensor()])(image)
    (ours,) = read_crops(tmp_path / "noise.png", 224, centre_box(224), beyond=True)
    assert (ours.int() - reference).abs().max() <= 1


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_crops_are_torchvisions(interpolation: str, tmp_path: Path) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8))
    image.save(tmp_path / "noise.png")
    boxes = [Box(3, 5, 60, 41, interpolation), Box(9, 0, 12, 17, interpolation)]
    mode = tv.InterpolationMode(interpolation)

    def reference(box: Box) -> Tensor:
        top, left, height, width = (int(box[i]) for i in (1, 0, 3, 2))
        crop = tvf.resized_crop(image, top, left, height, width, [SIDE, SIDE], mode)
        return tv.PILToTensor()(crop)

    ours = read_crops(tmp_path / "noise.png", SIDE, lambda w, h: boxes)
    expected = [reference(box) for box in boxes]
    assert (torch.stack(ours).int() - torch.stack(expected)).abs().max() <= 1


def test_parts_of_pixels_are_resized_as_asked(tmp_path: Path) -> None:
    """Between two values lie those of bilinear interpolation; bicubic overshoots."""
    step = np.repeat(np.uint8([100, 100, 100, 200, 200, 200]), 3).reshape(1, 6, 3).repeat(6, axis=0)
    Image.fromarray(step).save(tmp_path / "step.png")
    boxes = [Box(0.5, 0.5, 5, 5, each) for each in ("bilinear", "bicubic")]
    bilinear, bicubic = read_crops(tmp_path / "step.png", 16, lambda w, h: boxes)
    assert (bilinear.min(), bilinear.max()) == (100, 200)
    assert bicubic.min() < 97
    assert bicubic.max() > 203


def big_jpeg(folder: Path) -> Path:
    write_image(folder / "big.jpg", seed=3, size=(801, 602))
    return folder / "big.jpg"


BOXES = {
    "whole": lambda w, h: [Box(0, 0, w, h)],
    "odd corners": lambda w, h: [Box(101, 57, 463, 395), Box(219, 3, 333, 598)],
    "edges": lambda w, h: [Box(w - 385, h - 391, 385, 391)],
    "centre": centre_box(96),
}


@pytest.mark.parametrize("boxes", BOXES.values(), ids=BOXES)
@pytest.mark.parametrize("side", [96, 48], ids=["half or quarter", "quarter or eighth"])
def test_reduced_decode_is_the_full_one(
    side: int, boxes: Callable[[int, int], list[Box]], tmp_path: Path
) -> None:
    """But for the resampling; a shift by the pixels that half a reduced one covers would show."""
    path = big_jpeg(tmp_path)
    with Image.open(path) as image:
        assert _reduce(image, boxes(*image.size), side) > 1
        assert image.size[0] < 801
    whole = Image.open(path).convert("RGB")

    def reference(shift: int) -> torch.Tensor:
        crops = []
        for left, top, width, height, *_ in boxes(801, 602):
            part = whole.transform(
                (round(width), round(height)),
                Image.Transform.EXTENT,
                (left + shift, top, left + shift + width, top + height),
            )
            crops.append(tv.PILToTensor()(part.resize((side, side), Image.Resampling.BILINEAR)))
        return torch.stack(crops).float()

    ours = torch.stack(read_crops(path, side, boxes)).float()
    error = (ours - reference(0)).abs().mean()
    assert error < 0.6
    assert min((ours - reference(shift)).abs().mean() for shift in (-4, 4)) > 1.5 * error


@pytest.mark.parametrize(
    ("name", "sides", "scale"),
    [
        ("a.jpg", [128], 4),
        ("a.jpg", [127], 2),
        ("a.jpg", [600, 64], 2),  # the smaller crop decides
        ("a.jpg", [63], 1),
        ("a.jpg", [600], 8),
        ("a.png", [600], 1),
    ],
)
def test_reduction_leaves_every_crop_its_pixels(
    name: str, sides: list[int], scale: int, tmp_path: Path
) -> None:
    write_image(tmp_path / name, size=(640, 601))
    with Image.open(tmp_path / name) as image:
        assert _reduce(image, [Box(0, 0, side, 600) for side in sides], 32) == scale
        image.load()
        assert image.size == (640 // scale, -(-601 // scale))


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


@pytest.mark.parametrize(
    ("kind", "orientation"),
    [*(("JPEG", number) for number in range(1, 9)), *((kind, 6) for kind in FORMATS)],
)
def test_crops_are_those_of_the_upright_image(kind: str, orientation: int, tmp_path: Path) -> None:
    path = save(tmp_path / "turned", SIZE, orientation, kind)
    ours = read(path)
    assert torch.equal(ours, read(upright(path, tmp_path / "upright")))
    if orientation > 1:  # and they are not the crops of what lies in the file
        picture(SIZE).save(tmp_path / "lying", "PNG")
        assert ((ours - read(tmp_path / "lying")).abs().mean(dim=(1, 2, 3)) > 5).all()


@pytest.mark.parametrize("orientation", range(2, 9))
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
