"""Batches of images, and torchvision's operations on them one sample at a time."""

from collections.abc import Callable

import torch
from torch import Tensor

TOLERANCE = {"atol": 1e-5, "rtol": 0}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(n: int, channels: int, height: int = 20, width: int = 24) -> Tensor:
    """Random images with exact greys, primaries, black and white among their pixels."""
    x = torch.rand(n, channels, height, width, generator=generator(7))
    x[:, :, 0, :4] = torch.tensor([0.0, 1.0, 0.5, 0.25])
    if channels == 3:
        x[:, :, 1, :6] = torch.tensor(
            [[1.0, 0, 0, 1, 1, 0], [0.0, 1, 0, 1, 0, 1], [0.0, 0, 1, 0, 1, 1]]
        )
    return x


def each(function: Callable[..., Tensor], x: Tensor, *arguments: list[object]) -> Tensor:
    """Call torchvision's function once a sample."""
    rows = zip(x, *arguments, strict=True)
    return torch.stack([function(image, *rest) for image, *rest in rows])
