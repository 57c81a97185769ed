"""How a view is drawn: the distributions, and the parameters drawn from them for a batch."""

import math
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

Interpolation = Literal["bilinear", "bicubic"]

_RANGES = ("scale", "ratio", "sigma")
_HIGHEST = {"scale": 1.0, "hue": 0.5}
_HIGHEST |= dict.fromkeys(("flip", "jitter", "gray", "blur", "solarize"), 1.0)


@dataclass(frozen=True)
class View:
    """Distributions that the augmentation of one view is drawn from.

    The defaults are BYOL's colours with SimCLR's blur.

    Raises:
        ValueError: If a value is out of its range.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    """Smallest and largest area of the crop, as fractions of the image's area."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest aspect ratio of the crop, width / height."""
    interpolation: Interpolation = "bilinear"
    """How the crop is resized, with antialiasing."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    jitter: float = 0.8
    """Probability of the colour jitter."""
    brightness: float = 0.4
    """The brightness factor is uniform in [1 - brightness, 1 + brightness]."""
    contrast: float = 0.4
    """The contrast factor is uniform in [1 - contrast, 1 + contrast]."""
    saturation: float = 0.2
    """The saturation factor is uniform in [1 - saturation, 1 + saturation]."""
    hue: float = 0.1
    """The hue shift is uniform in [-hue, hue], in turns; at most 0.5."""
    gray: float = 0.2
    """Probability of converting to greyscale."""
    blur: float = 0.5
    """Probability of a Gaussian blur."""
    sigma: tuple[float, float] = (0.1, 2.0)
    """Smallest and largest standard deviation of the blur, in pixels."""
    solarize: float = 0.0
    """Probability of solarizing: values of at least 0.5 are inverted."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name, value in vars(self).items():
            highest = _HIGHEST.get(name, 1e6)
            if name == "interpolation":
                known = get_args(Interpolation)
                fits, expected = value in known, " or ".join(known)
            elif name in _RANGES:
                low, high = value
                fits = 0 < low <= high <= highest
                expected = f"a range 0 < low <= high <= {highest:g}"
            else:
                fits, expected = 0 <= value <= highest, f"in [0, {highest:g}]"
            if not fits:
                raise ValueError(f"Expected `{name}` to be {expected}, but got {value}.")

    def draw(
        self, n: int, generator: torch.Generator, size: tuple[int, int] | None = None
    ) -> "Draws":
        """Draw the parameters of ``n`` samples, with a generator on the CPU.

        ``size`` is the height and width of the images to crop; None if they are cropped already.
        How many numbers are drawn does not depend on the probabilities, so changing one
        probability leaves the other draws as they are.
        """
        boxes = None if size is None else draw_boxes(n, size, self.scale, self.ratio, generator)
        u = torch.rand(10, n, generator=generator)
        jittered = u[0] < self.jitter

        def factor(strength: float, draws: Tensor) -> Tensor:
            low, high = max(0.0, 1 - strength), 1 + strength
            return torch.where(jittered, low + (high - low) * draws, 1.0)

        low, high = self.sigma
        return Draws(
            boxes=boxes,
            flip=u[1] < self.flip,
            brightness=factor(self.brightness, u[2]),
            contrast=factor(self.contrast, u[3]),
            saturation=factor(self.saturation, u[4]),
            hue=torch.where(jittered, self.hue * (2 * u[5] - 1), 0.0),
            order=torch.rand(n, 4, generator=generator).argsort(dim=1),
            gray=u[6] < self.gray,
            sigma=torch.where(u[7] < self.blur, low + (high - low) * u[8], 0.0),
            solarize=u[9] < self.solarize,
        )


@dataclass(frozen=True)
class ViewChanges:
    """The fields of a `View` in which the second view differs; None keeps the first view's."""

    scale: tuple[float, float] | None = None
    ratio: tuple[float, float] | None = None
    interpolation: Interpolation | None = None
    flip: float | None = None
    jitter: float | None = None
    brightness: float | None = None
    contrast: float | None = None
    saturation: float | None = None
    hue: float | None = None
    gray: float | None = None
    blur: float | None = None
    sigma: tuple[float, float] | None = None
    solarize: float | None = None

    def of(self, view: View) -> View:
        """The view with these changes."""
        changes = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(view, **{name: x for name, x in changes.items() if x is not None})


@dataclass(frozen=True)
class SmallView(ViewChanges):
    """The size of the small views, and the fields in which they differ from the first view."""

    scale: tuple[float, float] | None = (0.05, 0.14)
    """Smallest and largest area of the crop, as fractions of the image's area."""
    size: int = 96
    """Side in pixels, less than that of the large views."""

    def of(self, view: View) -> View:
        """The view with these changes, whatever its size."""
        changes = {f.name: getattr(self, f.name) for f in fields(ViewChanges)}
        return ViewChanges(**changes).of(view)


@dataclass(frozen=True)
class Draws:
    """Parameters drawn for ``n`` samples: CPU tensors with one row per sample.

    A sample that is not jittered has factors 1 and hue 0, one that is not blurred has sigma 0.
    """

    boxes: Tensor | None
    """Crops, shape ``(n, 4)``: top, left, height, width in pixels; None for cropped images."""
    flip: Tensor  # boolean, as `gray` and `solarize`
    brightness: Tensor  # factors, as `contrast` and `saturation`
    contrast: Tensor
    saturation: Tensor
    hue: Tensor  # in turns
    order: Tensor
    """Order of the four colour operations, shape ``(n, 4)``, see `color.color_jitter`."""
    gray: Tensor
    sigma: Tensor  # in pixels
    solarize: Tensor

    def __getitem__(self, rows: slice) -> "Draws":
        """The draws of some of the samples."""
        picked: dict[str, Any] = {k: x if x is None else x[rows] for k, x in vars(self).items()}
        return Draws(**picked)


def draw_boxes(
    n: int,
    size: tuple[int, int],
    scale: tuple[float, float],
    ratio: tuple[float, float],
    generator: torch.Generator,
) -> Tensor:
    """Draw crop boxes as ``RandomResizedCrop`` does: area uniform, aspect ratio log-uniform.

    The first of ten candidates that fits into an image of ``size`` (height, width) is taken, or
    else the largest centred box with an allowed aspect ratio. For ``scale`` and ``ratio`` see
    `View`.

    Returns:
        Integer tensor of shape ``(n, 4)``: top, left, height, width, in pixels.
    """
    height, width = size
    low, high = math.log(ratio[0]), math.log(ratio[1])
    draws = torch.rand(3, n, 10, generator=generator)
    area = height * width * (scale[0] + (scale[1] - scale[0]) * draws[0])
    aspect = torch.exp(low + (high - low) * draws[1])
    w = torch.sqrt(area * aspect).round().long()
    h = torch.sqrt(area / aspect).round().long()
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = fits.int().argmax(dim=1, keepdim=True)
    w, h = w.gather(1, first).squeeze(1), h.gather(1, first).squeeze(1)

    clamped = min(max(width / height, ratio[0]), ratio[1])
    whole_w = max(1, min(width, round(height * clamped)))
    whole_h = max(1, min(height, round(width / clamped)))
    found = fits.any(dim=1)
    w = torch.where(found, w, whole_w)
    h = torch.where(found, h, whole_h)

    u, v = draws[2, :, 0], draws[2, :, 1]
    top = torch.where(found, (u * (height - h + 1)).long(), (height - h) // 2)
    left = torch.where(found, (v * (width - w + 1)).long(), (width - w) // 2)
    return torch.stack((top, left, h, w), dim=1)
