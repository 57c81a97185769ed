"""The whole augmentation of a batch."""

import pytest
import torch
from helpers.batched import TOLERANCE, generator, images
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from duality_ssl.data import Augmentation, Draws, View
from duality_ssl.distributed import Group

CHANNELS = pytest.mark.parametrize("channels", [1, 3], ids=["grey", "rgb"])


@CHANNELS
@pytest.mark.parametrize("cropped", [False, True], ids=["crop here", "cropped before"])
def test_whole_chain(channels: int, cropped: bool) -> None:
    """Crop, flip, jitter, grey, blur, solarise, normalise, in this order, from drawn parameters."""
    n, size = 32, 24
    augment = Augmentation(View(solarize=0.3), size, (0.4,) * channels, (0.2,) * channels)
    x = (images(n, channels, size, size) * 255).to(torch.uint8)
    draws = augment.view.draw(n, generator(), None if cropped else (size, size))
    kernel = [2 * augment.radius + 1] * 2

    def reference(i: int) -> Tensor:
        y = x[i] / 255
        if draws.boxes is not None:
            y = tv.resized_crop(y, *draws.boxes[i].tolist(), [size, size], antialias=True)
        y = tv.horizontal_flip(y) if draws.flip[i] else y
        for step in draws.order[i].tolist():
            name = ("brightness", "contrast", "saturation", "hue")[step]
            y = getattr(tv, f"adjust_{name}")(y, getattr(draws, name)[i].item())
        y = tv.rgb_to_grayscale(y, channels) if draws.gray[i] else y
        y = tv.gaussian_blur(y, kernel, [draws.sigma[i].item()] * 2) if draws.sigma[i] else y
        y = tv.solarize(y, 0.5) if draws.solarize[i] else y
        return tv.normalize(y, [0.4] * channels, [0.2] * channels)

    out = augment.apply(x, draws)
    expected = torch.stack([reference(i) for i in range(n)])
    # Rounding decides about a pixel at solarise's threshold: allow for one in a thousand.
    assert ((out - expected).abs() > 1e-3).float().mean() < 1e-3
    assert not out.requires_grad
    assert out.dtype == torch.float32


@pytest.mark.parametrize(
    ("n", "size"), [(12, 16), (50, 64), (2, 224)], ids=["one chunk", "two chunks", "large images"]
)
def test_samples_do_not_depend_on_each_other(n: int, size: int) -> None:
    augment = Augmentation(View(solarize=0.3), size, (0.5,) * 3, (0.2,) * 3)
    x = (images(n, 3) * 255).to(torch.uint8)
    before = x.clone()
    draws = augment.view.draw(n, generator(), (20, 24))
    single = [augment.apply(x[i : i + 1], draws[i : i + 1]) for i in range(n)]
    torch.testing.assert_close(augment.apply(x, draws), torch.cat(single), **TOLERANCE)
    assert torch.equal(x, before)


def test_autocast_does_not_reach_the_operations() -> None:
    augment = Augmentation(View(), 16, (0.5,) * 3, (0.2,) * 3)
    x = (images(4, 3) * 255).to(torch.uint8)
    draws = augment.view.draw(4, generator(), (20, 24))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = augment.apply(x, draws)
    assert torch.equal(out, augment.apply(x, draws))


@pytest.mark.parametrize(("world", "cropped"), [(2, True), (3, False)], ids=["cropped", "whole"])
def test_processes_augment_as_one(world: int, cropped: bool) -> None:
    augment = Augmentation(View(solarize=0.3), 16, (0.5,) * 3, (0.2,) * 3)
    x = (images(12, 3, 16, 16) * 255).to(torch.uint8)
    expected = augment(x, generator(), cropped=cropped)
    parts = [
        augment(part, generator(), cropped=cropped, group=Group(rank, world))
        for rank, part in enumerate(x.chunk(world))
    ]
    assert torch.equal(torch.cat(parts), expected)


def test_bicubic_crops_are_clamped() -> None:
    view = View(interpolation="bicubic", jitter=0, gray=0, blur=0)
    augment = Augmentation(view, 24, (0.0,) * 3, (1.0,) * 3)
    x = (images(16, 3).round() * 255).to(torch.uint8)  # black or white: it overshoots everywhere
    draws = view.draw(16, generator(), (20, 24))

    def reference(i: int) -> Tensor:
        box, mode = draws.boxes[i].tolist(), InterpolationMode.BICUBIC
        y = tv.resized_crop(x[i] / 255, *box, [24, 24], mode, antialias=True).clamp(0, 1)
        return tv.horizontal_flip(y) if draws.flip[i] else y

    out = augment.apply(x, draws)
    torch.testing.assert_close(out, torch.stack([reference(i) for i in range(16)]), **TOLERANCE)


def test_views_can_be_trained_on() -> None:
    """They are written in inference mode, but are ordinary tensors."""
    augment = Augmentation(View(), 8, (0.5,), (0.2,))
    views = augment(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), generator())
    weight = torch.ones(1, requires_grad=True)
    (weight * views).sum().backward()
    torch.testing.assert_close(weight.grad, views.sum().view(1))


def test_small_images_can_be_blurred() -> None:
    augment = Augmentation(View(blur=1.0), 4, (0.5,), (0.2,))
    out = augment(torch.full((2, 1, 4, 4), 128, dtype=torch.uint8), generator())
    assert out.isfinite().all()


def test_draws_can_be_pinned() -> None:
    """What a test or a notebook needs: no randomness but what is given."""
    n = 2
    pinned = Draws(
        boxes=None,
        flip=torch.tensor([False, True]),
        brightness=torch.ones(n),
        contrast=torch.ones(n),
        saturation=torch.ones(n),
        hue=torch.zeros(n),
        order=torch.arange(4).expand(n, 4),
        gray=torch.zeros(n, dtype=torch.bool),
        sigma=torch.zeros(n),
        solarize=torch.zeros(n, dtype=torch.bool),
    )
    x = torch.arange(32, dtype=torch.uint8).view(2, 1, 4, 4)
    out = Augmentation(View(), 4, (0.0,), (1 / 255,)).apply(x, pinned)
    torch.testing.assert_close(out, torch.stack([x[0], x[1].flip(-1)]).float(), atol=1e-4, rtol=0)
