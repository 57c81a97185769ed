"""A fit that is killed and resumed ends, bit for bit, as one that never stopped."""

import io
import sys
from itertools import count
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from helpers.resume_stubs import unequal
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor

from duality_ssl import BYOL, DINO, SwAV, VICReg
from duality_ssl.callbacks import (
    BestCheckpoint,
    CollapseGuard,
    DualityMonitor,
    LastCheckpoint,
    OnlineKNN,
    OnlineLinearProbe,
    RankMe,
    RunProgress,
    StepSeed,
)
from duality_ssl.data import SSLDataModule
from duality_ssl.runs.folder import newest_checkpoint
from duality_ssl.runs.loggers import run_loggers

RUN = Path("runs/version_0")


class Killed(BaseException):
    pass


def kill_at(hook: str, call: int) -> Callback:
    """A callback that ends the run at the n-th call of one of its hooks, last of all callbacks."""
    callback, calls = Callback(), count(1)

    def die(*args: Any, **kwargs: Any) -> None:
        if next(calls) == call:
            raise Killed(hook)

    setattr(callback, hook, die)
    return callback


def fit(*extra: Callback, **settings: Any) -> Trainer:
    """Resume the run of this folder from its newest checkpoint, or start it."""
    lightning.seed_everything(0, verbose=False)
    method, network = settings.pop("method", VICReg), settings.pop("network", {})
    shape = {"backbone": "resnet_tiny", "projector": "16-16", "in_channels": 1}
    module = method(**shape, **network, warmup_epochs=0.5)
    if settings.pop("dropout", False):
        module.projector.insert(1, torch.nn.Dropout(0.5))
    probe = settings.pop("probe_source", None)
    data = SSLDataModule(
        "digits", batch_size=16, image_size=8, subset=100, probe_source=probe, seed=3
    )
    callbacks = [
        *(OnlineLinearProbe(["backbone", "projector"]), OnlineKNN(), RankMe()),
        *(DualityMonitor(every_n_steps=2), CollapseGuard(every_n_steps=2)),
        LastCheckpoint(every_n_steps=settings.pop("every_n_steps", 1)),
        BestCheckpoint(),
        *(LearningRateMonitor("step"), StepSeed(), RunProgress(), *extra),
    ]
    checkpoint = newest_checkpoint(RUN)
    defaults: dict[str, Any] = {
        "max_epochs": 3,
        "accelerator": "cpu",
        "devices": 1,
        "logger": run_loggers(RUN, checkpoint and checkpoint.step, []),
        "log_every_n_steps": 1,
        "limit_val_batches": 3,
        "enable_model_summary": False,
        "num_sanity_val_steps": 1,
        "use_distributed_sampler": False,
    }
    trainer = Trainer(callbacks=callbacks, **(defaults | settings))
    path = None if checkpoint is None else checkpoint.path
    trainer.fit(module, datamodule=data, ckpt_path=path, weights_only=True)
    return trainer


def results(trainer: Trainer) -> dict[str, Any]:
    """Everything that a run writes."""
    return {
        "checkpoint": torch.load(RUN / "checkpoints/last.ckpt", weights_only=True),
        "metrics.csv": (RUN / "metrics.csv").read_text(),
        "callback_metrics": dict(trainer.callback_metrics),
    }


SETTINGS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "dropout": {"dropout": True, "every_n_steps": 2},
    "labels in another set": {"probe_source": "digits", "val_check_interval": 2},
    "validation within epochs": {"val_check_interval": 2},
    "accumulated gradients": {"accumulate_grad_batches": 2, "val_check_interval": 3},
    "teacher": {
        **{"method": BYOL, "network": {"predictor": "12-d", "teacher_momentum": 0.5}},
        **{"accumulate_grad_batches": 2, "every_n_steps": 2},
    },
    "centre of the targets": {"method": DINO, "accumulate_grad_batches": 2, "every_n_steps": 2},
    "queue": {
        **{"method": SwAV, "network": {"num_prototypes": 12, "queue": 24, "frozen_steps": 2}},
        "every_n_steps": 2,
    },
    "rows every 4 steps": {"log_every_n_steps": 4, "every_n_steps": 3},
    "validation every 2 epochs": {"check_val_every_n_epoch": 2, "every_n_steps": None},
    "steps": {"max_steps": 16, "max_epochs": -1},
    "steps and their validation": {
        **{"max_steps": 16, "max_epochs": -1},
        **{"check_val_every_n_epoch": None, "val_check_interval": 5},
    },
}
KILLS = {
    "batch start": ("on_train_batch_start", 4),
    "batch end": ("on_train_batch_end", 8),
    "epoch's last batch end": ("on_train_batch_end", 6),
    "validation start": ("on_validation_start", 3),
    "validation batch": ("on_validation_batch_end", 6),
    "validation end": ("on_validation_end", 2),
    "epoch end": ("on_train_epoch_end", 1),
    "epoch start": ("on_train_epoch_start", 2),
    "saving": ("on_save_checkpoint", 7),
    "last epoch": ("on_train_batch_start", 16),
    "end": ("on_train_end", 1),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Results of uninterrupted runs, made when asked for."""

    class Whole(dict[str, Any]):
        def __missing__(self, name: str) -> Any:
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(tmp_path_factory.mktemp("whole"))
                self[name] = results(fit(**SETTINGS[name]))
            return self[name]

    return Whole()


def kill_and_resume(kills: list[tuple[str, int]], settings: dict[str, Any]) -> dict[str, Any]:
    for kill in kills:
        with pytest.raises(Killed):
            fit(kill_at(*kill), **settings)
    return results(fit(**settings))


@pytest.mark.parametrize("kill", KILLS.values(), ids=KILLS)
def test_killed_anywhere(
    kill: tuple[str, int], whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert unequal(kill_and_resume([kill], {}), whole["as it is"]) == []


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_has_its_bar_in_the_middle_of_an_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdout", screen := Terminal())
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    kill_and_resume([("on_train_batch_start", 4)], {"max_epochs": 1})
    assert screen.getvalue().count("epoch 1/1") > 1


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SETTINGS][1:])
def test_killed_over_and_over(
    name: str, whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    kills = [
        ("on_train_batch_start", 4),
        ("on_validation_batch_end", 2),
        ("on_train_batch_end", 3),
        ("on_train_epoch_end", 1),
    ]
    assert unequal(kill_and_resume(kills, SETTINGS[name]), whole[name]) == []
