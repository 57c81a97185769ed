"""Options that follow from the images: how many they are, how large, and what trains on them.

`survey` looks at the files, `recommend` chooses. Neither is asked for a run that is resumed.
"""

import os
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image

from duality_ssl.data.decode import FORMATS
from duality_ssl.data.sources import Folder, create_source
from duality_ssl.data.sources.layout import list_images

_HEADERS = 64  # files that are opened for their size, evenly spaced
# where the choices change
_FEW, _MANY = 10_000, 100_000  # images
_SMALL = 128  # pixels; on a CPU bfloat16 is the faster only for the small network of these


class Choice(NamedTuple):
    """The value of an option, and why."""

    value: Any
    reason: str


@dataclass(frozen=True)
class Survey:
    """What a folder of images holds."""

    images: int
    """Images to train on, those held out for validation included."""
    side: int
    """Median of the shorter sides, in pixels."""


def survey(source: str, root: Path | str | None, subset: int | float | None) -> Survey | None:
    """Count the images of a folder, and read the size of up to 64 of them from their headers.

    Args:
        source: As in `SSLDataModule`, as the others.
        root: Folder of the images.
        subset: Count or fraction of the images that are used; None for all.

    Returns:
        None if there are no images to look at: what is wrong is said when they are loaded.

    Raises:
        ValueError: If the source does not read files.
    """
    if not isinstance(create_source(source, root), Folder):
        raise ValueError(
            f"Expected a source of image files for --recipe auto, such as folder, but got "
            f"{source!r}: set --recipe none, and the options yourself."
        )
    if root is None or not Path(root).is_dir():
        return None
    train = Path(root, "train")
    listing = list_images(train) if train.is_dir() else list_images(Path(root), without="val")
    names = listing.images
    count = len(names)
    places = sorted({i * count // _HEADERS for i in range(_HEADERS)}) if names else []
    sides = [_side(listing.folder / names[place]) for place in places]
    known = [side for side in sides if side]
    if subset is not None:
        count = round(subset * count) if isinstance(subset, float) else min(subset, count)
    return Survey(count, round(statistics.median(known))) if known and count else None


def _side(path: Path) -> int | None:
    """The shorter side of an image; None if its header cannot be read."""
    try:
        with Image.open(path, formats=FORMATS) as file:
            return min(file.size)
    except Exception:  # as in `read_crops`; the loader reports the file
        return None


def recommend_here(
    images: int, side: int, accelerator: str, epochs: int | None = None
) -> dict[str, Choice]:
    """`recommend` for this machine; ``accelerator`` as ``trainer.accelerator``."""
    gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    if gpu:
        bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:  # AVX512-BF16 or AMX; without them bfloat16 is emulated, and slower than float32
        read: Callable[[], Mapping[str, Any]] = getattr(torch.cpu, "get_capabilities", dict)
        found = read()  # nothing in older releases
        bfloat16 = any(found.get(name, False) for name in ("avx512_bf16", "amx_bf16"))
    # a container may have fewer than the machine
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return recommend(images, side, "gpu" if gpu else "cpu", cores or 1, bfloat16, epochs)


def recommend(
    images: int,
    side: int,
    accelerator: str,
    cores: int,
    bfloat16: bool,
    epochs: int | None = None,
) -> dict[str, Choice]:
    """Choose the options of a fit that suit a set of images.

    Args:
        images: Number of images to train on.
        side: Their median side in pixels.
        accelerator: "cpu" or "gpu".
        cores: CPU cores of this process.
        bfloat16: Whether the accelerator computes in bfloat16.
        epochs: Length of the fit, if it is given: the warm-up follows it.

    Returns:
        Choices by the dotted names of the options, in the order in which they are printed.
    """
    gpu = accelerator == "gpu"
    return {
        **_network(images, side, gpu),
        **_training(images, side, gpu, epochs),
        **_views(images),
        **_machine(gpu, cores, bfloat16 and (gpu or side <= _SMALL)),
    }


def _network(images: int, side: int, gpu: bool) -> dict[str, Choice]:
    """Size of the views, a network whose stem suits it, and its projector."""
    small = side <= _SMALL
    if gpu:
        size = (32 if side <= 48 else 64) if small else 224
        backbone = "resnet18_32" if small else "resnet18" if images < _MANY else "resnet50"
    else:
        size = (16 if side <= 20 else 32) if small else 64
        backbone = "resnet_tiny" if small else "resnet18"
    stem = "a stem for small images" if small else "a stem for large images"
    depth = "shallow, for few images" if images < _MANY else "deep, for many images"
    return {
        "data.image_size": Choice(size, f"images of about {side} pixels, on a {_device(gpu)}"),
        "model.backbone": Choice(backbone, f"{stem}; {depth}" if gpu else f"{stem}; fast on a CPU"),
        "model.projector": Choice(
            "2048-2048-2048" if gpu else "512-512-512", "as wide as the features, or wider"
        ),
    }


def _training(images: int, side: int, gpu: bool, given: int | None) -> dict[str, Choice]:
    """Batch, length and optimizer."""
    batch = 256
    while batch > 2 and batch > max(images / 8, min(16, images / 2)):
        batch //= 2
    # images that the fit sees in all: many epochs of few images, few epochs of many
    seen, least = (8_000_000, 100) if gpu else (200_000 if side <= _SMALL else 60_000, 10)
    epochs = round(min(400, max(least, seen / images)))
    count = f"{images:,} images"
    length = {"trainer.max_epochs": Choice(epochs, f"{count}: {epochs * images:,} seen in all")}
    if given and given > 0:
        length, epochs = {}, given
    sgd = {"class_path": "torch.optim.SGD", "init_args": {"momentum": 0.9}}
    adamw = {"class_path": "torch.optim.AdamW"}
    few = images < _MANY
    name = "AdamW" if few else "SGD"
    return {
        "data.batch_size": Choice(batch, f"{count}: {images // batch} steps an epoch"),
        **length,
        "model.optimizer": Choice(
            adamw if few else sgd, f"{count}: {'learns in few steps' if few else 'many steps'}"
        ),
        "model.base_lr": Choice(0.002 if few else 0.12, f"suits {name}, for a batch of 256"),
        "model.weight_decay": Choice(1e-4, f"suits {name}"),
        "model.warmup_epochs": Choice(round(epochs / 20, 1), "a twentieth of the epochs"),
    }


def _views(images: int) -> dict[str, Choice]:
    """Strength of the augmentation."""
    few = images < _FEW
    smallest = 0.4 if few else 0.2 if images < _MANY else 0.08
    strength = f"{images:,} images: {'gentle' if few else 'strong'}"
    return {
        "data.view1.scale": Choice([smallest, 1.0], f"{strength} crops, by area"),
        "data.view1.blur": Choice(0.0 if few else 0.5, f"{strength} blur"),
    }


def _machine(gpu: bool, cores: int, bfloat16: bool) -> dict[str, Choice]:
    """Workers and precision."""
    workers = min(8, cores - 1) if cores > 2 else 0
    busy = "one is left to the network" if workers else "the network needs them"
    choices = {"data.num_workers": Choice(workers, f"{cores} CPU cores: {busy}")}
    if bfloat16:
        reason = f"this {_device(gpu)} has bfloat16 instructions"
        choices["trainer.precision"] = Choice("bf16-mixed", reason)
    return choices


def _device(gpu: bool) -> str:
    return "GPU" if gpu else "CPU"


def as_config(choices: dict[str, Choice]) -> dict[str, Any]:
    """The choices as the nested content of a YAML file."""
    config: dict[str, Any] = {}
    for name, (value, _) in choices.items():
        *groups, option = name.replace("model.", "model.init_args.", 1).split(".")
        inside = config
        for group in groups:
            inside = inside.setdefault(group, {})
        inside[option] = value
    return config


def describe(found: Survey, choices: dict[str, Choice], kept: set[str]) -> str:
    """The choices in a block, a line each, but for those that the user has replaced.

    ``kept`` has the dotted names of the others; a class is ``NAME.class_path``.
    """
    shown = [
        (name, _short(value), reason)
        for name, (value, reason) in choices.items()
        if {name, f"{name}.class_path"} & kept
    ]
    widths = [max((len(row[i]) for row in shown), default=0) for i in range(2)]
    lines = [f"  {a:<{widths[0]}}  {b:<{widths[1]}}  {reason}" for a, b, reason in shown]
    first = (
        f"Chosen for {found.images:,} images of about {found.side} pixels; what you set is kept, "
        "and --recipe none chooses nothing:"
    )
    return "\n".join([first, *lines])


def _short(value: Any) -> str:
    """A value as it is typed; a class by its name."""
    return value["class_path"].rpartition(".")[2] if isinstance(value, dict) else str(value)
