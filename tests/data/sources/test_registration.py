"""The registry of sources, and sets in memory."""

from typing import Any

import pytest
import torch
from helpers.image_files import pixels

from duality_ssl.data import (
    ArrayImages,
    ImageSource,
    available_sources,
    create_source,
    register_source,
)
from duality_ssl.data.sources import FashionMNIST, base


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("fashion-mnist", "Did you mean fashion_mnist"),
        ("CIFAR10", "Did you mean cifar10, cifar100"),
        ("xyz", "image source 'xyz'. Available: .*cifar10, cifar100, digits"),
    ],
)
def test_unknown_source_names_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(ValueError, match=hint):
        create_source(name)


class Noise(ImageSource):
    """Random pixels without labels."""

    channels, image_size, mean, std = 3, 8, (0.5,) * 3, (0.3,) * 3
    class_names = None

    def load(self, split: str) -> ArrayImages:
        return ArrayImages(torch.from_numpy(pixels(10, 3, 8, 8)))


@pytest.fixture
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a test register sources without the others seeing them."""
    monkeypatch.setattr(base, "_SOURCES", dict(base._SOURCES))


@pytest.mark.usefixtures("_own_registry")
@pytest.mark.parametrize(
    ("decorator", "name"),
    [(register_source, "Noise"), (register_source("white_noise"), "white_noise")],
)
def test_a_source_of_ones_own(decorator: Any, name: str) -> None:
    assert decorator(Noise) is Noise
    assert decorator(Noise) is Noise, "as a notebook's cell that is run twice does"
    assert name in available_sources()
    assert create_source(name).load("pretrain").labels.tolist() == [-1] * 10


@pytest.mark.usefixtures("_own_registry")
def test_a_name_is_of_one_source() -> None:
    register_source(Noise)
    with pytest.raises(ValueError, match="'Noise' is taken: give the decorator another one"):
        register_source("Noise")(FashionMNIST)


@pytest.mark.parametrize(
    "thing",
    [3, ArrayImages, Noise(), ImageSource],
    ids=["number", "no source", "instance", "abstract"],
)
def test_what_is_no_source_is_refused(thing: Any) -> None:
    for register in (register_source, register_source("other")):
        with pytest.raises(ValueError, match="Expected an image source to be a subclass of Image"):
            register(thing)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("no_module_at_all.Noise", "There is no module 'no_module_at_all'. Available: .*digits"),
        (f"{__name__}.Noize", f"no 'Noize' in '{__name__}'. Did you mean Noise"),
        (f"{__name__}.pixels", "subclass of ImageSource .* but got <function pixels"),
        (f"{__name__}.ImageSource", "with `class_names` and `load`, but got"),
    ],
)
def test_source_at_a_dotted_path(path: str, said: str) -> None:
    assert len(create_source(f"{__name__}.Noise").load("val")) == 10
    with pytest.raises(ValueError, match=said):
        create_source(path)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(2, 3, 4, 4), None, r"uint8 .* but got torch.float32 of shape \(2, 3, 4, 4\)"),
        (torch.zeros(2, 4, 4, dtype=torch.uint8), None, r"\(N, C, H, W\), but got .*\(2, 4, 4\)"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(3), "2 images and labels of"),
    ],
    ids=["float", "3-D", "too many labels"],
)
def test_bad_arrays(images: torch.Tensor, labels: torch.Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ArrayImages(images, labels)
