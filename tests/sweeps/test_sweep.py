"""Sweeps from the file to the rows, with a stand-in for the command."""

import os
import re
import shlex
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import sweep_command
from helpers.sweep_command import InlinePool, calls, command

import duality_ssl
from duality_ssl.sweeps import read_rows, runner, sweep
from duality_ssl.sweeps.job import Job
from duality_ssl.sweeps.pool import Pool
from duality_ssl.sweeps.progress import Progress, duration
from duality_ssl.sweeps.runs import Planner, Run
from duality_ssl.sweeps.specification import read_specification

ROWS = Path("runs/sweeps/small/rows.jsonl")
METHODS = {"VICReg": {"model": "VICReg"}, "SimCLR": {"model": "SimCLR", "model.weight_decay": 2}}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do jobs in this process."""
    monkeypatch.setattr(runner, "Pool", InlinePool)
    monkeypatch.setattr(InlinePool, "shares", [])
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    monkeypatch.setattr("duality_ssl.sweeps.job.count_parameters", lambda run: {"backbone": 3})


def write(**content: Any) -> Path:
    path = Path("small.yaml")
    plain = {"axes": {"method": METHODS}, "seeds": [0, 1]}
    path.write_text(yaml.safe_dump(plain | content, sort_keys=False))
    return path


def run(path: Path, **options: Any) -> None:
    sweep(path, command=command, **options)


def planned(path: Path) -> list[Run]:
    specification = read_specification(path)
    planner = Planner(specification, command)
    cells = specification.cells()
    return [each for cell in cells for each in planner.runs("grid", cell, specification.seeds)]


@pytest.mark.usefixtures("inline")
def test_grid_has_a_row_for_each_cell_and_seed(capsys: pytest.CaptureFixture[str]) -> None:
    run(write(options={"trainer.max_epochs": 3}, evaluation={"k": 7}))
    rows = read_rows(ROWS)
    assert [(row["cell"]["method"], row["seed"]) for row in rows] == [
        *(("VICReg", 0), ("VICReg", 1), ("SimCLR", 0), ("SimCLR", 1)),
    ]
    assert (
        rows[3].items()
        >= {
            "sweep": "small",
            "options": {"trainer.max_epochs": 3, "model": "SimCLR", "model.weight_decay": 2},
            "version": duality_ssl.__version__,
            "epochs": 1,
            "parameters": {"backbone": 3},
            "scores": {"online_top1": 0.501, "few_label_top1": 0.5, "rankme": 10},
        }.items()
    )
    assert len({row["key"] for row in rows}) == 4
    fit, test = calls()[-2:]
    folder = re.fullmatch(r"sweeps/small/SimCLR_seed_1-[0-9a-f]{8}", fit[2])
    assert folder
    assert fit == [
        *("fit", "--experiment", folder[0], "--seed_everything", "1"),
        *("--model", "SimCLR", "--trainer.max_epochs", "3", "--model.weight_decay", "2"),
    ]
    assert test == [
        "test",
        "--ckpt_path",
        f"runs/{folder[0]}/SimCLR/version_0",
        "--evaluation.k",
        "7",
    ]
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("[4/4] SimCLR, seed 1: online_top1 0.501, few_label_top1 0.5")
    assert InlinePool.shares == [2, 1, 1]


@pytest.mark.usefixtures("inline")
def test_finished_runs_are_left_out_until_something_changes() -> None:
    run(write())
    assert len(calls()) == 8
    run(write())
    assert len(calls()) == 8
    run(
        write(options={"model.weight_decay": 1, "data.num_workers": 2})
    )  # a default, and no score's
    assert len(calls()) == 8
    run(write(evaluation={"k": 1}), only=["method=VICReg"])  # `fit` finds its checkpoint
    assert [words[0] for words in calls()[8:]] == ["fit", "test"] * 2
    assert calls()[8][-2:] == ["--ckpt_path", "last"]
    run(write(options={"model.base_lr": 1}))
    assert len(calls()) == 12 + 8


@pytest.mark.usefixtures("inline")
def test_a_new_option_at_its_default_changes_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    run(write())
    before = sweep_command.resolved
    monkeypatch.setattr(sweep_command, "resolved", lambda given: before(given) | {"new": 1})
    run(write())
    assert len(calls()) == 8


@pytest.mark.usefixtures("inline")
def test_rows_of_other_versions_are_repeated_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    run(write(), only=["method=VICReg"])
    monkeypatch.setattr(duality_ssl, "__version__", "9.9")
    run(write(), only=["method=VICReg"])
    assert len(calls()) == 4
    run(write(), only=["method=VICReg"], rerun=True)
    assert len(calls()) == 8
    assert not {"--ckpt_path", "last"} <= {*calls()[4]}
    assert [row["version"] for row in read_rows(ROWS)] == ["9.9", "9.9"]


@pytest.mark.usefixtures("inline")
def test_cells_that_coincide_run_once_and_have_a_row_each() -> None:
    axes = {"model": ["VICReg"], "model.base_lr": ["{d}", "1{d}"], "d": [0, 10]}
    run(write(axes=axes, options={"model": "{model}"}, seeds=[0]))
    rows = read_rows(ROWS)
    assert [row["options"]["model.base_lr"] for row in rows] == [0, 10, "10", "110"]
    assert rows[1]["key"] == rows[2]["key"]
    assert rows[1]["scores"] == rows[2]["scores"]
    assert len({row["key"] for row in rows}) == len(calls()) / 2 == 3


@pytest.mark.usefixtures("inline")
def test_another_sweep_does_not_repeat_a_run() -> None:
    run(write())
    Path("small.yaml").rename("other.yaml")
    run(Path("other.yaml"), rows=Path("results/other.jsonl"))
    assert len(calls()) == 8
    assert {row["sweep"] for row in read_rows(Path("results/other.jsonl"))} == {"other"}


@pytest.mark.usefixtures("inline")
def test_a_failed_run_leaves_the_rest_and_is_done_again(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(
        axes={"method": {"VICReg": {"model": "VICReg"}}, "model.base_lr": [7, 8, 1]}, seeds=[0]
    )
    with pytest.raises(SystemExit) as done:
        run(path)
    assert done.value.code == 1
    refused, raised, fine = read_rows(ROWS)
    assert refused["error"] == "Expected a better beta."
    assert raised["error"] == "RuntimeError: out of memory"
    assert "scores" not in raised
    assert fine["scores"]["few_label_top1"] == 0.51
    assert "Traceback" in next(Path("runs/sweeps/small/logs").glob("*base_lr_8*")).read_text()
    assert "2 failed. The same command does them again." in capsys.readouterr().out
    before = len(calls())
    with pytest.raises(SystemExit):
        run(path)
    assert [words[-2:] for words in calls()[before:]] == [["--ckpt_path", "last"]] * 2


@pytest.mark.usefixtures("inline")
def test_an_interrupted_run_is_resumed(capsys: pytest.CaptureFixture[str]) -> None:
    path = write(axes={"method": {"VICReg": {"model": "VICReg", "model.base_lr": 99}}}, seeds=[0])
    with pytest.raises(SystemExit) as done:
        run(path)
    assert done.value.code == 130
    assert capsys.readouterr().out == "Interrupted. The same command resumes.\n"
    assert not ROWS.exists()
    run(path)
    assert calls()[1][-2:] == ["--ckpt_path", "last"]
    assert read_rows(ROWS)[0]["scores"]["few_label_top1"] == 1.49


@pytest.mark.usefixtures("inline")
def test_an_untrained_network_is_only_evaluated() -> None:
    run(write(axes={"method": {"untrained": {"model": "VICReg", "fit": False}}}, seeds=[3]))
    (words,) = calls()
    assert words[:5] == ["test", "--seed_everything", "3", "--model", "VICReg"]
    (row,) = read_rows(ROWS)
    assert row["epochs"] == 0
    assert row["scores"] == {"few_label_top1": 0.5, "rankme": 10}


@pytest.mark.usefixtures("inline")
def test_dry_run_prints_what_one_would_type(capsys: pytest.CaptureFixture[str]) -> None:
    path = write(axes={"method": METHODS, "model.name": ["a b"]}, seeds=[0])
    run(path, dry_run=True)
    lines = capsys.readouterr().out.splitlines()
    assert not calls()
    assert not Path("runs").exists()
    run(path)
    assert [shlex.split(line) for line in lines] == [["duality-ssl", *words] for words in calls()]


TUNE = {"at": {}, "validation": 0.25, "method": {"VICReg": {"model.base_lr": [1, 3, 2]}}}


@pytest.mark.usefixtures("inline")
@pytest.mark.parametrize(
    ("select", "beta", "gap"), [(None, 3, False), ("rankme", 1, True)], ids=["labels", "rankme"]
)
def test_tuning_fixes_the_options_of_the_grid(
    select: str | None, beta: int, gap: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    run(write(tune=TUNE), select=select)
    rows = read_rows(ROWS)
    trials = [row for row in rows if row.get("phase") == "tune"]
    assert [row["options"]["model.base_lr"] for row in trials] == [1, 3, 2]
    assert {row["options"]["data.validation"] for row in trials} == {0.25}
    grid = [row for row in rows if "phase" not in row]
    assert len(grid) == 4
    assert [row["options"].get("model.base_lr") for row in grid] == [beta, beta, None, None]
    assert not any("data.validation" in row["options"] for row in grid)
    out = capsys.readouterr().out
    assert f"chooses model.base_lr {beta}" in out
    assert ("by its own choice 0.53 with model.base_lr 3: a gap of 0.02" in out) == gap


@pytest.mark.usefixtures("inline")
def test_tuning_keeps_its_cell_in_a_part_of_the_grid() -> None:
    data = {"small": {"data.subset": 10}, "large": {"data.subset": 20}}
    path = write(axes={"method": METHODS, "data": data}, tune=TUNE | {"at": {"data": "small"}})
    run(path, only=["data=large", "method=VICReg"])
    rows = read_rows(ROWS)
    assert [row["options"]["data.subset"] for row in rows] == [10, 10, 10, 20, 20]


@pytest.mark.usefixtures("inline")
def test_tuning_alone_and_before_it_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    run(write(tune=TUNE), dry_run=True)
    out = capsys.readouterr().out
    assert out.count("duality-ssl fit") == 3 + 2
    assert "# VICReg is not tuned yet: its grid is left out." in out
    run(write(tune=TUNE), tune_only=True)
    assert {row["phase"] for row in read_rows(ROWS)} == {"tune"}
    with pytest.raises(ValueError, match=r"Expected a block `tune` in small.yaml"):
        run(write(), tune_only=True)


def test_an_option_that_the_command_refuses_is_refused_before_any_run() -> None:
    with pytest.raises(ValueError, match=r"small, VICReg: VICReg has no option 'gamma'. Did you"):
        run(write(options={"model.gamma": 1}))
    assert not calls()


@pytest.mark.parametrize("variable", ["SLURM_PROCID", "LOCAL_RANK"])
def test_one_process_of_a_job_writes_the_row(
    variable: str, inline: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job on several GPUs has a process for each; all of them train."""
    runs = planned(write())[:1]
    for rank in ("1", "0"):
        monkeypatch.setenv(variable, rank)
        Job(runs, command)()
        assert runs[0].result.is_file() == (rank == "0")
    assert [words[0] for words in calls()] == ["fit", "test"] * 2


