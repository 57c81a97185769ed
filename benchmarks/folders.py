"""Accuracy of ``fit -c configs/data/folder.yaml`` on folders of few images, with no other option.

Each set is written as files, and each method is two commands, ``duality-ssl fit`` and
``duality-ssl test``. Raw pixels and the untrained network stand beside it.
"""

import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from measure import parser, save_some
from numpy.typing import NDArray
from PIL import Image
from studies import pixel_sets

from duality_ssl.data import SSLDataModule, create_source
from duality_ssl.evaluation import Settings, evaluate

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "data" / "folder.yaml"
METHODS = ("VICReg", "SimCLR")
NAMES = ["knn", "linear"]
PROTOCOLS = ["--evaluation.protocols", f"[{','.join(NAMES)}]"]
SCORES = {"5-NN, %": "knn_top1", "linear, %": "linear_top1"}

Row = dict[str, Any]
Pixels = NDArray[np.float64]
Labelled = Iterator[tuple[str, NDArray[np.uint8]]]


# --------------------------------------------------------------------------------------------------
# The sets: names of classes and images, (S, S, 3)


def shapes(split: str, count: int) -> Labelled:
    """Nine shapes and patterns of 64 pixels: any place, size, turn and hue, on a noisy ground."""
    draw = np.random.default_rng(split == "val")
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, 64)] * 2))
    for number in range(count):
        name = list(SHAPES)[number % len(SHAPES)]
        angle, place = draw.normal(0, 0.25), draw.uniform(-0.3, 0.3, 2)
        x, y = (grid - place[:, None, None]) / draw.uniform(0.45, 0.8)
        x, y = np.cos(angle) * x - np.sin(angle) * y, np.sin(angle) * x + np.cos(angle) * y
        mask = SHAPES[name](x, y) & (np.maximum(abs(x), abs(y)) < 1)
        yield name, colored(mask[..., None].astype(float), draw)


SHAPES: dict[str, Callable[[Pixels, Pixels], NDArray[np.bool_]]] = {
    "disc": lambda x, y: x**2 + y**2 < 0.8,
    "ring": lambda x, y: abs(x**2 + y**2 - 0.6) < 0.3,
    "square": lambda x, y: np.maximum(abs(x), abs(y)) < 0.8,
    "frame": lambda x, y: abs(np.maximum(abs(x), abs(y)) - 0.7) < 0.2,
    "triangle": lambda x, y: (y < 0.7) & (y > 2 * abs(x) - 0.9),
    "cross": lambda x, y: np.minimum(abs(x), abs(y)) < 0.28,
    "stripes": lambda x, y: np.sin(9 * y) > 0,
    "bars": lambda x, y: np.sin(9 * x) > 0,
    "checks": lambda x, y: np.sin(7 * x) * np.sin(7 * y) > 0,
}


def fashion(split: str, count: int) -> Labelled:
    """Fashion-MNIST at 64 pixels; each image in two colours of its own."""
    yield from recolored("fashion_mnist", 64, split, count)


def digits(split: str, count: int) -> Labelled:
    """Scikit-learn's digits at 32 pixels; each image in two colours of its own."""
    yield from recolored("digits", 32, split, count)


def recolored(name: str, side: int, split: str, count: int) -> Labelled:
    """Grey images of a source as blends of two random colours."""
    draw = np.random.default_rng(split == "val")
    source = create_source(name)
    images = source.load("val" if split == "val" else "train")
    assert source.class_names is not None
    for row in range(min(count, len(images))):
        grey = Image.fromarray(images.images[row, 0].numpy()).resize((side, side))
        mask = np.asarray(grey, float)[..., None] / 255
        yield source.class_names[int(images.labels[row])], colored(mask, draw)


def colored(mask: Pixels, draw: np.random.Generator) -> NDArray[np.uint8]:
    """A dark and a light color, the light one where the mask is 1, and some noise."""
    dark, light = draw.uniform(0, 0.6, 3), draw.uniform(0.4, 1, 3)
    image = dark + (light - dark) * mask + draw.normal(0, 0.04, (*mask.shape[:2], 3))
    pixels: NDArray[np.uint8] = (255 * image.clip(0, 1)).astype(np.uint8)
    return pixels


SETS: dict[str, Callable[[str, int], Labelled]] = {
    "shapes": shapes,
    "fashion": fashion,
    "digits": digits,
}


def write(name: str, folder: Path, train: int, val: int) -> None:
    """Write a set as ``folder/train/<class>/*.png`` and ``folder/val/<class>/*.png``."""
    for split, count in (("train", train), ("val", val)):
        for number, (label, pixels) in enumerate(SETS[name](split, count)):
            path = folder / split / re.sub(r"\W", "_", label) / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)


# --------------------------------------------------------------------------------------------------
# What is learnt


def command(*words: str) -> None:
    """Run ``duality-ssl``."""
    subprocess.run([sys.executable, "-m", "duality_ssl", *words], check=True)


def pretrained(method: str, images: Path, runs: Path, *words: str) -> Row:
    """Fit one method, and evaluate its last epoch: one row."""
    given = ["-c", str(CONFIG), "--model", method, "--data.root", str(images)]
    started = time.perf_counter()
    command("fit", *given, "--trainer.default_root_dir", str(runs), *words)
    minutes = (time.perf_counter() - started) / 60
    checkpoints = runs / "folder" / method / "version_0" / "checkpoints"
    command("test", "--ckpt_path", str(checkpoints / "last.ckpt"), *PROTOCOLS)
    return {**accuracies(checkpoints / "evaluation.json"), "minutes": minutes}


def untrained(images: Path, runs: Path) -> Row:
    """Evaluate the network that the recipe chooses, with random weights: one row."""
    given = ["-c", str(CONFIG), "--model", METHODS[0], "--data.root", str(images)]
    command("test", *given, "--trainer.default_root_dir", str(runs), *PROTOCOLS)
    return accuracies(runs / "evaluation.json")


def accuracies(evaluation: Path) -> Row:
    """The two accuracies of an evaluation, in percent."""
    scores = json.loads(evaluation.read_text())
    return {name: 100 * scores[key] for name, key in SCORES.items()}


def pixels(images: Path) -> Row:
    """Evaluate the pixels of the images as vectors, at the side of the views: one row."""
    data = SSLDataModule("folder", images, image_size=32)
    scores = evaluate(*pixel_sets(data), settings=Settings(protocols=tuple(NAMES)))
    return {name: 100 * scores[key] for name, key in SCORES.items()}


def measured(name: str, train: int, val: int, *words: str) -> Iterator[Row]:
    """The rows of one set."""
    with tempfile.TemporaryDirectory() as folder:
        images, runs = Path(folder, "images"), Path(folder, "runs")
        write(name, images, train, val)
        yield {"what": name, "who": "raw pixels", **pixels(images)}
        yield {"what": name, "who": "untrained network", **untrained(images, runs)}
        for method in METHODS:
            yield {"what": name, "who": method, **pretrained(method, images, runs, *words)}


def main() -> None:
    """Measure what the command line says."""
    options = parser(__doc__)
    options.add_argument("--only", nargs="+", choices=SETS, default=[*SETS], help="these sets")
    args = options.parse_args()
    counts: tuple[int, int] = (2900, 900)
    words: list[str] = []
    if args.smoke:
        counts, args.only = (120, 60), args.only[:1]
        words = ["--trainer.max_epochs", "1", "--model.warmup_epochs", "0"]
    for name in args.only:  # each takes half an hour: what is measured is kept
        save_some("folders", measured(name, *counts, *words), [name], SETS, args.out)


if __name__ == "__main__":
    main()
