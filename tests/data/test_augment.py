"""Every batched operation against torchvision's, one sample at a time."""

import itertools
import math
import warnings
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from duality_ssl.data import SSLDataModule, View, ViewChanges, color, transforms
from duality_ssl.data.augment import Augmentation, Draws, draw
from duality_ssl.distributed import Group

TOLERANCE = {"atol": 1e-5, "rtol": 0}  # the issue asks for 1e-3
CPU = torch.device("cpu")
CHANNELS = pytest.mark.parametrize("channels", [1, 3], ids=["grey", "rgb"])
RECIPES = Path(__file__).parents[2] / "configs" / "augmentations"


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


@CHANNELS
@pytest.mark.parametrize("size", [8, 32, 48], ids=["down", "mixed", "up"])
@pytest.mark.parametrize(
    ("height", "width"), [(37, 37), (25, 61), (30, 64)], ids=["square", "wide", "padded"]
)
def test_resized_crop(channels: int, size: int, height: int, width: int) -> None:
    x = images(24, channels, height, width)
    boxes = transforms.draw_boxes(24, (height, width), (0.01, 1.0), (0.5, 2.0), generator())
    boxes[0] = torch.tensor([0, 0, height, width])
    boxes[1] = torch.tensor([height - 1, width - 1, 1, 1])
    flip = torch.arange(24) % 2 == 0

    def reference(image: Tensor, box: list[int], flipped: bool) -> Tensor:
        out = tv.resized_crop(image, *box, [size, size], antialias=True)
        return tv.horizontal_flip(out) if flipped else out

    expected = each(reference, x, boxes.tolist(), flip.tolist())
    out = transforms.ResizedCrop(boxes, size, flip, 1.0, CPU)(x)
    torch.testing.assert_close(out, expected, **TOLERANCE)


@CHANNELS
def test_horizontal_flip(channels: int) -> None:
    x = images(4, channels)
    out = transforms.HorizontalFlip(torch.tensor([True, False, True, False]), CPU)(x.clone())
    assert torch.equal(out, torch.stack([x[0].flip(-1), x[1], x[2].flip(-1), x[3]]))


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
    out = color.ColorJitter(**arguments, order=order, device=CPU)(x.clone())
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
    out = color.ColorJitter(*factors, hue, order, CPU)(x.clone())
    torch.testing.assert_close(out, expected, **TOLERANCE)


@CHANNELS
def test_grayscale(channels: int) -> None:
    x = images(3, channels)
    out = color.Grayscale(torch.tensor([True, False, True]), CPU)(x.clone())
    expected = torch.stack([tv.rgb_to_grayscale(image, channels) for image in x])
    expected[1] = x[1]
    torch.testing.assert_close(out, expected, **TOLERANCE)


@CHANNELS
@pytest.mark.parametrize("radius", [1, 8, 11], ids=["3 taps", "17 taps", "23 taps, SimCLR's"])
def test_gaussian_blur(channels: int, radius: int) -> None:
    sigma = torch.tensor([0.1, 0.0, 0.7, 2.0, 1.0])
    x = images(5, channels)

    def reference(image: Tensor, s: float) -> Tensor:
        kernel = [2 * min(radius, math.ceil(4 * s)) + 1] * 2
        return tv.gaussian_blur(image, kernel, [s] * 2) if s else image

    out = transforms.GaussianBlur(sigma, radius, CPU)(x.clone())
    torch.testing.assert_close(out, each(reference, x, sigma.tolist()), **TOLERANCE)
    assert torch.equal(out[1], x[1])


def test_a_narrow_kernel_is_the_wide_one_to_its_tail() -> None:
    x = images(6, 1)
    sigma = torch.tensor([0.1, 0.26, 0.51, 1.0, 1.5, 2.0])
    expected = each(lambda i, s: tv.gaussian_blur(i, [25, 25], [s, s]), x, sigma.tolist())
    out = transforms.GaussianBlur(sigma, 12, CPU)(x.clone())
    torch.testing.assert_close(out, expected, atol=3e-5, rtol=0)


def test_a_blur_does_not_depend_on_who_is_blurred_with_it() -> None:
    x = images(8, 3)
    sigma = torch.linspace(0.1, 2.0, 8)
    blur = transforms.GaussianBlur(sigma, 8, CPU)
    together = blur(x.clone())
    alone = [blur(x[i : i + 1].clone(), i) for i in range(8)]
    torch.testing.assert_close(together, torch.cat(alone), **TOLERANCE)


def test_our_blur_is_simclrs_at_224_pixels() -> None:
    x = torch.rand(1, 1, 64, 64, generator=generator())
    radius = transforms.blur_radius(2.0, 224)
    out = transforms.GaussianBlur(torch.tensor([2.0]), radius, CPU)(x.clone())
    torch.testing.assert_close(out, tv.gaussian_blur(x, [23, 23], [2.0, 2.0]), atol=2e-4, rtol=0)


