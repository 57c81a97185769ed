"""Every command, block and link of README.md and docs/ is tried; one that nobody can try fails.

Commands of ``duality-ssl`` run in this process on a few small batches, in a folder that has the
configs, a finished run and small folders of images. Those that need GPUs or files that are not
here go through the parser alone. Python blocks run in one process of their own, for they register
methods and backbones (``python test_docs.py``, at the end).
"""

import contextlib
import importlib
import importlib.metadata
import inspect
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import yaml
from PIL import Image

from duality_ssl import methods
from duality_ssl.cli import main
from duality_ssl.cli.command import method_names

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
RUN = Path("runs/digits/VICReg/version_0")


class Block(NamedTuple):
    page: Path
    line: int
    language: str
    text: str

    @property
    def where(self) -> str:
        return f"{self.page.name}:{self.line}"


def fenced(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [Block(page, text[: m.start()].count("\n") + 1, m[1], m[2]) for m in found]


def prose(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[list[str]]:
    """The lines of the bash blocks, and what looks like a command in the prose."""
    lines = [
        line
        for block in fenced(page)
        if block.language == "bash"
        for line in block.text.replace("\\\n", " ").splitlines()
    ]
    lines += re.findall(
        r"`((?:make|duality-ssl|python|pip|sbatch|torchrun|srun) [^`]+)`", prose(page)
    )
    split = [shlex.split(line, comments=True) for line in lines]
    return [words for words in split if words]


BLOCKS = [block for page in PAGES for block in fenced(page)]
COMMANDS = {" ".join(words): words for page in PAGES for words in commands(page)}
PYTHON = [block for block in BLOCKS if block.language == "python"]
MODULE = ["python", "-m", "duality_ssl"]
OWN = {text: words for text, words in COMMANDS.items() if words[:3] == MODULE}


def of(language: str) -> Any:
    chosen = [block for block in BLOCKS if block.language == language]
    return pytest.mark.parametrize("block", chosen, ids=lambda block: block.where)


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
    """A folder as the pages suppose it: the configs, a run on the digits, two folders of images."""
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
    return folder


@pytest.fixture
def workspace(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "work"
    # no command changes a file that is there: it writes another, or puts another in its place
    shutil.copytree(template, folder, symlinks=True, copy_function=os.link)
    monkeypatch.chdir(folder)
    return folder


def values(words: Sequence[str], *flags: str) -> list[str]:
    return [value for flag, value in pairwise(words) if flag in flags]


def out_of_reach(words: Sequence[str]) -> bool:
    """Whether a command needs more than one process, a GPU, or files that are not here."""
    configs = [Path(value) for value in values(words, "-c", "--config")]
    hardware = {path.stem for path in configs if path.parent.name == "hardware"}
    sources = {path.stem for path in configs if path.parent.name == "data"}
    missing = {"imagenet", "cifar10", "cifar100", "stl10"}
    missing |= set() if FASHION_MNIST.is_dir() else {"fashion_mnist"}
    devices = {int(count) for count in values(words, "--trainer.devices")}
    return bool(
        hardware - {"cpu", "cpu_bf16"}
        or sources & missing
        or any(path.parent.name == "experiments" for path in configs)
        or devices - {1}
    )


def shortened(words: Sequence[str]) -> list[str]:
    """The same command on a few small batches, images and draws."""
    small = ["--trainer.enable_model_summary", "false", "--data.batch_size", "32"]
    if words[0] == "fit":
        resumed = "--ckpt_path" in words  # the run that is there has one epoch
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
    """Run a command of duality-ssl, and see that it wrote what it is there to write."""
    if {"--help", "--model.help", "--print_config"} & set(words):
        return leave_well(words)
    if out_of_reach(words):
        return leave_well([*words, "--print_config"])
    patterns = {"fit": "*.ckpt", "test": "evaluation*.json", "predict": "*.np[yz]"}
    before = {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*")}
    main(shortened(words))
    written = Path("runs").rglob(patterns.get(words[0], "*"))
    assert any(before.get(path) != path.stat().st_mtime_ns for path in written) or (
        words[0] == "validate"
    )
    return None


def leave_well(words: Sequence[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(words)
    assert done.value.code == 0


def resolved(words: Sequence[str]) -> dict[str, Any]:
    """The config that a command resolves to."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        leave_well([*words, "--print_config"])
    config: dict[str, Any] = yaml.safe_load(said.getvalue())
    return config


# --------------------------------------------------------------------------------------------------
# How each command is tried; what is not here fails


def try_make(words: list[str]) -> None:
    make = subprocess.run(["make", "-n", *words], cwd=ROOT, capture_output=True, text=True)
    assert make.returncode == 0, make.stderr
    given = [word.removeprefix("ARGS=") for word in words[1:] if word.startswith("ARGS=")]
    assert len(given) == len(words) - 1
    if words[0] == "fit":
        run(["fit", *shlex.split(" ".join(given))])
    elif words[0] == "results" and given:
        try_python(["benchmarks/results.py", *shlex.split(given[0])])


def try_python(words: list[str]) -> None:
    """A script of this repository, by what its help says."""
    script = [sys.executable, str(ROOT / words[0]), "--help"]
    done = subprocess.run(script, capture_output=True, text=True, check=True)
    said = set(re.findall(r"[\w-]+", done.stdout))
    assert {word for word in words[1:] if not word.isdigit()} <= said


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
    """Lightning wants to be told what the launcher was told."""
    trainer = resolved(words)["trainer"]
    assert (trainer["num_nodes"], trainer["devices"]) == (nodes, processes)
    assert trainer["strategy"]["class_path"].endswith("DDPStrategy")


def try_tensorboard(words: list[str]) -> None:
    assert [point.name for point in importlib.metadata.entry_points(name="tensorboard")]
    assert words == ["--logdir", "runs"]


def try_sbatch(words: list[str]) -> None:
    """What the script gives to `fit` is looked at in test_launch.py; here, what follows it."""
    assert (ROOT / words[0]).read_text().startswith("#!")
    leave_well(["fit", "--model", "VICReg", *words[1:], "--print_config"])


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


@pytest.mark.filterwarnings(
    "ignore:The run goes on with other values than before",
    "ignore:Without --ckpt_path the network is as it was drawn",
    r"ignore:\w+ is off",  # images without labels
)
@pytest.mark.parametrize("text", sorted(COMMANDS.keys() - OWN.keys()))
def test_command(text: str, workspace: Path) -> None:
    try_command(COMMANDS[text])


def try_command(words: list[str]) -> None:
    assert words[0] in TRIED_BY, f"Nobody knows how to try `{words[0]}`: say how in TRIED_BY."
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
    "script": "python benchmarks/result.py",
    "option of a script": "python benchmarks/results.py --rendre",
    "extra": "pip install -e .[bolt]",
    "processes": f"srun --nodes 2 --ntasks-per-node 4 --gpus-per-node 4 {LAUNCHED}",
    "nodes": "torchrun --nnodes 4 --nproc_per_node 8 -m duality_ssl " + LAUNCHED.partition(" ")[2],
}


@pytest.mark.parametrize("text", WRONG.values(), ids=WRONG)
def test_wrong_command_is_noticed(text: str, workspace: Path) -> None:
    with pytest.raises((AssertionError, SystemExit, subprocess.CalledProcessError)):
        try_command(shlex.split(text))


@of("yaml")
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
    """What became of each Python block and of the commands that use them; empty if all is well."""
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
    """Run the blocks in order, those with the name of a file as modules, then their commands."""
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
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            act()
    except BaseException as error:  # the end of the process, too, is an outcome
        return f"{type(error).__name__}: {error}\n{said.getvalue()}"
    return ""


# --------------------------------------------------------------------------------------------------
# What pages say in passing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_fence_has_a_language_that_is_tried(page: Path) -> None:
    assert page.read_text("utf-8").count("```") == 2 * len(fenced(page))
    assert {block.language for block in fenced(page)} <= {"bash", "python", "yaml", "text"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_resolve(page: Path) -> None:
    targets = re.findall(r"\]\(([^)]+)\)", prose(page))
    inside = [target for target in targets if not target.startswith("https://")]
    for target in inside:
        path, _, anchor = target.partition("#")
        linked = page.parent / path if path else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


def anchors(page: Path) -> set[str]:
    """What a link may name within a page: its headings, as they are spelt in addresses."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_map_names_every_page() -> None:
    linked = set(re.findall(r"\]\((\w+\.md)\)", (ROOT / "docs/README.md").read_text("utf-8")))
    assert linked == {page.name for page in PAGES if page.name != "README.md"}


def test_table_of_methods_is_complete() -> None:
    table = (ROOT / "README.md").read_text("utf-8").partition("## Methods")[2].partition("## ")[0]
    named = set(re.findall(r"`(\w+)`", table))
    assert {path.stem for path in ROOT.glob("configs/methods/*.yaml")} <= named
    assert set(method_names()) <= named


@pytest.mark.parametrize("page", ["README.md", "docs/results.md"])
@pytest.mark.parametrize("table", ["digits", "fashion_mnist"])
def test_tables_are_there_and_as_the_figures_say(
    page: str, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (ROOT / page).read_text("utf-8")
    found = re.findall(rf"<!-- table {table} -->\n(.*?)<!-- end {table} -->", text, re.DOTALL)
    assert len(found) == 1
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    results = importlib.import_module("results")
    figures = results.FIGURES / f"{table}.jsonl"
    assert figures.is_file()
    rows = [json.loads(line) for line in figures.read_text().splitlines()]
    assert found[0].strip() == results.table(rows).strip()


def test_what_the_results_say_of_the_digits() -> None:
    lines = (ROOT / "docs/results/digits.jsonl").read_text().splitlines()
    rows = {row["row"]: row for row in map(json.loads, lines)}
    untrained, pixels = rows.pop("untrained"), rows.pop("pixels")
    for column in ("linear_top1", "few_label_top1"):
        worst = min(row[column] for row in rows.values())
        assert worst > pixels[column] > untrained[column]
    dimension = {"vicreg", "vicreg_exp", "barlow_twins", "tcr"}
    families = [
        [row["few_label_top1"] for name, row in rows.items() if (name in dimension) is chosen]
        for chosen in (True, False)
    ]
    assert max(map(min, families)) < min(map(max, families))  # the two ranges overlap
    ranks = [row["rankme"] for row in rows.values()]
    assert max(ranks) > 3 * min(ranks)


@pytest.fixture(scope="module")
def options() -> set[str]:
    """Every option that the command line has."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        for command in ("fit", "test"):
            leave_well([command, "--help"])
    arguments = {
        name
        for method in method_names()
        for name in inspect.signature(vars(methods)[method]).parameters
    }
    return set(re.findall(r"--[\w.]+", said.getvalue())) | {f"--model.{name}" for name in arguments}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_exist(page: Path, options: set[str]) -> None:
    groups = "|".join(sorted({option[2:].split(".")[0] for option in options if "." in option}))
    written = set(re.findall(rf"`(--(?:{groups})\.[\w.]*\w)", prose(page)))
    assert [option for option in written - options if not option.endswith(".NAME")] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_metrics_exist(page: Path, template: Path) -> None:
    header = (template / RUN / "metrics.csv").read_text().splitlines()[0].split(",")
    written = set(re.findall(r"`((?:train|val|duality)/\w+)`", prose(page)))
    assert written <= set(header)


def test_keys_of_the_evaluation_are_those_written(workspace: Path) -> None:
    run(["test", "--ckpt_path", str(RUN)])
    written = json.loads((RUN / "checkpoints/evaluation.json").read_text())
    table = (ROOT / "docs/evaluation.md").read_text("utf-8").partition("| key |")[2]
    rows = re.findall(r"^\| (`.*?) \| ", table.partition("\n\n")[0], re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", " ".join(rows))) == written.keys()


if __name__ == "__main__":
    print(json.dumps(try_python_blocks()))
