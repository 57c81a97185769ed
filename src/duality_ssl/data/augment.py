"""Two random views of a batch: parameters drawn on the CPU, applied on the batch's device."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from duality_ssl.data import color, operations, transforms
from duality_ssl.distributed import SINGLE, Group

_PROBABILITIES = ("flip", "jitter", "gray", "blur", "solarize")
_STRENGTHS = ("brightness", "contrast", "saturation")


@dataclass(frozen=True)
class View:
    """How one view of an image is drawn; the defaults are BYOL's with SimCLR's blur.

    Raises:
        ValueError: If a probability is outside [0, 1], a strength is negative, a range is empty, or
            one of them is not finite.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    """Smallest and largest area of the crop, as fractions of the image's."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest width / height of the crop."""
    flip: float = 0.5
    """Probability of mirroring left and right."""
    jitter: float = 0.8
    """Probability of jittering the colours."""
    brightness: float = 0.4
    """Brightness factor is uniform in 1 -+ this."""
    contrast: float = 0.4
    """Contrast factor is uniform in 1 -+ this."""
    saturation: float = 0.2
    """Saturation factor is uniform in 1 -+ this."""
    hue: float = 0.1
    """Hue shift is uniform in -+ this, in turns; at most 0.5."""
    gray: float = 0.2
    """Probability of dropping the colours."""
    blur: float = 0.5
    """Probability of a Gaussian blur."""
    sigma: tuple[float, float] = (0.1, 2.0)
    """Smallest and largest standard deviation of the blur, in pixels."""
    solarize: float = 0.0
    """Probability of inverting all values from one half on."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in _PROBABILITIES:
            if not 0 <= (p := getattr(self, name)) <= 1:
                raise ValueError(f"Expected `{name}` to be a probability in [0, 1], but got {p}.")
        for name in _STRENGTHS:
            if not 0 <= (strength := getattr(self, name)) < math.inf:
                raise ValueError(
                    f"Expected `{name}` to be finite and 0 or more, but got {strength}."
                )
        if not 0 <= self.hue <= 0.5:
            raise ValueError(f"Expected `hue` to be in [0, 0.5] turns, but got {self.hue}.")
        for name, top in (("scale", " <= 1"), ("ratio", ""), ("sigma", "")):
            low, high = getattr(self, name)
            if not 0 < low <= high < math.inf or (top and high > 1):
                raise ValueError(
                    f"Expected `{name}` to be a finite range 0 < low <= high{top}, but got "
                    f"({low}, {high})."
                )


@dataclass(frozen=True)
class ViewChanges:
    """What one view has otherwise than another; see `View` for what each is.

    None is as the other view has it.
    """

    scale: tuple[float, float] | None = None
    """Smallest and largest area of the crop."""
    ratio: tuple[float, float] | None = None
    """Smallest and largest width / height of the crop."""
    flip: float | None = None
    """Probability of mirroring left and right."""
    jitter: float | None = None
    """Probability of jittering the colours."""
    brightness: float | None = None
    """Strength of the brightness jitter."""
    contrast: float | None = None
    """Strength of the contrast jitter."""
    saturation: float | None = None
    """Strength of the saturation jitter."""
    hue: float | None = None
    """Strength of the hue jitter."""
    gray: float | None = None
    """Probability of dropping the colours."""
    blur: float | None = None
    """Probability of a Gaussian blur."""
    sigma: tuple[float, float] | None = None
    """Smallest and largest standard deviation of the blur."""
    solarize: float | None = None
    """Probability of inverting all values from one half on."""

    def of(self, view: View) -> View:
        """The view with these changes."""
        changes = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(view, **{name: x for name, x in changes.items() if x is not None})


@dataclass(frozen=True)
class Draws:
    """What was drawn for ``n`` samples; CPU tensors with one row a sample.

    A sample that is not jittered or blurred has the identity's parameters (factors 1, hue 0, sigma
    0).
    """

    boxes: Tensor | None
    """Crops, shape ``(n, 4)``: top, left, height, width in pixels; None where the crop is done."""
    flip: Tensor
    """Mirrored or not, boolean."""
    brightness: Tensor
    """Factors."""
    contrast: Tensor
    """Factors."""
    saturation: Tensor
    """Factors."""
    hue: Tensor
    """Shifts in turns."""
    order: Tensor
    """Order of the four colour operations, shape ``(n, 4)``, see `transforms.color_jitter`."""
    gray: Tensor
    """Colours dropped or not, boolean."""
    sigma: Tensor
    """Standard deviation of the blur in pixels."""
    solarize: Tensor
    """Solarised or not, boolean."""

    def __getitem__(self, rows: slice) -> "Draws":
        """The draws of some of the samples."""
        columns: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        picked: dict[str, Any] = {k: x if x is None else x[rows] for k, x in columns.items()}
        return Draws(**picked)


def draw(
    view: View, n: int, generator: torch.Generator, size: tuple[int, int] | None = None
) -> Draws:
    """Draw all parameters of one view.

    Args:
        view: The distributions.
        n: Number of samples.
        generator: Source of randomness, on the CPU: the draws are the same whatever device they are
            applied on.
        size: Height and width of the images to crop, in pixels; None when they are cropped already.

    Returns:
        The parameters. How many numbers are drawn does not depend on the probabilities.
    """
    boxes = (
        None if size is None else transforms.draw_boxes(n, size, view.scale, view.ratio, generator)
    )
    u = torch.rand(10, n, generator=generator)
    jittered = u[0] < view.jitter

    def factor(strength: float, draws: Tensor) -> Tensor:
        low, high = max(0.0, 1 - strength), 1 + strength
        return torch.where(jittered, low + (high - low) * draws, 1.0)

    low, high = view.sigma
    return Draws(
        boxes=boxes,
        flip=u[1] < view.flip,
        brightness=factor(view.brightness, u[2]),
        contrast=factor(view.contrast, u[3]),
        saturation=factor(view.saturation, u[4]),
        hue=torch.where(jittered, view.hue * (2 * u[5] - 1), 0.0),
        order=torch.rand(n, 4, generator=generator).argsort(dim=1),
        gray=u[6] < view.gray,
        sigma=torch.where(u[7] < view.blur, low + (high - low) * u[8], 0.0),
        solarize=u[9] < view.solarize,
    )


class Augmentation:
    """One view's augmentation: ``uint8`` batch in, normalised float batch out.

    Args:
        view: The distributions that parameters are drawn from.
        image_size: Side of the output, in pixels.
        mean: Mean of each channel, for values in [0, 1].
        std: Standard deviation of each channel, for values in [0, 1].
    """

    def __init__(
        self, view: View, image_size: int, mean: tuple[float, ...], std: tuple[float, ...]
    ) -> None:
        self.view = view
        self.image_size = image_size
        self.mean = mean
        self.std = std
        self.radius = transforms.blur_radius(view.sigma[1], image_size)

    def draw(
        self, n: int, generator: torch.Generator, size: tuple[int, int] | None = None
    ) -> Draws:
        """Draw the parameters of ``n`` samples, see `draw`."""
        return draw(self.view, n, generator, size)

    @torch.no_grad()
    def apply(self, images: Tensor, draws: Draws) -> Tensor:
        """Apply drawn parameters, on the device of the images.

        Values stay float between the operations, where a chain on 8-bit images rounds after each.
        A CPU takes a few samples at a time through all operations, in its caches.

        Args:
            images: ``uint8``, shape ``(N, C, H, W)``, ``C`` 1 or 3; ``H = W = image_size`` if
                ``draws`` has no boxes.
            draws: What `draw` gave for ``N`` samples.

        Returns:
            Float tensor of shape ``(N, C, image_size, image_size)``, normalised.
        """
        device = images.device
        out = operations.empty(
            (len(images), images.shape[1], self.image_size, self.image_size), device
        )
        chunk = operations.chunk_size(out[0].numel()) if device.type == "cpu" else len(images)
        with torch.autocast(device.type, enabled=False):  # bfloat16 has fewer bits than the images
            steps = self.operations(draws, device)
            for first in range(0, len(images), chunk):
                x = images[first : first + chunk]
                if draws.boxes is None:
                    x = x.float().div_(255)
                for operation in steps:
                    x = operation(x, first)
                transforms.normalize(x, self.mean, self.std, out[first : first + chunk])
        return out

    def operations(self, d: Draws, device: torch.device) -> list[Callable[[Tensor, int], Tensor]]:
        """What is done between scaling and normalising, in order, with the parameters drawn."""
        size = self.image_size
        return [
            transforms.HorizontalFlip(d.flip, device)
            if d.boxes is None
            else transforms.ResizedCrop(d.boxes, size, d.flip, 1 / 255, device),
            color.ColorJitter(d.brightness, d.contrast, d.saturation, d.hue, d.order, device),
            color.Grayscale(d.gray, device),
            transforms.GaussianBlur(d.sigma, self.radius, device),
            color.Solarize(d.solarize, device),
        ]

    def __call__(
        self,
        images: Tensor,
        generator: torch.Generator,
        *,
        cropped: bool = False,
        group: Group = SINGLE,
    ) -> Tensor:
        """Draw for the batch of all processes, and apply what this one's images get.

        Args:
            images: This process's, as for `apply`.
            generator: Source of randomness, in the same state on every process.
            cropped: Whether the images were cropped where they were decoded.
            group: Processes that share the batch, with as many images each.

        Returns:
            What one process with the whole batch makes of these images.
        """
        size = None if cropped else (images.shape[2], images.shape[3])
        # a number drawn costs nothing beside a pixel changed: draw all, and keep one's own
        draws = self.draw(group.world_size * len(images), generator, size)
        return self.apply(images, draws[group.own(len(images))])
