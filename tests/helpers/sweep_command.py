"""A stand-in for the command that writes its files at once, and a pool without processes."""

import json
import os
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

import duality_ssl
from duality_ssl.sweeps.job import Job


def command(words: Sequence[str]) -> None:
    """Fit or test: `model.base_lr` 7 is refused, 8 raises, 9 kills the process, 99 interrupts."""
    given = {flag[2:]: yaml.safe_load(value) for flag, value in pairwise(words) if flag[:2] == "--"}
    if "--print_config" in words:
        if "model.gamma" in given:
            refuse("VICReg has no option 'gamma'. Did you mean beta?")
        sys.stdout.write(yaml.safe_dump(resolved(given)))
        raise SystemExit(0)
    with Path("calls.txt").open("a") as file:
        file.write(f"{json.dumps([*words])}\n")
    if words[0] == "fit":
        fit(resolved(given), resumed="ckpt_path" in given)
    else:
        evaluate(given)


def resolved(given: dict[str, Any]) -> dict[str, Any]:
    model = {"weight_decay": 1, "base_lr": 0, "in_channels": 1} | part(given, "model.")
    return {
        "seed_everything": given.get("seed_everything", 0),
        "experiment": given.get("experiment"),
        "model": {"class_path": f"duality_ssl.{given['model']}", "init_args": model},
        "data": {"source": "digits", "root": None, "validation": 0} | part(given, "data."),
        "trainer": {"default_root_dir": "runs", "max_epochs": 1} | part(given, "trainer."),
        "evaluation": {"k": 5} | part(given, "evaluation."),
    }


def part(given: dict[str, Any], group: str) -> dict[str, Any]:
    return {k.removeprefix(group): v for k, v in given.items() if k.startswith(group)}


def fit(config: dict[str, Any], resumed: bool) -> None:
    beta = config["model"]["init_args"]["base_lr"]
    folder = Path(config["trainer"]["default_root_dir"], config["experiment"])
    versions = folder / config["model"]["class_path"].rpartition(".")[2]
    number = len([*versions.glob("version_*")]) - resumed
    run = versions / f"version_{number}"
    run.mkdir(parents=True, exist_ok=True)
    text = f"# duality_ssl {duality_ssl.__version__}\n{yaml.safe_dump(config)}"
    (run / "config.yaml").write_text(text)
    if beta == 7:
        refuse("Expected a better beta.")
    if beta == 8:
        raise RuntimeError("out of\nmemory")
    if beta == 9:
        os._exit(9)
    if beta == 99 and not resumed:
        raise KeyboardInterrupt
    top1 = 0.5 + beta / 100 + config["seed_everything"] / 1000
    (run / "metrics.csv").write_text(f"epoch,step,val/probe_top1\n0,5,{top1}\n")


def evaluate(given: dict[str, Any]) -> None:
    if "ckpt_path" in given:
        run = Path(given["ckpt_path"])
        values = yaml.safe_load((run / "config.yaml").read_text())["model"]["init_args"]
        path = run / "checkpoints/evaluation.json"
    else:
        values = part(given, "model.")
        path = Path(given["trainer.default_root_dir"], "evaluation.json")
    beta = values.get("base_lr", 0)
    scores = {"few_label_top1": 0.5 + beta / 100, "rankme": 10 - beta, "method": "VICReg"}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(scores | {"num_train": 3, "arrays": {"spectrum": [1.0]}}))


def refuse(sentence: str) -> None:
    sys.stderr.write(f"duality-ssl: error: {sentence}\n")
    raise SystemExit(2)


def calls() -> list[list[str]]:
    """The commands that were run."""
    path = Path("calls.txt")
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


class InlinePool:
    """Does a job when it is submitted, in this process."""

    on_slurm = False
    shares: list[int] = []  # noqa: RUF012

    def __init__(self, folder: Path, size: int | None, slurm: dict[str, Any]) -> None:
        self.size = size or 1

    def submit(self, job: Job) -> Callable[[], None]:
        self.shares.append(len(job.runs))
        job()
        return lambda: None

    def ended(self, started: object) -> bool:
        return True

    def stop(self, jobs: Sequence[object]) -> None:
        """Nothing runs."""
