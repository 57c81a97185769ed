"""Every command and every Python and YAML block of the pages is tried.

Commands of ``duality-ssl`` run in this process on a few small batches, in a folder with the
configs, a finished run and small folders of images. Those of README.md run in the fast suite; those
of the other pages in the slow one, and the fast suite parses them. Commands that need GPUs or
missing files are only parsed. Python blocks register methods and backbones, so they run in a
process of their own, which the end of this file starts.
"""

import contextlib
import functools
import importlib.metadata
import io
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from helpers.pages import BLOCKS, PAGES, ROOT, Block, commands, prose
from helpers.synthetic_rows import methods_alone
from PIL import Image
from timm import create_model
from torchvision.models import resnet18

from duality_ssl.cli import main
from duality_ssl.cli.tools import TOOLS

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
RUN = Path("runs/digits/VICReg/version_0")


COMMANDS = {" ".join(words): words for page in PAGES for words in commands(page)}
PYTHON = [block for block in BLOCKS if block.language == "python"]
MODULE = ["python", "-m", "duality_ssl"]
OWN = {text: words for text, words in COMMANDS.items() if words[:3] == MODULE}
IN_README = {" ".join(words) for words in commands(ROOT / "README.md")}
PARSED_ONLY = {"--help", "--model.help", "--print_config"}
# commands that train or evaluate: parsed in the fast suite
LONG = {
    text: words
    for text, words in COMMANDS.items()
    if words[0] == "duality-ssl"
    and text not in IN_README
    and words[1] not in TOOLS
    and not PARSED_ONLY & {*words}
}
# whole grids, whose first and last cells tests/sweeps resolves in the fast suite
GRIDS = {
    text
    for text, words in COMMANDS.items()
    if words[1:2] == ["sweep"] and text not in IN_README and not {"--only", "--dry-run"} & {*words}
}


# --------------------------------------------------------------------------------------------------
# Where commands run