@pytest.mark.usefixtures("inline")
def test_a_job_begins_no_run_without_its_parent() -> None:
    with subprocess.Popen(["true"]) as ended:
        pass
    Job(planned(write()), command, parent=ended.pid)()
    assert not calls()
    job = Job(planned(write())[:1], command, parent=os.getpid())
    job()
    assert len(calls()) == 2
    assert job.checkpoint().function is job  # requeued, it finds the result
    job()
    assert len(calls()) == 2


def test_duration_in_words() -> None:
    assert [duration(seconds) for seconds in (41.6, 300, 11_100)] == ["42 s", "5 min", "3 h 05 min"]


def test_table_counts_and_estimates(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = planned(write(seeds=[0, 1, 2]))
    progress = Progress(runs, runs[:1], at_once=2, seconds=[60.0])
    assert progress.table([], 0.0)[-1] == "time left: about 2 min"
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    progress.running(runs[1:3])
    runs[1].log.parent.mkdir(parents=True)
    runs[1].log.write_text("$ duality-ssl fit\nepoch 3/40  loss 1.5\n")
    progress.ended(runs[3], {"error": "It failed."})
    assert progress.table(runs[1:3], 130.0) == [
        "",
        "           done   failed  running  waiting",
        "VICReg        1        -        2        -",
        "SimCLR        -        1        -        2",
        "all           1        1        2        2",
        "running  VICReg, seed 1  30 s  epoch 3/40  loss 1.5",
        "running  VICReg, seed 2  30 s  ",
        "time left: about 90 s",
    ]


SUBMITTED = """#!/bin/sh
cp "$1" submitted.sh
echo Submitted batch job 12
"""


def test_slurm_gets_the_parameters_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("sbatch", "srun"):
        Path(name).write_text(SUBMITTED)
        Path(name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{Path.cwd()}:{os.environ['PATH']}")
    parameters = {"partition": "gpu", "gpus_per_node": 2, "timeout_min": 600}
    pool = Pool(Path("jobs"), None, parameters)
    assert pool.on_slurm
    pool.submit(Job(planned(write())[:1], command))
    text = Path("submitted.sh").read_text()
    for option in ("--partition=gpu", "--gpus-per-node=2", "--time=600"):
        assert f"#SBATCH {option}\n" in text
    with pytest.raises(ValueError, match="slurm: Unknown argument 'partitions'"):
        Pool(Path("jobs"), None, {"partitions": "gpu"})