@CHANNELS
def test_solarize(channels: int) -> None:
    x = images(2, channels)
    out = color.Solarize(torch.tensor([True, False]), CPU)(x.clone())
    torch.testing.assert_close(out[0], tv.solarize(x[0], 0.5), **TOLERANCE)
    assert torch.equal(out[1], x[1])


@CHANNELS
def test_normalize(channels: int) -> None:
    x = images(2, channels)
    mean, std = (0.1, 0.2, 0.3)[:channels], (0.5, 0.6, 0.7)[:channels]
    expected = tv.normalize(x, list(mean), list(std))
    torch.testing.assert_close(transforms.normalize(x.clone(), mean, std), expected, **TOLERANCE)


@CHANNELS
@pytest.mark.parametrize("cropped", [False, True], ids=["crop here", "cropped before"])
def test_whole_chain(channels: int, cropped: bool) -> None:
    """Crop, flip, jitter, grey, blur, solarise, normalise, in this order, from drawn parameters."""
    n, size = 32, 24
    augment = Augmentation(View(solarize=0.3), size, (0.4,) * channels, (0.2,) * channels)
    x = (images(n, channels, size, size) * 255).to(torch.uint8)
    draws = augment.draw(n, generator(), None if cropped else (size, size))
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


def test_apply_is_the_same_a_sample_at_a_time_and_leaves_its_input() -> None:
    augment = Augmentation(View(solarize=0.3), 16, (0.5,) * 3, (0.2,) * 3)
    x = (images(12, 3) * 255).to(torch.uint8)
    before = x.clone()
    draws = augment.draw(12, generator(), (20, 24))
    single = [augment.apply(x[i : i + 1], draws[i : i + 1]) for i in range(12)]
    torch.testing.assert_close(augment.apply(x, draws), torch.cat(single), **TOLERANCE)
    assert torch.equal(x, before)


