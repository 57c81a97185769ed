"""Files of sweeps: what they hold, the cells they make, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.pages import BLOCKS

from duality_ssl.cli import main
from duality_ssl.sweeps.runs import Planner
from duality_ssl.sweeps.specification import Specification, read_specification

CONFIGS = Path(__file__).parents[2] / "configs"
SWEEP = {
    "configs": ["configs/data/digits.yaml"],
    "seeds": [0, 1],
    "options": {"trainer.max_epochs": 40, "model.projector": "{projector}"},
    "axes": {
        "method": {
            "VICReg": {"model": "VICReg"},
            "SimCLR, original": {"model": "SimCLR", "model.temperature": 0.1},
        },
        "projector": ["{d}-{d}-{d}", "128-{d}"],
        "d": [16, 32],
    },
}
TUNE = {
    "at": {"projector": "128-{d}", "d": 16},
    "method": {"VICReg": {"model.base_lr": [0.1, 0.2], "model.covariance": [1, 2]}},
}


def read(folder: Path, content: dict[str, Any]) -> Specification:
    path = folder / "figure.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return read_specification(path)


def test_cells_are_the_product_and_labels_name_each_other(tmp_path: Path) -> None:
    specification = read(tmp_path, SWEEP)
    assert specification.name == "figure"
    assert specification.seeds == [0, 1]
    cells = specification.cells()
    assert len(cells) == 2 * 2 * 2
    assert cells[5] == {"method": "SimCLR, original", "projector": "{d}-{d}-{d}", "d": 32}
    assert specification.options_of(cells[5], {"model.base_lr": 1}) == {
        "trainer.max_epochs": 40,
        "model.projector": "32-32-32",
        "model": "SimCLR",
        "model.temperature": 0.1,
        "model.base_lr": 1,
    }


def test_an_axis_may_be_an_option_and_a_label_keeps_its_type(tmp_path: Path) -> None:
    content = {
        "options": {"model": "SimCLR", "data.batch_size": "{n}", "model.x": ["{n}", {"y": "{n}"}]},
        "axes": {"model.temperature": [0.1, 0.2], "n": [32]},
    }
    specification = read(tmp_path, content)
    assert specification.seeds == [0]
    assert specification.options_of(specification.cells()[1]) == {
        "model": "SimCLR",
        "data.batch_size": 32,
        "model.x": [32, {"y": 32}],
        "model.temperature": 0.2,
    }


def test_tuning_takes_every_combination_on_one_cell(tmp_path: Path) -> None:
    tune = read(tmp_path, SWEEP | {"tune": TUNE}).tune
    assert tune is not None
    assert (tune.axis, tune.seed, tune.validation) == ("method", 0, 0.2)
    assert tune.score == "few_label_top1"
    assert tune.at == {"projector": "128-{d}", "d": 16}
    assert [tuple(options.values()) for options in tune.grids["VICReg"]] == [
        *((0.1, 1), (0.1, 2), (0.2, 1), (0.2, 2)),
    ]


def test_only_keeps_the_named_labels(tmp_path: Path) -> None:
    specification = read(tmp_path, SWEEP)
    assert [*specification.only(["d=32", "method=VICReg"]).cells()] == [
        {"method": "VICReg", "projector": projector, "d": 32}
        for projector in ("{d}-{d}-{d}", "128-{d}")
    ]
    assert len(specification.only(["d=32", "d=16"]).cells()) == 8
    with pytest.raises(ValueError, match=r"no axis 'methd'. Did you mean method"):
        specification.only(["methd=VICReg"])
    with pytest.raises(ValueError, match=r"Unknown label '64' of the axis d. Known: 16, 32"):
        specification.only(["d=64"])


def tuned(**changes: Any) -> dict[str, Any]:
    return {"tune": TUNE | changes}


BAD = {
    "key": ({"axis": {}}, r"figure.yaml: Unknown key 'axis' in the file. Did you mean axes"),
    "seeds": ({"seeds": 3}, "Expected seeds to be a list of whole numbers, but got 3"),
    "configs": ({"configs": "a.yaml"}, "Expected configs to be a list of files"),
    "options": ({"options": [1]}, r"Expected options to map names to values, but got \[1\]"),
    "axis": ({"axes": {"d": 3}}, "Expected the axis d to be a list of values, or to map labels"),
    "unused": ({"options": {}}, "No option uses the axis projector"),
    "circle": (
        {"axes": {"d": ["{e}"], "e": ["{d}"]}, "options": {"model.projector": "{d}"}},
        "name each other in a circle",
    ),
    "name": (
        {"options": {"model.projector": "{projector}", "model.x": "{dd}"}},
        r"Unknown axis 'dd' in '\{dd\}'. Did you mean d\?",
    ),
    "tune key": (tuned(seeds=[1]), "Unknown key 'seeds' in tune. Did you mean seed"),
    "tuned axis": (tuned(d={16: {"model.x": [1]}}), "Expected tune to name one of the axes"),
    "tuned label": (tuned(method={"VicReg": {}}), "Unknown label 'VicReg' of the axis method"),
    "no list": (tuned(method={"VICReg": {"model.x": 1}}), "a list of values for each option"),
    "budgets": (
        tuned(method=TUNE["method"] | {"SimCLR, original": {"model.temperature": [1, 2, 3]}}),
        "VICReg 4, SimCLR, original 3. Add values",
    ),
    "validation": (tuned(validation=1), "Expected tune.validation to be a fraction, but got 1"),
    "at": (tuned(at={"d": 16}), "Expected tune.at to choose a value of the axis projector"),
    "at, axis": (tuned(at={"D": 16}), "Unknown axis 'D' in tune.at. Did you mean d"),
}


@pytest.mark.parametrize(("changes", "message"), BAD.values(), ids=BAD)
def test_bad_file_is_refused_in_a_sentence(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        read(tmp_path, SWEEP | changes)


FILES = sorted(CONFIGS.glob("sweeps/*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_sweep_of_the_repository_can_be_resolved(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(CONFIGS.parent)
    specification = read_specification(path)
    first, last = specification.cells()[0], specification.cells()[-1]
    planner = Planner(specification, main)
    keys = {run.key for cell in (first, last) for run in planner.runs("grid", cell, [0, 1])}
    assert len(keys) == (2 if first == last else 4)


def test_the_file_of_the_documentation_is_read(tmp_path: Path) -> None:
    blocks = [block.text for block in BLOCKS if block.page.name == "sweeps.md"]
    path = tmp_path / "documented.yaml"
    path.write_text(
        "".join(text for text in blocks if text.startswith(("configs:", "tune:", "slurm:")))
    )
    specification = read_specification(path)
    assert len(specification.cells()) == 3 * 2 * 2 * 2
    assert specification.tune is not None
    assert len(specification.tune.grids["VICReg"]) == 12
    assert specification.slurm["partition"] == "gpu"
