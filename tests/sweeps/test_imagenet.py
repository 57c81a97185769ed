"""The recipes of ImageNet: their cells are the paper's, and one of them trains."""

import functools
from pathlib import Path
from typing import Any

import pytest
from helpers.image_files import write_folder

from duality_ssl.cli import main
from duality_ssl.sweeps.job import count_parameters
from duality_ssl.sweeps.runs import Planner, Run
from duality_ssl.sweeps.specification import Specification, read_specification

CONFIGS = Path(__file__).parents[2] / "configs"
DIMENSIONS = (256, 512, 1024, 2048, 8192)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "configs").symlink_to(CONFIGS)
    monkeypatch.chdir(tmp_path)


def planned(name: str, number: int) -> Run:
    """The run of one cell."""
    specification, planner = planner_of(name)
    (run,) = planner.runs("grid", specification.cells()[number], specification.seeds)
    return run


@functools.cache
def planner_of(name: str) -> tuple[Specification, Planner]:
    """The cells of a file, and the planner of their runs, which keeps the defaults."""
    specification = read_specification(Path(f"configs/sweeps/imagenet_{name}.yaml"))
    return specification, Planner(specification, main)


def test_figure_1_has_the_cells_of_the_paper() -> None:
    specification, _ = planner_of("figure_1")
    options = [specification.options_of(cell) for cell in specification.cells()]
    assert len(options) == 5 * 3 * 5
    assert {each["model.projector"] for each in options} == {
        *(f"{d}-{d}-{d}" for d in DIMENSIONS),
        *(f"2048-{d}" for d in DIMENSIONS),
        *(f"8192-8192-{d}" for d in DIMENSIONS),
    }
    assert len({str(each) for each in options}) == 5 * 14  # 8192-8192-8192 is d-d-d and 8192-8192-d


RESNET50 = {"backbone": "resnet50", "weight_decay": 1e-6, "warmup_epochs": 10}
SIMCLR = {"temperature": 0.15, "base_lr": 0.5}
# each method, projector and dimension of figure 1 once; all of the others
RECIPES: dict[str, tuple[str, int, str, list[int], dict[str, Any]]] = {
    "VICReg": (
        *("figure_1", 0, "VICReg", [256, 256, 256]),
        {"base_lr": 0.3, "invariance": 25, "variance": 25, "covariance": 1},
    ),
    "VICReg-exp": ("figure_1", 15 + 5 + 1, "VICRegExp", [2048, 512], {"base_lr": 0.3}),
    "VICReg-ctr": ("figure_1", 30 + 10 + 2, "VICRegCtr", [8192, 8192, 1024], {"base_lr": 0.3}),
    "SimCLR, original": (
        *("figure_1", 45 + 3, "SimCLR", [2048] * 3),
        {"temperature": 0.1, "base_lr": 0.3},
    ),
    "SimCLR, tuned": ("figure_1", 60 + 5 + 4, "SimCLR", [2048, 8192], SIMCLR),
    "VICReg, 1000 epochs": ("1000_epochs", 0, "VICReg", [8192] * 3, {"base_lr": 0.2}),
    "SimCLR B, 1000 epochs": (
        *("1000_epochs", 1, "SimCLR", [8192] * 3),
        {**SIMCLR, "normalization": "standardized"},
    ),
    **{
        f"{name}, {similarity}": (
            *("similarity", number, name, [8192] * 3),
            {**SIMCLR, "similarity": similarity},
        )
        for number, (name, similarity) in enumerate(
            (name, similarity)
            for name in ("SimCLR", "DCL")
            for similarity in ("cosine", "squared", "absolute")
        )
    },
}


@pytest.mark.parametrize(
    ("file", "cell", "method", "widths", "expected"), RECIPES.values(), ids=RECIPES
)
def test_cell_resolves_to_the_recipe_of_the_paper(
    file: str, cell: int, method: str, widths: list[int], expected: dict[str, Any]
) -> None:
    run = planned(file, cell)
    trainer, data, model = (run.config[name] for name in ("trainer", "data", "model"))
    assert model["class_path"] == f"duality_ssl.{method}"
    assert RESNET50.items() <= model["init_args"].items()
    assert expected.items() <= model["init_args"].items()
    assert model["init_args"]["optimizer"]["class_path"].endswith("LARS")
    assert data["batch_size"] * int(trainer["devices"]) == 2048
    assert trainer["sync_batchnorm"]
    assert trainer["max_epochs"] == (1000 if file == "1000_epochs" else 100)
    assert (data["view1"]["interpolation"], data["view1"]["blur"]) == ("bicubic", 1)
    assert (data["view2"]["blur"], data["view2"]["solarize"]) == (0.1, 0.2)
    weights = sum(a * b for a, b in zip([2048, *widths], widths, strict=False))
    norms = sum(2 * hidden for hidden in widths[:-1])
    assert count_parameters(run) == {"backbone": 23_508_032, "projector": weights + norms}


def test_a_cell_trains_and_is_evaluated_on_small_files() -> None:
    write_folder(Path("imagenet"), ("n01440764", "n01443537"))
    run = planned("figure_1", 0)
    small = ["-c", "configs/hardware/cpu.yaml", "--trainer.max_epochs", "1"]
    small += ["--trainer.devices", "1", "--trainer.precision", "32", "--model.warmup_epochs", "0"]
    small += ["--data.batch_size", "4", "--data.image_size", "32", "--data.num_workers", "0"]
    small += ["--model.backbone", "resnet_tiny", "--model.projector", "16-16-16"]
    main([*run.fit_words(), *small])
    (folder,) = Path("runs").rglob("version_0")
    main(["test", "--ckpt_path", str(folder), *run.test_words()[3:]])
    assert (folder / "checkpoints/evaluation.json").is_file()