@CHANNELS
@pytest.mark.parametrize("cropped", [False, True], ids=["crop here", "cropped before"])
def test_chunks_and_threads_change_nothing(
    channels: int, cropped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    n, size = 14, 16
    augment = Augmentation(View(solarize=0.3), size, (0.5,) * channels, (0.2,) * channels)
    x = (images(n, channels, size, size) * 255).to(torch.uint8)
    draws = augment.draw(n, generator(), None if cropped else (size, size))
    whole = augment.apply(x, draws)
    threads = torch.get_num_threads()
    try:
        for chunk in (1, 3, 7, n - 1):
            monkeypatch.setattr("duality_ssl.data.operations.chunk_size", lambda _, n=chunk: n)
            torch.set_num_threads(1 + chunk % 2)
            torch.testing.assert_close(augment.apply(x, draws), whole, **TOLERANCE)
    finally:
        torch.set_num_threads(threads)


def test_temporaries_are_those_of_a_chunk() -> None:
    """More images need no more memory beside the result."""
    augment = Augmentation(View(blur=1.0), 64, (0.5,) * 3, (0.2,) * 3)

    def peak(n: int) -> int:
        x = torch.zeros(n, 3, 80, 80, dtype=torch.uint8)
        draws = augment.draw(n, generator(), (80, 80))
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
            augment.apply(x, draws)
        events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
        events.sort(key=lambda event: event.start_ns())
        return max(itertools.accumulate(event.nbytes() for event in events))

    chunk = 4 * 2**19  # bytes
    assert chunk < peak(128) < 10 * chunk
    assert peak(256) < 1.2 * peak(128)  # with what is drawn for each


def test_autocast_does_not_reach_the_operations() -> None:
    augment = Augmentation(View(), 16, (0.5,) * 3, (0.2,) * 3)
    x = (images(4, 3) * 255).to(torch.uint8)
    draws = augment.draw(4, generator(), (20, 24))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = augment.apply(x, draws)
    assert torch.equal(out, augment.apply(x, draws))


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("cropped", [False, True], ids=["whole", "cropped"])
def test_processes_augment_as_one(world: int, cropped: bool) -> None:
    augment = Augmentation(View(solarize=0.3), 16, (0.5,) * 3, (0.2,) * 3)
    x = (images(12, 3, 16, 16) * 255).to(torch.uint8)
    expected = augment(x, generator(), cropped=cropped)
    parts = [
        augment(part, generator(), cropped=cropped, group=Group(rank, world))
        for rank, part in enumerate(x.chunk(world))
    ]
    assert torch.equal(torch.cat(parts), expected)


def test_draws_have_the_asked_probabilities_and_ranges() -> None:
    n = 20_000
    view = View(
        **{"flip": 0.3, "jitter": 0.6, "gray": 0.1, "blur": 0.9, "solarize": 0.25},
        **{"brightness": 0.4, "contrast": 0.3, "saturation": 0.2, "hue": 0.1, "sigma": (0.5, 1.5)},
    )
    d = draw(view, n, generator(), (100, 100))
    rates = {
        0.3: d.flip,
        0.6: d.brightness != 1,
        0.1: d.gray,
        0.9: d.sigma > 0,
        0.25: d.solarize,
    }
    for probability, drawn in rates.items():
        assert drawn.float().mean().item() == pytest.approx(probability, abs=0.02)
    assert torch.equal(d.brightness != 1, d.hue != 0)  # jittered as a whole or not at all
    ranges = {
        **{"brightness": (0.6, 1.4), "contrast": (0.7, 1.3), "saturation": (0.8, 1.2)},
        **{"hue": (-0.1, 0.1), "sigma": (0.5, 1.5)},
    }
    for name, (low, high) in ranges.items():
        values = getattr(d, name)
        values = values[values != 0]
        assert low <= values.min() < low + 0.02
        assert high - 0.02 < values.max() <= high
    _, counts = d.order.unique(dim=0, return_counts=True)
    assert len(counts) == 24
    assert counts.min() > 0.8 * n / 24


def test_draws_of_one_operation_say_nothing_of_anothers() -> None:
    d = draw(View(jitter=0.5, gray=0.5, solarize=0.5), 20_000, generator(), (100, 100))
    decided = {
        **{"flip": d.flip, "jitter": d.brightness != 1, "gray": d.gray},
        **{"blur": d.sigma > 0, "solarize": d.solarize},
    }
    both = decided["jitter"] & decided["blur"]  # of these the strengths are drawn too
    strengths = ("brightness", "contrast", "saturation", "hue", "sigma")
    drawn = {name: getattr(d, name) for name in (*strengths, "flip", "gray", "solarize")}
    for columns in (decided, {name: values[both] for name, values in drawn.items()}):
        related = torch.corrcoef(torch.stack([values.double() for values in columns.values()]))
        assert related.fill_diagonal_(0).abs().max() < 0.06


def test_probabilities_change_no_other_draw() -> None:
    one, other = (draw(v, 8, generator(), (9, 9)) for v in (View(), View(blur=0, gray=1, jitter=0)))
    assert torch.equal(one.boxes, other.boxes)
    assert torch.equal(one.flip, other.flip)
    assert torch.equal(one.order, other.order)


@pytest.mark.parametrize("size", [(64, 64), (40, 90), (8, 8)], ids=["square", "wide", "tiny"])
def test_boxes_are_distributed_as_torchvisions(size: tuple[int, int]) -> None:
    n = 4000
    ours = transforms.draw_boxes(n, size, (0.08, 1.0), (3 / 4, 4 / 3), generator()).float()
    torch.manual_seed(0)
    crop = v2.RandomResizedCrop(8)
    image = torch.zeros(1, *size)
    draws = [crop.make_params([image]) for _ in range(n)]
    theirs = torch.tensor(
        [[d[k] for k in ("top", "left", "height", "width")] for d in draws]
    ).float()
    error = theirs.std(0) / n**0.5
    assert ((ours.mean(0) - theirs.mean(0)).abs() < 6 * error + 1e-6).all()
    torch.testing.assert_close(ours.std(0), theirs.std(0), rtol=0.1, atol=0.05)
    # also how one goes with another: place with place, width with height
    related = torch.corrcoef(ours.T), torch.corrcoef(theirs.T)
    torch.testing.assert_close(*related, rtol=0, atol=0.1)
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, :2] + ours[:, 2:] <= torch.tensor(size)).all()


