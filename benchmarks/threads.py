"""Images a second of a fit alone and beside a busy process, by how OpenMP's threads wait.

    python benchmarks/threads.py
    python benchmarks/threads.py --spin-counts 0 1000 10000

The command as it is beside OpenMP's default, and beside other values of ``GOMP_SPINCOUNT`` if they
are asked for; with images in memory, and with image files that a worker decodes. The busy process
is one loop on one thread.
"""

import itertools
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from measure import parser, save
from PIL import Image
from studies import CONFIGS

from duality_ssl.data import create_source

DEFAULT, OURS = "OpenMP's default", "the command's"
WAITING = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
PLAIN = "import sys; from duality_ssl.cli import main; main(sys.argv[1:])"
SPEED = re.compile(r": ([0-9,]+) images/s")


def fit(waiting: str, words: list[str]) -> float:
    """Images a second that a fit says at its end."""
    environment = {key: value for key, value in os.environ.items() if key not in WAITING}
    command = [sys.executable, "-m", "duality_ssl"]
    if waiting == DEFAULT:
        command = [sys.executable, "-c", PLAIN]
    elif waiting != OURS:
        environment["GOMP_SPINCOUNT"] = waiting
    done = subprocess.run(
        [*command, "fit", *words], env=environment, capture_output=True, text=True, check=True
    )
    return float(SPEED.findall(done.stdout + done.stderr)[-1].replace(",", ""))


@contextmanager
def busy(loops: int) -> Iterator[None]:
    """So many processes that do nothing but count."""
    neighbours = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(loops)
    ]
    try:
        yield
    finally:
        for neighbour in neighbours:
            neighbour.kill()
            neighbour.wait()


def write_files(folder: Path) -> None:
    """Write the training digits as PNG files of 64 pixels, in a folder a class."""
    digits: Any = create_source("digits").load("train")
    for number, (pixels, label) in enumerate(
        zip(digits.images, digits.labels.tolist(), strict=True)
    ):
        path = folder / str(label) / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels[0].numpy()).resize((64, 64)).save(path)


def compare(
    what: str, words: list[str], waits: list[str], repeats: int
) -> Iterator[dict[str, Any]]:
    """Fit in turn, round after round, and take the medians: one row a way of waiting."""
    speeds: dict[tuple[str, int], list[float]] = {}
    for _, loops, waiting in itertools.product(range(repeats), (0, 1), waits):
        with busy(loops):
            speeds.setdefault((waiting, loops), []).append(fit(waiting, words))
    medians = {key: statistics.median(taken) for key, taken in speeds.items()}
    alone = medians[DEFAULT, 0]
    for waiting in waits:
        yield {
            "what": what,
            "waiting": waiting,
            "images/s alone": round(medians[waiting, 0]),
            "images/s beside a busy process": round(medians[waiting, 1]),
            "alone_ratio": medians[waiting, 0] / alone,
            "beside_ratio": medians[waiting, 1] / alone,
        }


def main() -> None:
    """Measure, print and save."""
    options = parser(__doc__)
    options.add_argument("--spin-counts", nargs="*", default=[], help="values of GOMP_SPINCOUNT")
    arguments = options.parse_args()
    smoke = arguments.smoke
    epochs, repeats = ("1", 1) if smoke else ("10", arguments.repeats)
    waits = [DEFAULT, OURS, *arguments.spin_counts]
    common = ["-c", str(CONFIGS / "data" / "digits.yaml"), "--model", "VICReg"]
    common += ["--trainer.max_epochs", epochs, "--model.warmup_epochs", "0"]
    common += ["--trainer.logger", "false", "--trainer.enable_progress_bar", "false"]
    common += ["--without", "[probe, knn, rankme, duality, views]"]
    with tempfile.TemporaryDirectory() as folder:
        write_files(Path(folder))
        files = ["--data.source", "folder", "--data.root", folder, "--data.num_workers", "1"]
        files += ["--data.image_size", "16", "--model.in_channels", "3"]
        runs = {"digits, in memory": [], "digits, as files, one worker": files}
        rows = [
            row
            for what, words in list(runs.items())[: 1 if smoke else None]
            for row in compare(what, [*common, *words], waits, repeats)
        ]
    save("threads", rows, arguments.out)


if __name__ == "__main__":
    main()
