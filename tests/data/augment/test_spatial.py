"""Batched operations in space against torchvision's, one sample at a time."""

import math

import pytest
import torch
from helpers.batched import TOLERANCE, each, generator, images
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from duality_ssl.data.augment.spatial import (
    Resampling,
    blur_radius,
    gaussian_blur,
    gaussian_kernels,
    horizontal_flip,
)
from duality_ssl.data.augment.view import draw_boxes


@pytest.mark.parametrize("mode", [InterpolationMode.BILINEAR, InterpolationMode.BICUBIC])
@pytest.mark.parametrize("size", [8, 32, 48], ids=["down", "mixed", "up"])
@pytest.mark.parametrize(("height", "width"), [(25, 61), (30, 64)], ids=["wide", "padded"])
def test_resized_crop(size: int, height: int, width: int, mode: InterpolationMode) -> None:
    x = images(24, 3, height, width)
    boxes = draw_boxes(24, (height, width), (0.01, 1.0), (0.5, 2.0), generator())
    boxes[0] = torch.tensor([0, 0, height, width])
    boxes[1] = torch.tensor([height - 1, width - 1, 1, 1])
    flip = torch.arange(24) % 2 == 0

    def reference(image: Tensor, box: list[int], flipped: bool) -> Tensor:
        out = tv.resized_crop(image, *box, [size, size], mode, antialias=True)
        return tv.horizontal_flip(out) if flipped else out

    expected = each(reference, x, boxes.tolist(), flip.tolist())
    out = Resampling(boxes, size, flip, x.device, mode.value)(x)
    torch.testing.assert_close(out, expected, **TOLERANCE)


def test_horizontal_flip() -> None:
    x = images(4, 3)
    out = horizontal_flip(x.clone(), torch.tensor([True, False, True, False]))
    assert torch.equal(out, torch.stack([x[0].flip(-1), x[1], x[2].flip(-1), x[3]]))


def blur(images: Tensor, sigma: Tensor, radius: int) -> Tensor:
    return gaussian_blur(images.clone(), sigma, gaussian_kernels(sigma, radius))


@pytest.mark.parametrize("radius", [1, 8, 11], ids=["3 taps", "17 taps", "23 taps, SimCLR's"])
def test_gaussian_blur(radius: int) -> None:
    sigma = torch.tensor([0.1, 0.0, 0.7, 2.0, 1.0])
    x = images(5, 3)

    def reference(image: Tensor, s: float) -> Tensor:
        kernel = [2 * min(radius, math.ceil(4 * s)) + 1] * 2
        return tv.gaussian_blur(image, kernel, [s] * 2) if s else image

    out = blur(x, sigma, radius)
    torch.testing.assert_close(out, each(reference, x, sigma.tolist()), **TOLERANCE)
    assert torch.equal(out[1], x[1])


def test_a_narrow_kernel_is_the_wide_one_to_its_tail() -> None:
    x = images(6, 1)
    sigma = torch.tensor([0.1, 0.26, 0.51, 1.0, 1.5, 2.0])
    expected = each(lambda i, s: tv.gaussian_blur(i, [25, 25], [s, s]), x, sigma.tolist())
    out = blur(x, sigma, 12)
    torch.testing.assert_close(out, expected, atol=3e-5, rtol=0)


def test_blur_does_not_depend_on_the_rest_of_the_batch() -> None:
    x = images(8, 3)
    sigma = torch.linspace(0.1, 2.0, 8)
    alone = [blur(x[i : i + 1], sigma[i : i + 1], 8) for i in range(8)]
    torch.testing.assert_close(blur(x, sigma, 8), torch.cat(alone), **TOLERANCE)


def test_blur_is_simclrs_at_224_pixels() -> None:
    x = torch.rand(1, 1, 64, 64, generator=generator())
    out = blur(x, torch.tensor([2.0]), blur_radius(2.0, 224))
    torch.testing.assert_close(out, tv.gaussian_blur(x, [23, 23], [2.0, 2.0]), atol=2e-4, rtol=0)
