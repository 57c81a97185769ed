"""A run killed by SIGKILL and resumed ends with the results of an uninterrupted run.

``DUALITY_SSL_KILLS`` is the number of random kills for each number of workers.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers.crash_runs import Kill, end, start
from helpers.resume_stubs import scalars, unequal

KILLS = int(os.environ.get("DUALITY_SSL_KILLS", "3"))
RUN = "runs/digits/VICReg/version_0"
HOOKS = "duality_ssl.callbacks."
CONFIG: dict[str, Any] = {
    "trainer": {
        "accelerator": "cpu",
        "max_epochs": 3,
        "log_every_n_steps": 1,
        "val_check_interval": 3,
        "limit_val_batches": 3,
    },
    "data": {"source": "digits", "batch_size": 16, "image_size": 8, "subset": 100},
    "last_checkpoint": {"every_n_steps": 1},
    "duality": {"every_n_steps": 2},
    "model": {
        "class_path": "VICReg",
        "init_args": {
            "backbone": "resnet_tiny",
            "projector": "16-16",
            "in_channels": 1,
            "warmup_epochs": 1,
        },
    },
}


def words(folder: Path, *more: str) -> list[str]:
    """The command that starts the run and resumes it."""
    config = folder / "run.yaml"
    config.write_text(yaml.safe_dump(CONFIG))
    return ["fit", "-c", str(config), *more, "--ckpt_path", "last"]


def results(folder: Path) -> dict[str, Any]:
    """What a run writes."""
    return {
        "checkpoint": torch.load(folder / RUN / "checkpoints/last.ckpt", weights_only=True),
        "metrics.csv": (folder / RUN / "metrics.csv").read_text(),
        "TensorBoard": scalars(folder / RUN),
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Results of the uninterrupted run, and how long its process takes."""
    folder = tmp_path_factory.mktemp("whole")
    end(start(folder, ["--help"]))  # the server is up
    began = time.monotonic()
    assert end(start(folder, words(folder))) == 0, log(folder)
    return results(folder) | {"seconds": time.monotonic() - began}


def log(folder: Path) -> str:
    return (folder / "log.txt").read_text()


def check(folder: Path, whole: dict[str, Any]) -> None:
    found = results(folder)
    assert unequal(found, {name: whole[name] for name in found}) == []
    assert not list(folder.rglob("*.tmp"))
    assert [run.name for run in (folder / RUN).parent.iterdir()] == ["version_0"]


@pytest.mark.slow
@pytest.mark.timeout(300 + 30 * KILLS)
@pytest.mark.parametrize("workers", [0, 2])
def test_random_kills(workers: int, whole: dict[str, Any], tmp_path: Path) -> None:
    draw, killed, runs = random.Random(workers), 0, 0
    while killed < KILLS:
        folder = tmp_path / str(runs)
        folder.mkdir()
        code = -signal.SIGKILL
        while code:
            process = start(folder, words(folder, "--data.num_workers", str(workers)))
            # any moment of the process, start and end included
            seconds = draw.uniform(0, whole["seconds"]) if killed < KILLS else None
            code = end(process, seconds)
            assert code in (0, -signal.SIGKILL), log(folder)
            killed += code != 0
        check(folder, whole)
        runs += 1


AIMED = {
    "in the first batches": Kill(
        "duality_ssl.callbacks.StepSeed.on_train_batch_start", 2, "before"
    ),
    "batch end": Kill(HOOKS + "OnlineKNN.on_train_batch_end", 2, "after"),
    "middle of a checkpoint": Kill("torch.save", 2, "half way"),
    "checkpoint not renamed": Kill("pathlib.Path.replace", 4, "before"),
    "previous.ckpt but no last.ckpt": Kill("pathlib.Path.replace", 3, "before"),
    "within validation": Kill(HOOKS + "RankMe.on_validation_batch_end", 5, "after"),
    "metrics of a validation": Kill(
        "duality_ssl.callbacks.RankMe.on_validation_epoch_end", 2, "after"
    ),
    "best.ckpt written": Kill(HOOKS + "BestCheckpoint.on_validation_end", 2, "after"),
    "end of an epoch": Kill(HOOKS + "RunProgress.on_train_epoch_end", 1, "after"),
    "start of an epoch": Kill(
        "duality_ssl.callbacks.LastCheckpoint.on_train_epoch_start", 1, "after"
    ),
    "end of the run": Kill(HOOKS + "LastCheckpoint.on_train_end", 1, "before"),
}


def test_aimed_kills(whole: dict[str, Any], tmp_path: Path) -> None:
    """One run dies at each of these in turn."""
    for name, kill in AIMED.items():
        code = end(start(tmp_path, words(tmp_path), kill))
        assert code == -signal.SIGKILL, (name, log(tmp_path))
    assert end(start(tmp_path, words(tmp_path))) == 0, log(tmp_path)
    check(tmp_path, whole)


@pytest.mark.slow
def test_two_processes(tmp_path: Path) -> None:
    two = ["--trainer.devices", "2", "--trainer.strategy", "ddp_fork", "--data.batch_size", "8"]
    found = {}
    for name, kills in {
        "whole": [],
        "killed": [Kill(HOOKS + "RankMe.on_validation_end", 2, "after")],
    }.items():
        folder = tmp_path / name
        folder.mkdir()
        for kill in kills:
            assert end(start(folder, words(folder, *two), kill)) != 0
            assert (folder / RUN / "checkpoints/last.ckpt").is_file()
        assert end(start(folder, words(folder, *two))) == 0, log(folder)
        found[name] = results(folder)
    assert unequal(found["killed"], found["whole"]) == []


@pytest.mark.slow
def test_the_command_in_an_interpreter_of_its_own(whole: dict[str, Any], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "duality_ssl", *words(tmp_path)]
    metrics = tmp_path / RUN / "metrics.csv"
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL) as process:
        try:
            while process.poll() is None and not (
                metrics.exists() and metrics.stat().st_size > 2000
            ):
                time.sleep(0.01)
        finally:
            process.kill()
    assert process.returncode == -signal.SIGKILL
    subprocess.run(command, cwd=tmp_path, check=True, timeout=200)
    check(tmp_path, whole)
