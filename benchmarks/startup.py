"""Start of the command, and what decoding at reduced scale saves."""

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import alternate, parser, save
from PIL import Image

from duality_ssl.data import View, create_source
from duality_ssl.data.datasets import FileDataset
from duality_ssl.data.decode import Box, centre_box
from duality_ssl.data.sampler import BatchRequest

Row = dict[str, Any]
IMPORT = "import lightning.pytorch.cli"


def python(*words: str) -> Callable[[], object]:
    """Run Python with these words and nothing to see."""
    return lambda: subprocess.run([sys.executable, *words], capture_output=True, check=True)


def starts(repeats: int, smoke: bool) -> Iterator[Row]:
    """Processes one after the other: the command's beside Lightning's import alone."""
    runs = {"bare": python("-c", ""), "package": python("-c", "import duality_ssl")}
    taken = _in_turn(runs, repeats)
    yield {
        "what": "`import duality_ssl`, beyond the start of Python",
        "seconds": taken["package"] - taken["bare"],
    }
    if smoke:  # each of the others takes seconds
        return
    runs = {
        "lightning": python("-c", IMPORT),
        "help": python("-m", "duality_ssl", "--help"),
        "fit": python("-m", "duality_ssl", "fit", "--help"),
    }
    taken = _in_turn(runs, repeats)
    for name, words in (("help", "--help"), ("fit", "fit --help")):
        yield {
            "what": f"`duality-ssl {words}`",
            "seconds": taken[name],
            "against": f"`{IMPORT}`",
            "against_seconds": taken["lightning"],
            "ratio": taken[name] / taken["lightning"],
        }


def _in_turn(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median over rounds; a process is slow enough for `alternate` to stop at three of them."""
    rounds = [alternate(runs, repeats=1, warmup=int(i == 0)) for i in range(repeats)]
    return {name: statistics.median(taken[name] for taken in rounds) for name in runs}


def decoding(count: int, repeats: int) -> Iterator[Row]:
    """An image of a folder, two crops or the centre, beside a decode of the whole of it."""
    with tempfile.TemporaryDirectory() as folder:
        for width, height in ((500, 375), (2000, 1500))[:count]:
            root = Path(folder, str(width))
            _write_jpegs(root, count, (width, height))
            for side in (224, 96):
                data = FileDataset(
                    create_source("folder", root).load("train"), side, (View(), View()), 0, "error"
                )
                for kind, seed in (("two crops", 0), ("the centre", None)):
                    request = BatchRequest(np.arange(count), 0, seed)
                    taken = alternate(
                        {
                            "ours": lambda data=data, request=request: data[request],
                            "whole": lambda data=data, request=request: _whole(data, request),
                        },
                        repeats,
                    )
                    yield {
                        "what": f"JPEG of {width} x {height} to {kind} of {side}, an image",
                        "seconds": taken["ours"] / count,
                        "against": "decoded whole, resized by Pillow",
                        "against_seconds": taken["whole"] / count,
                        "ratio": taken["ours"] / taken["whole"],
                    }


def _whole(data: FileDataset, request: BatchRequest) -> torch.Tensor:
    """What `FileDataset` does, as torchvision's transforms of PIL images would do it."""
    rows = []
    for index in request.indices.tolist():
        with Image.open(data.images.path(index)) as file:
            image = file.convert("RGB")
        side, boxes = (data.image_size,) * 2, centre_box(data.image_size)
        if request.seed is None:
            parts = [image.resize(side, Image.Resampling.BILINEAR, _edges(*boxes(*image.size)))]
        else:
            drawn = data.draw_crops(*image.size, index, request.epoch)
            crops = [image.crop(tuple(map(int, _edges(box)))) for box in drawn]
            parts = [crop.resize(side, Image.Resampling.BILINEAR) for crop in crops]
        rows += [torch.from_numpy(np.array(part)).permute(2, 0, 1) for part in parts]
    return torch.stack(rows)


def _edges(box: Box) -> tuple[float, float, float, float]:
    return box.left, box.top, box.left + box.width, box.top + box.height


def _write_jpegs(folder: Path, count: int, size: tuple[int, int]) -> None:
    """Noise of several scales, as much of each as in a photograph."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        image = np.full((size[1], size[0], 3), 128.0)
        cells = 4
        while cells < max(size):
            small = rng.normal(0, 40 / (cells / 4) ** 0.7, (cells, cells, 3)).astype(np.float32)
            for channel in range(3):
                grown = Image.fromarray(small[..., channel]).resize(size, Image.Resampling.BICUBIC)
                image[..., channel] += np.asarray(grown)
            cells *= 2
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.jpg")


def main() -> None:
    """Measure, print and save."""
    options = parser(__doc__)
    arguments = options.parse_args()
    smoke = arguments.smoke
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)  # as in a worker
    rows = [
        *starts(1 if smoke else arguments.repeats, smoke),
        *decoding(1 if smoke else 4, 1 if smoke else arguments.repeats),
    ]
    save("startup", rows, arguments.out)


if __name__ == "__main__":
    main()
