"""What each part of a run saves in a checkpoint and restores from it."""

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from helpers.callback_stubs import StubData, StubModule, trainer
from helpers.resume_stubs import scalars
from lightning.pytorch.plugins.io import TorchCheckpointIO

from duality_ssl._internals.lightning import LOGGED_STEPS
from duality_ssl.callbacks import (
    BestCheckpoint,
    LastCheckpoint,
    OnlineKNN,
    OnlineLinearProbe,
    StepSeed,
)
from duality_ssl.callbacks.knn import FeatureBank
from duality_ssl.runs.loggers import RunCSVLogger, run_loggers


def filled(capacity: int, rows: int) -> FeatureBank:
    """A bank that was given rows 0, 1, ... one by one; a row's label is its number."""
    bank = FeatureBank(capacity)
    for row in range(rows):
        bank.add(torch.full((1, 2), float(row)), torch.tensor([row]))
    return bank


@pytest.mark.parametrize("rows", [3, 5, 7], ids=["part", "full", "wrapped"])
def test_bank_continues_row_by_row(rows: int) -> None:
    bank, again = filled(5, rows), FeatureBank(5)
    again.load_state_dict(bank.state_dict(), torch.device("cpu"))
    for one in (bank, again):
        one.add(torch.full((2, 2), 99.0), torch.tensor([98, 99]))
    for ours, theirs in zip(again.gather(), bank.gather(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("capacity", "kept"), [(3, {4, 5, 6}), (9, {2, 3, 4, 5, 6})], ids=["smaller", "larger"]
)
def test_bank_of_another_capacity_keeps_the_latest(capacity: int, kept: set[int]) -> None:
    bank = FeatureBank(capacity)
    bank.load_state_dict(filled(5, 7).state_dict(), torch.device("cpu"))
    assert {*bank.gather()[1].tolist()} == kept
    bank.add(torch.full((1, 2), 99.0), torch.tensor([99]))
    expected = {*sorted(kept)[len(kept) == capacity :], 99}
    assert {*bank.gather()[1].tolist()} == expected


def test_bank_of_two_processes_continues_in_one() -> None:
    banks = [filled(4, 6), filled(4, 3)]
    states = [bank.state_dict() for bank in banks]
    both = {name: torch.cat([state[name] for state in states]) for name in states[0]}
    bank = FeatureBank(8)
    bank.load_state_dict(both, torch.device("cpu"))
    assert sorted(bank.gather()[1].tolist()) == [0, 1, 2, 2, 3, 4, 5]


def test_validate_has_the_bank_of_the_checkpoint(tmp_path: Path) -> None:
    run = trainer(tmp_path, OnlineKNN(), LastCheckpoint(), enable_checkpointing=True)
    run.fit(StubModule(), datamodule=StubData())
    expected = run.callback_metrics["val/knn_top1"]
    again = trainer(tmp_path, OnlineKNN())
    last = tmp_path / "checkpoints/last.ckpt"
    again.validate(StubModule(), StubData(), ckpt_path=last, verbose=False, weights_only=True)
    assert torch.equal(again.callback_metrics["val/knn_top1"], expected)


def test_a_bank_of_the_validation_is_not_kept(tmp_path: Path) -> None:
    run = trainer(tmp_path, knn := OnlineKNN())
    run.fit(StubModule(), datamodule=StubData("probe"))
    assert "val/knn_top1" in run.callback_metrics
    assert knn.state_dict() == {}


ROWS = [{"loss": 0.5, "step": 0}, {"loss": 0.25, "step": 1}, {"probe": 1.0, "step": 1}]


def logged(folder: Path, rows: list[dict[str, float]] = ROWS) -> RunCSVLogger:
    logger = RunCSVLogger(folder)
    for row in rows:
        row = dict(row)
        logger.log_metrics(row, step=int(row.pop("step")))
        logger.save()
    return logger


@pytest.mark.parametrize(
    ("step", "rows", "left"),
    [(2, None, 3), (2, 2, 2), (1, None, 1), (1, 3, 1), (0, None, 0)],
    ids=["all", "an epoch's mean again", "a step again", "rows of later steps", "from scratch"],
)
def test_metrics_continue_where_the_checkpoint_was(
    step: int, rows: int | None, left: int, tmp_path: Path
) -> None:
    logged(tmp_path / "whole")
    logged(tmp_path / "cut")
    again = logged(tmp_path / "cut", [])
    again.rewind(step, rows)
    assert again.rows == left
    logged(tmp_path / "cut", ROWS[left:])
    assert (tmp_path / "cut/metrics.csv").read_text() == (
        tmp_path / "whole/metrics.csv"
    ).read_text()


@pytest.mark.parametrize(
    ("cut", "left"), [(1, 2), (3, 2), (12, 1)], ids=["end of line", "last value", "line before"]
)
def test_half_a_row_is_dropped(cut: int, left: int, tmp_path: Path) -> None:
    logged(tmp_path)
    path = tmp_path / "metrics.csv"
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    again = logged(tmp_path, [])
    assert again.rows == left
    logged(tmp_path, ROWS[left:])
    assert path.read_bytes() == whole


def test_a_new_column_leaves_the_file_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged(tmp_path, ROWS[:2])
    before = (tmp_path / "metrics.csv").read_bytes()

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("duality_ssl.files.os.fsync", die)
    with pytest.raises(KeyboardInterrupt):
        logged(tmp_path, ROWS[2:])
    assert (tmp_path / "metrics.csv").read_bytes() == before


def test_tensorboard_hides_what_is_logged_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for start, value in enumerate([1.0, 2.0, 3.0]):
        # the order of files is that of their names, which have the second in them
        clock = SimpleNamespace(time=lambda start=start: 1e9 + start)
        monkeypatch.setattr("tensorboard.summary.writer.event_file_writer.time", clock)
        logger = run_loggers(tmp_path, start or None, [])[0]
        for step in range(start, 4):
            logger.log_metrics({"loss": value}, step)
        logger.finalize("success")
    assert scalars(tmp_path)["loss"] == {(0, 1.0), (1, 2.0), (2, 3.0), (3, 3.0)}


def draws(epoch: int, batch: int) -> tuple[float, float, float]:
    run: Any = SimpleNamespace(current_epoch=epoch)
    StepSeed().on_train_batch_start(run, StubModule(), None, batch)
    return torch.rand(()).item(), float(np.random.random()), random.random()  # noqa: NPY002


def test_draws_of_a_step_are_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    lightning.seed_everything(0, verbose=False)
    first = draws(1, 2)
    assert draws(1, 2) == first
    others = [draws(2, 2), draws(1, 3)]
    with monkeypatch.context() as patch:
        patch.setattr("duality_ssl.callbacks.seed.rank", lambda: 1)
        others.append(draws(1, 2))  # dropout of another process
    lightning.seed_everything(1, verbose=False)
    others.append(draws(1, 2))
    for column in zip(first, *others, strict=True):
        assert len({*column}) == 5


def test_without_a_seed_nothing_is_seeded() -> None:
    torch.manual_seed(0)
    expected = torch.rand(2)[1].item()
    torch.manual_seed(0)
    torch.rand(())
    assert draws(0, 0)[0] == expected


def steps(folder: Path) -> dict[str, tuple[int, int]]:
    """Steps and finished epochs of the checkpoints."""
    found = {}
    for path in folder.glob("checkpoints/*"):
        content = torch.load(path, weights_only=True)
        found[path.stem] = content["global_step"], content["epoch"]
    return found


@pytest.mark.parametrize(
    ("arguments", "settings", "expected"),
    [
        ({}, {}, {"last": (12, 3), "previous": (8, 2)}),
        ({"every_n_epochs": 2}, {}, {"last": (12, 3), "previous": (8, 2)}),
        ({"every_n_epochs": 9}, {}, {"last": (12, 3)}),
        ({"every_n_epochs": 9, "every_n_steps": 5}, {}, {"last": (12, 3), "previous": (10, 2)}),
        ({"every_n_epochs": 9, "every_n_steps": 4}, {}, {"last": (12, 3), "previous": (8, 2)}),
        (
            {"every_n_epochs": 9, "every_n_steps": 1},
            {"accumulate_grad_batches": 2},
            {"last": (6, 3), "previous": (5, 2)},
        ),
    ],
    ids=["epochs", "2 epochs", "the end alone", "5 steps", "4 steps", "accumulated"],
)
def test_last_and_the_one_before_it(
    arguments: dict[str, int], settings: dict[str, Any], expected: dict, tmp_path: Path
) -> None:
    last = LastCheckpoint(**arguments)
    run = trainer(tmp_path, last, epochs=3, enable_checkpointing=True, **settings)
    run.fit(StubModule(), datamodule=StubData())
    assert steps(tmp_path) == expected


class FullDisk(TorchCheckpointIO):
    """Writes nothing at one step."""

    def save_checkpoint(self, checkpoint: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        if checkpoint["global_step"] != 8:
            super().save_checkpoint(checkpoint, *args, **kwargs)


def test_a_checkpoint_that_is_not_written_leaves_both(tmp_path: Path) -> None:
    run = trainer(
        tmp_path, LastCheckpoint(), epochs=3, enable_checkpointing=True, plugins=[FullDisk()]
    )
    run.fit(StubModule(), datamodule=StubData())
    assert steps(tmp_path) == {"last": (12, 3), "previous": (4, 1)}


class Counters(TorchCheckpointIO):
    """Keeps what the loops say at each step."""

    def __init__(self) -> None:
        self.at: dict[int, dict[str, Any]] = {}

    def save_checkpoint(self, checkpoint: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        self.at[checkpoint["global_step"]] = checkpoint["loops"]["fit_loop"]


def test_counters_are_those_of_no_begun_batch_or_epoch(tmp_path: Path) -> None:
    """Two epochs of 4 batches, each with a validation after the second and the last one."""
    kept, last = Counters(), LastCheckpoint(every_n_steps=1)
    settings = {"enable_checkpointing": True, "plugins": [kept], "val_check_interval": 2}
    run = trainer(tmp_path, last, **settings)
    run.fit(StubModule(), datamodule=StubData())
    for step in range(1, 9):
        loops = kept.at[step]
        batches, epochs = loops["epoch_loop.batch_progress"], loops["epoch_progress"]
        assert {*batches["total"].values()} == {step}
        assert {*batches["current"].values()} == {step % 4 or 4}
        assert batches["is_last_batch"] == (step % 4 == 0)
        # a resumed fit skips that validation and counts its batch a second time
        counted = loops["epoch_loop.state_dict"][LOGGED_STEPS]
        assert counted == step - (step % 4 == 2)
        begun = -(-step // 4)
        assert epochs["total"]["ready"] == epochs["total"]["started"] == begun
        assert epochs["total"]["processed"] == epochs["total"]["completed"] == step // 4


@pytest.mark.parametrize("arguments", [{"every_n_epochs": 0}, {"every_n_steps": 0}])
def test_arguments_are_checked(arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="Expected `every_n_epochs` and `every_n_steps` of at"):
        LastCheckpoint(**arguments)


def test_scores_continue_in_a_folder_that_was_moved(tmp_path: Path) -> None:
    def fit(folder: Path, epochs: int, **kwargs: Any) -> BestCheckpoint:
        best = BestCheckpoint()
        callbacks = OnlineLinearProbe(), LastCheckpoint(), best
        run = trainer(folder, *callbacks, epochs=epochs, enable_checkpointing=True)
        run.fit(StubModule(), datamodule=StubData(), weights_only=True, **kwargs)
        return best

    before = fit(tmp_path / "here", 2)
    (tmp_path / "here").rename(tmp_path / "there")
    after = fit(tmp_path / "there", 2, ckpt_path=tmp_path / "there/checkpoints/last.ckpt")
    assert after.best_model_score == before.best_model_score
    assert after.best_model_path == str(tmp_path / "there/checkpoints/best.ckpt")
    elsewhere = fit(tmp_path / "new", 2, ckpt_path=tmp_path / "there/checkpoints/last.ckpt")
    assert elsewhere.best_model_path == ""


def test_another_interval_is_no_other_callback() -> None:
    assert LastCheckpoint().state_key == LastCheckpoint(3, every_n_steps=2).state_key
