"""Batched operations on the values of pixels.

Images are float tensors of shape ``(N, C, H, W)`` with values in [0, 1], ``C`` 1 or 3, and are
overwritten. Parameters are CPU tensors with one row per sample. Given the same parameters, every
operation agrees with ``torchvision.transforms.v2.functional`` on float images; on grey images
saturation, hue and greyscale are identities, as there.
"""

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

GRAY_WEIGHTS = (0.2989, 0.587, 0.114)  # ITU-R 601-2 luma, as in torchvision


def change_drawn(
    images: Tensor, drawn: Tensor, change: Callable[..., Tensor], *parameters: Tensor
) -> Tensor:
    """Apply ``change(images, *parameters)`` to the drawn samples of a batch, in place if possible.

    ``drawn`` (shape ``(N,)``) and the parameters are on the CPU: a GPU never has to be waited for.
    """
    if drawn.all():
        return change(images, *parameters)
    if drawn.any():
        places = drawn.nonzero().squeeze(1)
        index = upload(places, images.device)
        changed = change(images.index_select(0, index), *(each[places] for each in parameters))
        # a CPU copies value by value: 16 bytes at a time take a fourth of the time
        fits = images.shape[3] * images.element_size() % 16 == 0
        wide = torch.complex128 if fits else images.dtype
        images.view(wide).index_copy_(0, index, changed.view(wide))
    return images


def upload(parameters: Tensor, device: torch.device) -> Tensor:
    """Copy small CPU tensors to a device, without waiting for it."""
    return parameters.to(device, non_blocking=True)


def luma(images: Tensor) -> Tensor:
    """Grey value of RGB images, shape ``(N, 1, H, W)``; a copy of grey images."""
    if images.shape[1] == 1:
        return images.clone()
    red, green, blue = images.split(1, dim=1)
    r, g, b = GRAY_WEIGHTS
    return red.mul(r).add_(green, alpha=g).add_(blue, alpha=b)


def color_jitter(
    images: Tensor,
    brightness: Tensor,
    contrast: Tensor,
    saturation: Tensor,
    hue: Tensor,
    order: Tensor,
) -> Tensor:
    """Jitter brightness, contrast, saturation and hue, each sample in its own order.

    Factors of 1 and shifts of the hue by 0, in turns, are the identity. ``order`` has permutations
    of (0 brightness, 1 contrast, 2 saturation, 3 hue), shape ``(N, 4)``.
    """
    adjust = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)
    values = torch.stack((brightness, contrast, saturation, hue), dim=1)
    drawn = values != torch.tensor((1.0, 1.0, 1.0, 0.0))
    # by sample, step and operation
    turns = (order.unsqueeze(2) == torch.arange(4)) & drawn.unsqueeze(1)
    for step, number in turns.any(dim=0).nonzero().tolist():
        images = change_drawn(images, turns[:, step, number], adjust[number], values[:, number])
    return images


def adjust_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Multiply the values by a factor per sample."""
    return images.mul_(_per_sample(factor, images)).clamp_(0, 1)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Blend each image with the mean of its grey values."""
    return _blend(images, luma(images.mean(dim=(2, 3), keepdim=True)), factor)


def adjust_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Blend each image with its grey values."""
    return images if images.shape[1] == 1 else _blend(images, luma(images), factor)


def _blend(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """``factor * images + (1 - factor) * other``."""
    factor = _per_sample(factor, images)
    return images.mul_(factor).add_(other.mul_(1 - factor)).clamp_(0, 1)


def _per_sample(values: Tensor, images: Tensor) -> Tensor:
    return upload(values.view(-1, 1, 1, 1), images.device)


def adjust_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue.

    Hue is a position on the hexagon of largest and smallest channel, ``v`` and ``m``. In units of
    the chroma ``c = v - m``, from red over yellow at 1 and green at 2 to cyan at 3, it is

        |h| c = v + G + B - R - 2 m, with the sign of G - B,

    and a channel whose own colour is ``a`` units away from the hue has the value
    ``v + c - a c`` within ``[m, v]``. So nothing is divided, and no pixel is a special case. The
    shift is in turns, in [-0.5, 0.5].
    """
    if images.shape[1] == 1:
        return images
    # Counted from the colour opposite to each channel's own, which is then at 3 and at -3.
    ahead = torch.add(torch.tensor((6.0, 4.0, 2.0)), shift.view(-1, 1), alpha=6).remainder_(6) - 3
    red, green, blue = images.split(1, dim=1)
    value = torch.maximum(torch.maximum(red, green), blue)
    least = torch.minimum(torch.minimum(red, green), blue)
    chroma = value - least
    hue = (green + blue).sub_(red).add_(value).sub_(least, alpha=2).copysign_(green - blue)
    away = torch.addcmul(hue, chroma, upload(ahead.view(-1, 3, 1, 1), images.device))
    away.abs_().sub_(chroma, alpha=3).abs_()
    torch.sub(chroma.add_(value), away, out=away)
    return torch.clamp(away, least, value, out=images)


def grayscale(images: Tensor, drawn: Tensor) -> Tensor:
    """Replace the drawn images by their grey values, in all channels."""
    if images.shape[1] == 1:
        return images
    return change_drawn(images, drawn, lambda x: x.copy_(luma(x)))


def solarize(images: Tensor, drawn: Tensor) -> Tensor:
    """Invert every value of at least 0.5 in the drawn images.

    The threshold 0.5 is BYOL's; torchvision and PIL say 128 of 255, which is the same for 8-bit
    values. A value of at least one half is at least its inverse.
    """
    return change_drawn(images, drawn, lambda x: torch.minimum(x, 1 - x, out=x))


def normalize(
    images: Tensor, mean: tuple[float, ...], std: tuple[float, ...], out: Tensor | None = None
) -> Tensor:
    """Subtract each channel's mean and divide by its standard deviation; into ``out`` if given."""
    shift, factor = _standardisation(mean, std, images.device)
    return torch.mul(images.sub_(shift), factor, out=images if out is None else out)


@lru_cache(maxsize=16)
def _standardisation(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    if not all(s > 0 for s in std):
        raise ValueError(
            f"Expected the images' source to have a positive `std` for each channel, but got {std}."
        )
    shift, factor = torch.tensor(mean), 1 / torch.tensor(std)
    return upload(shift.view(-1, 1, 1), device), upload(factor.view(-1, 1, 1), device)
