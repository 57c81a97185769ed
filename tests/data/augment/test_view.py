"""Draws of a view, and the recipes of the shipped configs."""

import warnings
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
import yaml
from helpers.batched import generator
from jsonargparse import ArgumentParser
from torchvision.transforms import v2

from duality_ssl.data import SSLDataModule, View, ViewChanges
from duality_ssl.data.augment.view import draw_boxes

RECIPES = Path(__file__).parents[3] / "configs" / "augmentations"


def test_draws_have_the_asked_probabilities_and_ranges() -> None:
    n = 20_000
    view = View(
        **{"flip": 0.3, "jitter": 0.6, "gray": 0.1, "blur": 0.9, "solarize": 0.25},
        **{"brightness": 0.4, "contrast": 0.3, "saturation": 0.2, "hue": 0.1, "sigma": (0.5, 1.5)},
    )
    d = view.draw(n, generator(), (100, 100))
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
    d = View(jitter=0.5, gray=0.5, solarize=0.5).draw(20_000, generator(), (100, 100))
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
    one, other = (v.draw(8, generator(), (9, 9)) for v in (View(), View(blur=0, gray=1, jitter=0)))
    assert torch.equal(one.boxes, other.boxes)
    assert torch.equal(one.flip, other.flip)
    assert torch.equal(one.order, other.order)


@pytest.mark.parametrize("size", [(64, 64), (40, 90), (8, 8)], ids=["square", "wide", "tiny"])
def test_boxes_are_distributed_as_torchvisions(size: tuple[int, int]) -> None:
    n = 4000
    ours = draw_boxes(n, size, (0.08, 1.0), (3 / 4, 4 / 3), generator()).float()
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
    boxes = draw_boxes(5, size, (1.0, 1.0), (3 / 4, 4 / 3), generator())
    top, left, height, width = boxes[0].tolist()
    assert height == min(size[0], round(size[1] * 4 / 3))
    assert width == min(size[1], round(size[0] * 4 / 3))
    assert (top, left) == ((size[0] - height) // 2, (size[1] - width) // 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"flip": 1.5}, r"`flip` to be in \[0, 1\], but got 1.5"),
        ({"contrast": -1}, r"`contrast` to be in \[0, 1e\+06\], but got -1"),
        ({"brightness": float("nan")}, "`brightness` to be in .* but got nan"),
        ({"saturation": float("inf")}, "`saturation` to be in .* but got inf"),
        ({"sigma": (0.1, float("inf"))}, r"`sigma` to be a range .* but got \(0.1, inf\)"),
        ({"ratio": (float("nan"), 1)}, r"`ratio` to be a range .* but got \(nan, 1\)"),
        ({"interpolation": "cubic"}, "`interpolation` to be bilinear or bicubic, but got cubic"),
        ({"hue": 0.7}, r"`hue` to be in \[0, 0.5\], but got 0.7"),
        ({"scale": (0.5, 0.2)}, r"`scale` to be a range .* but got \(0.5, 0.2\)"),
        ({"scale": (0.5, 1.2)}, r"`scale` to be a range .* but got \(0.5, 1.2\)"),
        ({"sigma": (0, 2)}, r"`sigma` to be a range .* but got \(0, 2\)"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_view(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        View(**arguments)


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
    assert (view1.scale, view1.flip, view1.gray) == ((0.3, 1.0), 0, 0)


def test_changes_have_the_fields_of_a_view_and_change_nothing_unasked() -> None:
    assert [f.name for f in fields(ViewChanges)] == [f.name for f in fields(View)]
    view = View(flip=0, sigma=(0.5, 1.0))
    assert ViewChanges().of(view) == view
    assert ViewChanges(flip=0.0, sigma=(1.0, 2.0)).of(View()) == View(flip=0, sigma=(1.0, 2.0))
    with pytest.raises(ValueError, match="`flip` to be in"):
        ViewChanges(flip=2).of(view)
