"""Batched operations on values against torchvision's, one sample at a time."""

import itertools

import pytest
import torch
from helpers.batched import TOLERANCE, each, generator, images
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from duality_ssl.data.augment.color import color_jitter, grayscale, normalize, solarize

CHANNELS = pytest.mark.parametrize("channels", [1, 3], ids=["grey", "rgb"])


@CHANNELS
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_each_colour_operation_alone(channels: int, name: str) -> None:
    n = 9
    values = torch.linspace(-0.5, 0.5, n) if name == "hue" else torch.linspace(0, 2, n)
    arguments = {k: torch.ones(n) for k in ("brightness", "contrast", "saturation")}
    arguments |= {"hue": torch.zeros(n), name: values}
    order = torch.rand(n, 4, generator=generator()).argsort(dim=1)
    x = images(n, channels)
    expected = each(getattr(tv, f"adjust_{name}"), x, values.tolist())
    out = color_jitter(x.clone(), **arguments, order=order)
    torch.testing.assert_close(out, expected, **TOLERANCE)


@CHANNELS
def test_colour_jitter_in_every_order(channels: int) -> None:
    order = torch.tensor(list(itertools.permutations(range(4))))
    n = len(order)
    x = images(n, channels)
    factors = 0.4 + 1.2 * torch.rand(3, n, generator=generator())
    hue = torch.rand(n, generator=generator(1)) - 0.5
    operations = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)

    def reference(image: Tensor, steps: list[int], values: list[float]) -> Tensor:
        for step in steps:
            image = operations[step](image, values[step])
        return image

    values = torch.cat((factors, hue[None])).T.tolist()
    expected = each(reference, x, order.tolist(), values)
    out = color_jitter(x.clone(), *factors, hue, order)
    torch.testing.assert_close(out, expected, **TOLERANCE)


@CHANNELS
def test_grayscale(channels: int) -> None:
    x = images(3, channels)
    out = grayscale(x.clone(), torch.tensor([True, False, True]))
    expected = torch.stack([tv.rgb_to_grayscale(image, channels) for image in x])
    expected[1] = x[1]
    torch.testing.assert_close(out, expected, **TOLERANCE)


def test_solarize() -> None:
    x = images(2, 3)
    out = solarize(x.clone(), torch.tensor([True, False]))
    torch.testing.assert_close(out[0], tv.solarize(x[0], 0.5), **TOLERANCE)
    assert torch.equal(out[1], x[1])


def test_normalize() -> None:
    x, mean, std = images(2, 3), (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    expected = tv.normalize(x, list(mean), list(std))
    torch.testing.assert_close(normalize(x.clone(), mean, std), expected, **TOLERANCE)