def write_images(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(count)
    for i in range(count):
        pixels = rng.integers(0, 256, (20 + i, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the pages assume: configs, a run on the digits, two folders of images."""
    folder = tmp_path_factory.mktemp("docs")
    for name in ("configs", "benchmarks"):
        (folder / name).symlink_to(ROOT / name)
    write_images(folder / "photos", 8)
    for split in ("train", "val"):
        for number, name in enumerate(("rose", "tulip")):
            write_images(folder / "flowers" / split / name, 4 + number)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        both = ["--probe.representations", "[backbone,projector]"]
        words = ["fit", "-c", "configs/data/digits.yaml", "--model", "VICReg", *both]
        main([*shortened(words), "--trainer.log_every_n_steps", "1"])
        main(["predict", "--ckpt_path", str(RUN)])
        main(shortened(["fit", "-c", "configs/data/digits.yaml", "--model", "BYOL"]))
        words = [
            "fit",
            "-c",
            "configs/data/folder.yaml",
            "--model",
            "VICReg",
            "--data.root",
            "flowers",
        ]
        main([*shortened(words), "--model.backbone", "resnet18"])
        torch.save(resnet18().state_dict(), "resnet18.pth")
        torch.save(create_model("convnext_atto").state_dict(), "convnext_atto.pth")
    return folder


@pytest.fixture
def workspace(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "work"
    # links: no command changes a file in place
    shutil.copytree(template, folder, symlinks=True, copy_function=os.link)
    monkeypatch.chdir(folder)
    return folder


def values(words: Sequence[str], *flags: str) -> list[str]:
    return [value for flag, value in pairwise(words) if flag in flags]


def out_of_reach(words: Sequence[str]) -> bool:
    """Whether a command needs several processes, a GPU, an account, or files that are missing."""
    configs = [Path(value) for value in values(words, "-c", "--config")]
    hardware = {path.stem for path in configs if path.parent.name == "hardware"}
    sources = {path.stem for path in configs if path.parent.name == "data"}
    missing = {"imagenet", "imagenet100", "cifar10", "cifar100", "stl10"}
    missing |= set() if FASHION_MNIST.is_dir() else {"fashion_mnist"}
    devices = {int(count) for count in values(words, "--trainer.devices")}
    return bool(
        hardware - {"cpu", "cpu_bf16", "profile"}
        or sources & missing
        or any(path.parent.name == "experiments" for path in configs)
        or devices - {1}
        or "WandbLogger" in values(words, "--trainer.logger")
    )


def shortened(words: Sequence[str]) -> list[str]:
    """The same command on a few small batches, images and draws."""
    small = ["--trainer.enable_model_summary", "false", "--data.batch_size", "32"]
    if words[0] in TOOLS:
        return [*words]
    if words[0] == "fit":
        resumed = "--ckpt_path" in words  # the run has one epoch
        epochs = values(words, "--trainer.check_val_every_n_epoch") or ["2" if resumed else "1"]
        small += ["--trainer.max_epochs", *epochs, "--trainer.limit_train_batches", "1"]
        small += ["--trainer.limit_val_batches", "1", "--model.warmup_epochs", "0"]
    if words[0] == "test":
        small += ["--evaluation.few_label_draws", "1"]
    if "configs/data/folder.yaml" in values(words, "-c"):
        small += ["--data.batch_size", "4", "--data.image_size", "32", "--data.num_workers", "0"]
        small += ["--model.projector", "16-16"]
    return [*words, *small]


def run(words: Sequence[str]) -> None:
    """Run a command of duality-ssl and check that it writes its files."""
    if words[0] == "sweep":
        return main([*words, "--dry-run"])
    if words[0] == "report":  # alone it is a name in the prose
        return try_report(words) if words[1:] else exits_well([*words, "--help"])
    if PARSED_ONLY & set(words):
        return exits_well(words)
    if out_of_reach(words):
        return parses(words)
    patterns = {"fit": "*.ckpt", "test": "evaluation*.json", "predict": "*.np[yz]"}
    before = {path: path.stat().st_mtime_ns for path in Path().rglob("*")}
    main(shortened(words))
    written = Path().rglob(patterns.get(words[0], "*"))
    assert any(before.get(path) != path.stat().st_mtime_ns for path in written) or (
        words[0] == "validate"
    )
    return None


def try_report(words: Sequence[str]) -> None:
    """Write the page from synthetic rows, in the place of those that the command names."""
    flag = words.index("--out") if "--out" in words else len(words)
    paths = [Path(word) for word in words[1:flag]]
    for path in paths:
        file = path if path.suffix else path / "rows.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(f"{json.dumps(row)}\n" for row in methods_alone()))
    main(words)
    assert (Path(*words[flag + 1 :]) if flag < len(words) else paths[0].parent / "report").is_dir()


def exits_well(words: Sequence[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(words)
    assert done.value.code == 0


def parses(words: Sequence[str]) -> None:
    exits_well([*words, "--print_config"])


def resolved(words: Sequence[str]) -> dict[str, Any]:
    """The config that a command resolves to."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        parses(words)
    config: dict[str, Any] = yaml.safe_load(printed.getvalue())
    return config


# --------------------------------------------------------------------------------------------------
# How each command is tried; a command without an entry in TRIED_BY fails


def try_make(words: list[str]) -> None:
    """Try the commands that the target would run."""
    make = subprocess.run(["make", "-n", *words], cwd=ROOT, capture_output=True, text=True)
    assert make.returncode == 0, make.stderr
    for line in make.stdout.splitlines():
        started = shlex.split(line) if line.startswith(("duality-ssl ", "python ")) else []
        if started:
            try_command(started)


def try_python(words: list[str]) -> None:
    """A script of this repository: its help names every word."""
    known = set(re.findall(r"[\w-]+", help_of(words[0])))
    assert {word for word in words[1:] if not word.isdigit()} <= known


@functools.cache
def help_of(script: str) -> str:
    """What ``--help`` prints, in this process: torch is imported already."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(sys, "argv", [script, "--help"])
        patch.syspath_prepend((ROOT / script).parent)
        with pytest.raises(SystemExit):
            runpy.run_path(str(ROOT / script), run_name="__main__")
    return printed.getvalue()


def try_pip(words: list[str]) -> None:
    assert words[:2] == ["install", "-e"]
    folder, _, extra = words[2].rstrip("]").partition("[")
    project = tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"]
    assert not extra or extra in project["optional-dependencies"]


def try_torchrun(words: list[str]) -> None:
    from torch.distributed.run import parse_args

    launch = parse_args(words)
    assert launch.module
    assert launch.training_script == "duality_ssl"
    try_launched(launch.training_script_args, int(launch.nnodes), int(launch.nproc_per_node))


def try_srun(words: list[str]) -> None:
    launched = words.index("duality-ssl")
    options = dict(zip(words[:launched:2], words[1:launched:2], strict=True))
    assert options.keys() == {"--nodes", "--ntasks-per-node", "--gpus-per-node"}
    assert options["--ntasks-per-node"] == options["--gpus-per-node"]
    nodes, processes = int(options["--nodes"]), int(options["--ntasks-per-node"])
    try_launched(words[launched + 1 :], nodes, processes)


def try_launched(words: list[str], nodes: int, processes: int) -> None:
    """Lightning gets the same numbers as the launcher."""
    trainer = resolved(words)["trainer"]
    assert (trainer["num_nodes"], trainer["devices"]) == (nodes, processes)
    assert trainer["strategy"]["class_path"].endswith("DDPStrategy")


def try_tensorboard(words: list[str]) -> None:
    assert [point.name for point in importlib.metadata.entry_points(name="tensorboard")]
    assert words == ["--logdir", "runs"]


def try_sbatch(words: list[str]) -> None:
    """What follows the script; tests/runs/test_launch.py tests the script itself."""
    assert (ROOT / words[0]).read_text().startswith("#!")
    parses(["fit", "--model", "VICReg", *words[1:]])


TRIED_BY: dict[str, Callable[[list[str]], None]] = {
    "duality-ssl": run,
    "make": try_make,
    "python": try_python,
    "pip": try_pip,
    "torchrun": try_torchrun,
    "srun": try_srun,
    "sbatch": try_sbatch,
    "tensorboard": try_tensorboard,
}


TRIED = [
    pytest.param(text, id=text, marks=[pytest.mark.slow] if text in {*LONG, *GRIDS} else [])
    for text in sorted(COMMANDS.keys() - OWN.keys())
]


@pytest.mark.filterwarnings(
    "ignore:Without --ckpt_path the network is",
    r"ignore:\w+ is off",  # images without labels
)
@pytest.mark.parametrize("text", TRIED)
def test_command(text: str, workspace: Path) -> None:
    try_command(COMMANDS[text])


@pytest.mark.parametrize("text", sorted(LONG), ids=str)
def test_long_command_parses(text: str, workspace: Path) -> None:
    parses(LONG[text][1:])


def try_command(words: list[str]) -> None:
    assert words[0] in TRIED_BY, f"Expected a way to try `{words[0]}` in TRIED_BY."
    TRIED_BY[words[0]](words[1:])


LAUNCHED = "duality-ssl fit -c configs/hardware/multi_node.yaml --model VICReg"
WRONG = {
    "unknown command": "curl https://example.org",
    "target": "make dmeo",
    "method": "duality-ssl fit -c configs/data/digits.yaml --model VicReg",
    "config": "duality-ssl fit -c configs/data/digit.yaml --model VICReg",
    "option that needs a GPU": "duality-ssl fit -c configs/hardware/gpu.yaml --modle VICReg",
    "checkpoint": "duality-ssl test --ckpt_path runs/none",
    "method in make": "make fit ARGS='-c configs/data/digits.yaml --model VicReg'",
    "script": "python benchmarks/study.py",
    "option of a script": "python benchmarks/studies.py --pixel",
    "extra": "pip install -e .[bolt]",
    "processes": f"srun --nodes 2 --ntasks-per-node 4 --gpus-per-node 4 {LAUNCHED}",
    "nodes": "torchrun --nnodes 4 --nproc_per_node 8 -m duality_ssl " + LAUNCHED.partition(" ")[2],
}


@pytest.mark.parametrize("text", WRONG.values(), ids=WRONG)
def test_wrong_command_is_noticed(text: str, workspace: Path) -> None:
    with pytest.raises((AssertionError, SystemExit, FileNotFoundError)):
        try_command(shlex.split(text))


YAML = [block for block in BLOCKS if block.language == "yaml"]


@pytest.mark.parametrize("block", YAML, ids=lambda block: block.where)
def test_yaml_parses(block: Block, workspace: Path) -> None:
    if "pl_bolts" in block.text:
        pytest.importorskip("pl_bolts", reason="needs the bolts extra, which is in dev")
    Path("block.yaml").write_text(block.text)
    config = resolved(
        ["fit", "-c", "configs/data/digits.yaml", "--model", "VICReg", "-c", "block.yaml"]
    )
    for group, content in yaml.safe_load(block.text).items():
        assert content.keys() <= config[group].keys()


@pytest.fixture(scope="module")
def outcomes(template: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The outcome of each Python block and of the commands that use them; empty means success."""
    folder = tmp_path_factory.mktemp("python") / "work"
    shutil.copytree(template, folder, symlinks=True)
    environment = {**os.environ, "PL_TRAINER_FAST_DEV_RUN": "1", "OMP_NUM_THREADS": "1"}
    words = [sys.executable, __file__]
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return result


@pytest.mark.parametrize("name", [*(block.where for block in PYTHON), *OWN])
def test_python_runs(name: str, outcomes: dict[str, str]) -> None:
    assert outcomes[name] == ""


def try_python_blocks() -> dict[str, str]:
    """Run the blocks in order, named files as modules; then the commands that use them."""
    sys.path.insert(0, str(Path.cwd()))
    result = {}
    for block in PYTHON:
        named = re.match(r"# (\w+)\.py\n", block.text)
        if named:
            Path(f"{named[1]}.py").write_text(block.text)
        code = f"import {named[1]}" if named else block.text
        result[block.where] = outcome(lambda code=code: exec(code, {"__name__": "block"}))
    for text, words in OWN.items():
        result[text] = outcome(lambda words=words: run(words[3:]))
    return result


def outcome(act: Callable[[], object]) -> str:
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            act()
    except BaseException as error:  # SystemExit too
        return f"{type(error).__name__}: {error}\n{printed.getvalue()}"
    return ""


# --------------------------------------------------------------------------------------------------
# What the run of the template writes


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_metrics_exist(page: Path, template: Path) -> None:
    header = (template / RUN / "metrics.csv").read_text().splitlines()[0].split(",")
    written = set(re.findall(r"`((?:train|val|duality)/\w+)`", prose(page)))
    assert written <= set(header)


def test_keys_of_the_evaluation_are_those_written(workspace: Path) -> None:
    run(["test", "--ckpt_path", str(RUN)])
    written = json.loads((RUN / "checkpoints/evaluation.json").read_text())
    first, free = (ROOT / "docs/evaluation.md").read_text("utf-8").split("| key |")[1:]
    named, both = map(keys_of, (first, free))
    assert named | both | {f"{key}_features" for key in both} == written.keys()


def keys_of(table: str) -> set[str]:
    rows = re.findall(r"^\| (`.*?) \| ", table.partition("\n\n")[0], re.MULTILINE)
    return set(re.findall(r"`(\w+)`", " ".join(rows)))


if __name__ == "__main__":
    print(json.dumps(try_python_blocks()))