@pytest.mark.parametrize("size", [(10, 200), (200, 10), (1, 1)], ids=["wide", "tall", "one pixel"])
def test_boxes_fall_back_to_the_centre(size: tuple[int, int]) -> None:
    boxes = transforms.draw_boxes(5, size, (1.0, 1.0), (3 / 4, 4 / 3), generator())
    top, left, height, width = boxes[0].tolist()
    assert height == min(size[0], round(size[1] * 4 / 3))
    assert width == min(size[1], round(size[0] * 4 / 3))
    assert (top, left) == ((size[0] - height) // 2, (size[1] - width) // 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"flip": 1.5}, r"`flip` to be a probability in \[0, 1\], but got 1.5"),
        ({"contrast": -1}, "`contrast` to be finite and 0 or more, but got -1"),
        ({"brightness": float("nan")}, "`brightness` to be finite and 0 or more, but got nan"),
        ({"saturation": float("inf")}, "`saturation` to be finite and 0 or more, but got inf"),
        ({"sigma": (0.1, float("inf"))}, r"`sigma` to be a finite range .* but got \(0.1, inf\)"),
        ({"ratio": (float("nan"), 1)}, r"`ratio` to be a finite range .* but got \(nan, 1\)"),
        ({"hue": 0.7}, r"`hue` to be in \[0, 0.5\] turns, but got 0.7"),
        ({"scale": (0.5, 0.2)}, r"`scale` to be a finite range .* but got \(0.5, 0.2\)"),
        ({"scale": (0.5, 1.2)}, r"`scale` to be a finite range .* but got \(0.5, 1.2\)"),
        ({"sigma": (0, 2)}, r"`sigma` to be a finite range .* but got \(0, 2\)"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_view(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        View(**arguments)


def test_small_images_can_be_blurred() -> None:
    augment = Augmentation(View(blur=1.0), 4, (0.5,), (0.2,))
    out = augment(torch.full((2, 1, 4, 4), 128, dtype=torch.uint8), generator())
    assert out.isfinite().all()


def parse(*arguments: str) -> SSLDataModule:
    parser = ArgumentParser()
    parser.add_argument("-c", action="config")
    parser.add_class_arguments(SSLDataModule, "data")
    with warnings.catch_warnings():  # deprecated in favour of a name that older versions lack
        warnings.simplefilter("ignore")
        return parser.instantiate_classes(parser.parse_args(list(arguments))).data


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_parse_and_say_only_what_differs(recipe: Path) -> None:
    views = parse("-c", str(recipe)).views
    assert all(isinstance(view, View) for view in views)
    written = yaml.safe_load(recipe.read_text())["data"]
    assert views[0] == View(**written["view1"])
    assert views[1] == ViewChanges(**written["view2"]).of(views[0])


def test_recipes_can_be_changed_on_the_command_line() -> None:
    changes = ["--data.view2.scale=[0.2, 1]", "--data.view1.blur=0.7", "--data.view1.hue=0.3"]
    view1, view2 = parse("-c", str(RECIPES / "asymmetric.yaml"), *changes).views
    assert (view1.blur, view1.solarize, view1.hue) == (0.7, 0.0, 0.3)
    assert (view2.blur, view2.solarize, view2.hue) == (0.1, 0.2, 0.3)
    assert (view1.scale, view2.scale) == ((0.08, 1.0), (0.2, 1.0))


@pytest.mark.parametrize("order", [("asymmetric", "symmetric"), ("symmetric", "asymmetric")])
def test_the_last_recipe_decides(order: tuple[str, str]) -> None:
    words = [f"-c={RECIPES / name}.yaml" for name in order]
    assert parse(*words).views == parse(words[1]).views


def test_small_images_keep_the_colours_of_a_recipe() -> None:
    for recipe in ("symmetric", "asymmetric"):
        words = [f"-c={RECIPES / name}.yaml" for name in (recipe, "small")]
        expected = [replace(view, blur=0) for view in parse(words[0]).views]
        assert list(parse(*words).views) == expected


DIGITS = {"scale": (0.3, 1.0), "flip": 0, "gray": 0}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((f"-c={RECIPES / 'asymmetric.yaml'}",), {"blur": 0.1, "solarize": 0.2}),
        (("--data.view2.solarize", "0.2"), {"blur": 0, "solarize": 0.2}),
        (("--data.view2={solarize: 0.2}", "--data.view2.flip=0.5"), {"flip": 0.5, "solarize": 0.2}),
    ],
    ids=["recipe", "flag", "mapping"],
)
def test_second_view_starts_from_the_recipe_of_the_data(
    words: tuple[str, ...], expected: dict[str, float], tmp_path: Path
) -> None:
    """A mirrored digit is another sign, in either view."""
    config = tmp_path / "digits.yaml"  # as configs/data/digits.yaml, without other groups
    config.write_text("data: {view1: {scale: [0.3, 1.0], flip: 0, gray: 0, blur: 0}}")
    view1, view2 = parse(f"-c={config}", *words).views
    assert view2 == replace(view1, **expected)
    assert {name: getattr(view1, name) for name in DIGITS} == DIGITS


def test_changes_have_the_fields_of_a_view_and_change_nothing_unasked() -> None:
    assert [f.name for f in fields(ViewChanges)] == [f.name for f in fields(View)]
    view = View(flip=0, sigma=(0.5, 1.0))
    assert ViewChanges().of(view) == view
    assert ViewChanges(flip=0.0, sigma=(1.0, 2.0)).of(View()) == View(flip=0, sigma=(1.0, 2.0))
    with pytest.raises(ValueError, match="`flip` to be a probability"):
        ViewChanges(flip=2).of(view)


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
