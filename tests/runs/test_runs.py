"""Folders of runs: which run and which checkpoint a fit goes on with, and what it leaves alone."""

import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from jsonargparse import Namespace
from lightning.pytorch.loggers import TensorBoardLogger
from torch.optim.optimizer import ParamsT

from duality_ssl import JointEmbedding
from duality_ssl.cli import main
from duality_ssl.runs.folder import (
    Checkpoint,
    RunFolder,
    _leave_out_replaced,
    newest_checkpoint,
    newest_run,
    own_folder,
    read_checkpoint,
    runs_folder,
)

CONFIGS = Path(__file__).parents[2] / "configs"
SMALL = [
    *("-c", str(CONFIGS / "data/digits.yaml"), "--data.subset", "128", "--data.batch_size", "64"),
    *("--model.projector", "32-32", "--model.warmup_epochs", "0", "--trainer.max_epochs", "3"),
    *("--trainer.enable_progress_bar", "false", "--trainer.limit_val_batches", "1"),
    *("--without", "[probe, knn, rankme, duality, guard, views, best_checkpoint]"),
]
FIT = ["fit", *SMALL, "--model", "VICReg"]
LAST = ["--ckpt_path", "last"]


def save(path: Path, step: int, epochs: int = 0, **entries: Any) -> Path:
    """Write what matters of a checkpoint."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "state_dict": {"weight": torch.arange(20_000.0)},
        "optimizer_states": [],
        "global_step": step,
        "loops": {"fit_loop": {"epoch_progress": {"current": {"processed": epochs}}}},
    }
    torch.save({**content, **entries}, path)
    return path


def test_the_newest_run_is_that_of_the_greatest_number(tmp_path: Path) -> None:
    assert newest_run(tmp_path / "no") is None
    for name in ("version_2", "version_10", "version_9", "version_x", "version_11_copy", "other"):
        (tmp_path / name).mkdir()
    assert newest_run(tmp_path) == tmp_path / "version_10"


@pytest.mark.parametrize(
    ("written", "newest"),
    [
        ({}, None),
        ({"last": (4, 2), "best": (2, 1)}, "last"),
        ({"last": (4, 2), "best": (4, 1)}, "last"),
        ({"last": (4, 2), "best": (4, 2), "zoo": (4, 2)}, "last"),
        ({"best": (4, 2), "any": (4, 2)}, "any"),
        ({"last": (4, 2), "step-6": (6, 2)}, "step-6"),
    ],
    ids=["none", "last", "best at the same step", "copies", "best comes first", "a later step"],
)
def test_the_newest_checkpoint_is_the_furthest(
    written: dict[str, tuple[int, int]], newest: str | None, tmp_path: Path
) -> None:
    for name, (step, epochs) in written.items():
        save(tmp_path / f"checkpoints/{name}.ckpt", step, epochs)
    found = newest_checkpoint(tmp_path)
    assert (found and found.path.stem) == newest


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


class Malicious:
    """Would touch a file if it were unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return Path("touched").touch, ()


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda path: path.write_bytes(b""), r"\(0 bytes\) cannot be read as a checkpoint"),
    "half": (half, "cannot be read as a checkpoint: it is truncated"),
    "random": (lambda path: path.write_bytes(os.urandom(9000)), "cannot be read as a checkpoint"),
    "text": (lambda path: path.write_text("weights"), "cannot be read as a checkpoint"),
    "one byte": (flip_a_byte, "the checksum of .* is wrong|cannot be read to its end"),
    "pickle": (lambda path: path.write_bytes(pickle.dumps(Malicious())), "cannot be read"),
    "object": (lambda path: torch.save(Malicious(), path), "cannot be read as a checkpoint"),
    "tensor": (lambda path: torch.save(torch.zeros(2), path), "is no checkpoint to go on from"),
    "no counts": (
        lambda path: save(path, 4, loops={"fit_loop": {}}),
        "is no checkpoint to go on from: it counts no epochs",
    ),
    "weights": (
        lambda path: torch.save({"state_dict": {}}, path),
        "it lacks global_step, loops, optimizer_states",
    ),
}


@pytest.mark.parametrize(("damage", "said"), DAMAGE.values(), ids=DAMAGE)
def test_damaged_checkpoint_is_named_and_the_one_before_it_offered(
    damage: Callable[[Path], object], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "checkpoints/best.ckpt", 2)
    before = save(tmp_path / "checkpoints/previous.ckpt", 3)
    last = save(tmp_path / "checkpoints/last.ckpt", 4)
    damage(last)
    with pytest.raises(ValueError, match=said) as error:
        read_checkpoint(last)
    assert str(error.value).startswith(str(last))
    assert str(error.value).endswith(f"The one before it: --ckpt_path {before}")
    with pytest.warns(UserWarning, match=re.escape(str(last))):
        assert newest_checkpoint(tmp_path) == Checkpoint(before, 3, 0)
    assert not Path("touched").exists()


def test_missing_checkpoint_is_named_and_the_newest_one_offered(tmp_path: Path) -> None:
    newest = save(tmp_path / "checkpoints/best.ckpt", 2)
    with pytest.raises(FileNotFoundError, match=r"There is no checkpoint .*last\.ckpt") as error:
        read_checkpoint(tmp_path / "checkpoints/last.ckpt")
    assert str(error.value).endswith(f"--ckpt_path {newest}")


def test_damaged_checkpoint_with_none_before_it(tmp_path: Path) -> None:
    last = save(tmp_path / "checkpoints/last.ckpt", 4)
    half(last)
    with pytest.raises(ValueError, match=r"something else\.$"):
        read_checkpoint(last)
    with pytest.warns(UserWarning, match="It is passed over"):
        assert newest_checkpoint(tmp_path) is None


@pytest.mark.parametrize(
    ("epochs", "steps", "max_epochs", "max_steps", "complete"),
    [
        (3, 30, 3, -1, True),
        (3, 30, 4, -1, False),
        (4, 40, 3, -1, True),
        (3, 30, None, 30, True),
        (3, 30, None, 31, False),
        (3, 30, 10, 30, True),
        (3, 30, -1, -1, False),
        (999, 30, None, -1, False),
        (1000, 30, None, -1, True),
    ],
)
def test_complete_is_what_has_reached_a_limit(
    epochs: int, steps: int, max_epochs: int | None, max_steps: int, complete: bool
) -> None:
    checkpoint = Checkpoint(Path("last.ckpt"), steps, epochs)
    assert checkpoint.is_complete(max_epochs, max_steps) == complete


def options(**changes: Any) -> dict[str, Any]:
    """The part of a config that says where its runs are."""
    return {
        "experiment": None,
        "data": {"source": "digits"},
        "model": {"class_path": "duality_ssl.VICReg"},
        "trainer": {"default_root_dir": "runs"},
        **changes,
    }


@pytest.mark.parametrize(
    ("changes", "own"),
    [
        ({}, True),
        ({"experiment": "digits"}, True),
        ({"experiment": "other"}, False),
        ({"model": {"class_path": "duality_ssl.methods.SimCLR"}}, False),
        ({"data": {"source": "folder"}}, False),
        ({"trainer": {"default_root_dir": "elsewhere"}}, False),
    ],
    ids=["same", "same by name", "experiment", "method", "source", "root"],
)
def test_a_checkpoint_goes_on_in_its_folder_under_the_same_name_only(
    changes: dict[str, Any], own: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = runs_folder(options()) / "version_3"
    last = save(run / "checkpoints/last.ckpt", 1)
    assert own_folder(last, options()) is None  # nothing says what it is of
    (run / "config.yaml").write_text(yaml.safe_dump(options()))
    assert own_folder(last.absolute(), options(**changes)) == (run if own else None)


@pytest.mark.parametrize("config", ["", "model: {class_path: VICReg}", "- 1", "data: 3"])
def test_a_config_that_is_none_of_a_run_names_none(config: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(config)
    assert own_folder(save(tmp_path / "checkpoints/last.ckpt", 1), options()) is None


def test_a_run_that_was_moved_goes_on_where_it_is(tmp_path: Path) -> None:
    last = save(tmp_path / "archive/checkpoints/last.ckpt", 1)
    (tmp_path / "archive/config.yaml").write_text(yaml.safe_dump(options()))
    assert own_folder(last, options()) == tmp_path / "archive"


class Killed(Exception):
    """Ends a fit from without."""


def fit_until_epoch(epoch: int, words: list[str], patch: pytest.MonkeyPatch) -> None:
    """Run a fit that breaks off when an epoch starts."""

    def break_off(self: JointEmbedding) -> None:
        if self.current_epoch == epoch:
            raise Killed

    with patch.context() as context:
        context.setattr(JointEmbedding, "on_train_epoch_start", break_off, raising=False)
        with pytest.raises(Killed):
            main(words)


def content(folder: Path) -> dict[str, tuple[int, bytes]]:
    """All files below a folder, with their times and bytes."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def epochs_of(run: Path) -> int:
    return read_checkpoint(run / "checkpoints/last.ckpt").epochs


@pytest.mark.parametrize("how", ["last", "option", "yaml"])
def test_one_command_starts_goes_on_and_is_complete(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("resume.yaml").write_text("resume: true")
    more = {"last": LAST, "option": ["--resume", "true"], "yaml": ["-c", "resume.yaml"]}[how]
    run = Path("runs/digits/VICReg/version_0")
    fit_until_epoch(0, [*FIT, *more], monkeypatch)  # no checkpoint yet
    fit_until_epoch(2, [*FIT, *more], monkeypatch)
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["ckpt_path"], config["resume"]) == (None, False)
    assert epochs_of(run) == 2
    main([*FIT, *more])
    assert epochs_of(run) == 3
    before = content(tmp_path)
    with caplog.at_level("INFO"), pytest.raises(SystemExit) as done:
        main([*FIT, *more])
    assert done.value.code == 0
    assert f"{run}/checkpoints/last.ckpt is complete, at epoch 3 and step 6" in caplog.text
    assert "raise --trainer.max_epochs" in caplog.text
    assert content(tmp_path) == before
    assert [path.name for path in run.parent.iterdir()] == ["version_0"]
    assert not list(run.glob("config-until*"))


def test_the_best_of_the_last_step_is_not_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill between the last validation and ``last.ckpt`` leaves it as the newest."""
    monkeypatch.chdir(tmp_path)
    limits = ["--trainer.max_epochs=-1", "--trainer.max_steps", "4"]
    words = [*FIT, *limits, *LAST]
    main(words)
    folder = Path("runs/digits/VICReg/version_0/checkpoints")
    whole = torch.load(folder / "last.ckpt", weights_only=True)
    (folder / "last.ckpt").rename(folder / "best.ckpt")
    assert (newest := newest_checkpoint(folder.parent)) is not None
    assert (newest.path.stem, newest.step) == ("best", 4)
    main(words)
    again = torch.load(folder / "last.ckpt", weights_only=True)
    for name, weight in whole["state_dict"].items():
        assert torch.equal(weight, again["state_dict"][name])


@pytest.mark.parametrize("given", ["folder", "file", "absolute"])
def test_explicit_run_goes_on_in_its_folder(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = Path("runs/digits/VICReg/version_0")
    fit_until_epoch(1, FIT, monkeypatch)
    name = {"folder": run, "file": run / "checkpoints/last.ckpt", "absolute": run.absolute()}[given]
    main(["fit", "--ckpt_path", str(name)])
    assert epochs_of(run) == 3
    assert [path.name for path in run.parent.iterdir()] == ["version_0"]
    checkpoint = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    folders = {state["dirpath"] for state in checkpoint["callbacks"].values() if "dirpath" in state}
    assert folders == {str(run / "checkpoints")}


def test_going_back_within_a_run_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("runs/digits/VICReg/version_0/checkpoints")
    fit_until_epoch(2, FIT, monkeypatch)
    with pytest.warns(UserWarning, match=r"previous\.ckpt is of step 2, and .* of step 4"):
        main(["fit", "--ckpt_path", str(folder / "previous.ckpt")])
    assert epochs_of(folder.parent) == 3


@pytest.mark.parametrize("other", ["method", "experiment", "version"])
def test_last_never_takes_the_checkpoint_of_another_run(
    other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    main([*FIT, "--trainer.max_epochs", "1"])
    before = content(tmp_path)
    words, run = {
        "method": ([*FIT[:-1], "SimCLR"], "runs/digits/SimCLR/version_0"),
        "experiment": ([*FIT, "--experiment", "new"], "runs/new/VICReg/version_0"),
        "version": (FIT, "runs/digits/VICReg/version_1"),
    }[other]
    if other == "version":
        Path(run).mkdir()  # a run that was killed before its first checkpoint
    main([*words, *LAST, "--trainer.max_epochs", "1"])
    assert epochs_of(Path(run)) == 1
    assert before.items() <= content(tmp_path).items()
    global_step = torch.load(f"{run}/checkpoints/last.ckpt", weights_only=True)["global_step"]
    assert global_step == 2  # from scratch


def test_other_values_keep_the_former_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = Path("runs/digits/VICReg/version_0")
    main([*FIT, "--trainer.max_epochs", "1"])
    former = (run / "config.yaml").read_text()
    with pytest.warns(UserWarning, match="other values than before: trainer.max_epochs 1 -> 2"):
        main([*FIT, *LAST, "--trainer.max_epochs", "2"])
    assert (run / "config-until-step-2.yaml").read_text() == former
    assert yaml.safe_load((run / "config.yaml").read_text())["trainer"]["max_epochs"] == 2
    assert epochs_of(run) == 2


def test_values_of_the_run_hold_where_the_words_say_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fit_until_epoch(1, [*FIT, "--model.covariance", "3"], monkeypatch)
    main(["fit", "--model", "VICReg", *LAST])
    config = yaml.safe_load(Path("runs/digits/VICReg/version_0/config.yaml").read_text())
    assert config["model"]["init_args"]["covariance"] == 3


class NeedsRate(torch.optim.SGD):
    """An optimiser whose learning rate has no default."""

    def __init__(self, params: ParamsT, lr: float, weight_decay: float = 0.5) -> None:
        super().__init__(params, lr=lr, weight_decay=weight_decay)


@pytest.mark.parametrize(
    ("optimizer", "kept"),
    [
        ("torch.optim.AdamW", {"class_path", "init_args.eps"}),
        ("duality_ssl.optim.LARS", {"class_path", "init_args.eps"}),
        ("test_runs.NeedsRate", {"class_path", "init_args.lr", "init_args.eps"}),
    ],
)
def test_config_leaves_out_what_the_method_replaces(optimizer: str, kept: set[str]) -> None:
    arguments = Namespace(lr=1e-3, weight_decay=0.01, eps=1e-8)
    config = Namespace(class_path=optimizer, init_args=arguments)
    _leave_out_replaced(config)
    assert {*config.keys()} == kept


def test_damaged_last_is_passed_over_with_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("runs/digits/VICReg/version_0/checkpoints")
    fit_until_epoch(1, FIT, monkeypatch)
    shutil.copy(folder / "last.ckpt", folder / "before.ckpt")
    half(folder / "last.ckpt")
    with pytest.raises(SystemExit) as done:
        main(["fit", "--ckpt_path", str(folder / "last.ckpt")])
    assert done.value.code == 2
    said = capsys.readouterr().err
    assert f"error: {folder}/last.ckpt (" in said
    assert f"The one before it: --ckpt_path {folder.absolute()}/before.ckpt (DUALITY" in said
    with pytest.warns(UserWarning, match=r"last\.ckpt .* cannot be read .* It is passed over"):
        main([*FIT, *LAST])
    assert epochs_of(folder.parent) == 3


def test_own_loggers_have_no_last_run(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*FIT, *LAST, "--trainer.logger", "false"])
    assert "Expected no --trainer.logger" in capsys.readouterr().err


def test_the_same_values_are_passed_over_in_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.chdir(tmp_path)
    fit_until_epoch(1, FIT, monkeypatch)
    main([*FIT, *LAST])
    assert not [warning for warning in recwarn if "goes on with other values" in str(warning)]


def test_changed_values_are_named_in_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fit_until_epoch(1, FIT, monkeypatch)
    last = Path("runs/digits/VICReg/version_0/checkpoints/last.ckpt")
    checkpoint = torch.load(last, weights_only=True)
    checkpoint["ran_with"] |= {"processes": 4, "device": "cuda"}
    torch.save(checkpoint, last)
    changes = {
        "data.batch_size": (64, 32),
        "data.subset": (128, 96),
        "trainer.accumulate_grad_batches": (1, 2),
        "trainer.precision": ("32-true", "bf16-mixed"),
        "model.covariance": (1, 2),
        "seed_everything": (0, 7),
    }
    words = [word for name, (_, new) in changes.items() for word in (f"--{name}", str(new))]
    with pytest.warns(UserWarning, match="goes on with other values than before") as all_of:
        main([*FIT, *LAST, *words])
    said = [str(one.message) for one in all_of if "other values" in str(one.message)]
    assert len(said) == 1
    for name, (old, new) in {**changes, "processes": (4, 1), "device": ("cuda", "cpu")}.items():
        assert f"{name} {old} -> {new}" in re.sub(r"\.0\b", "", said[0])
    assert "images 128 -> 96" in said[0]
    assert "batches of an epoch 2 -> 3" in said[0]
    assert "max_epochs" not in said[0]


def test_the_optimiser_goes_on_with_its_own_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fit_until_epoch(1, FIT, monkeypatch)
    more = ["--model.base_lr", "0.5", "--model.weight_decay", "0.25"]
    with pytest.warns(UserWarning, match=r"base_lr 0\.002 -> 0\.5 \(without effect: "):
        main([*FIT, *LAST, *more])
    last = torch.load("runs/digits/VICReg/version_0/checkpoints/last.ckpt", weights_only=True)
    group = last["optimizer_states"][0]["param_groups"][0]
    assert group["weight_decay"] == 1e-4
    assert group["initial_lr"] == 0.002 * 64 / 256
    assert group["lr"] < group["initial_lr"]


HOLD = """
import sys, time
from pathlib import Path
from duality_ssl.runs.folder import alone_in
with alone_in(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(100)
"""


def test_one_fit_at_a_time_writes_to_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run = Path("runs/digits/VICReg/version_0")
    fit_until_epoch(1, FIT, monkeypatch)
    holder = subprocess.Popen([sys.executable, "-c", HOLD, run], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        before = content(tmp_path)
        with pytest.raises(SystemExit) as done:
            main([*FIT, *LAST])
        assert done.value.code == 2
        assert f"Another process is training in {run}: wait" in capsys.readouterr().err
        assert content(tmp_path) == before
    finally:
        holder.kill()
        holder.wait(10)
    main([*FIT, *LAST])  # the lock is gone with the process
    assert epochs_of(run) == 3


def test_a_folder_that_another_run_has_just_taken_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    main([*FIT, "--trainer.max_epochs", "1"])
    before = (tmp_path / "runs/digits/VICReg/version_0/config.yaml").read_text()
    # both have looked for a free number at the same time
    monkeypatch.setattr(TensorBoardLogger, "_get_next_version", lambda self: 0)
    with pytest.raises(SystemExit) as done:
        main([*FIT, "--trainer.max_epochs", "2"])
    assert done.value.code == 2
    assert "Another run has just taken runs/digits/VICReg/version_0" in capsys.readouterr().err
    assert (tmp_path / "runs/digits/VICReg/version_0/config.yaml").read_text() == before


def test_processes_that_see_other_checkpoints_are_told(tmp_path: Path) -> None:
    class Strategy:
        def broadcast(self, path: str) -> str:
            return "runs/last.ckpt"

    class Stub:
        log_dir, global_rank, is_global_zero, strategy = str(tmp_path), 1, False, Strategy()

    folder = RunFolder(parser=None, config=Namespace(ckpt_path="runs/previous.ckpt"))
    with pytest.raises(ValueError, match=r"Process 1 would go on from runs/previous\.ckpt"):
        folder.setup(Stub(), None, "fit")
