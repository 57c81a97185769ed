"""Where time is said to go, on a clock that stands still but for the pauses of these parts."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.callback_stubs import StubData, StubModule, trainer
from lightning import Callback, LightningModule, Trainer

from duality_ssl.runs.profiler import PARTS, StepProfiler

NOW = [0.0]
SLOW = 1.0


def pause(seconds: float = SLOW) -> None:
    NOW[0] += seconds


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("duality_ssl.runs.profiler.time.perf_counter", lambda: NOW[0])


class Slow(torch.nn.Module):
    """Takes its time in the forward pass."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pause()
        return x.square().mean()


class SlowBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        pause()
        return grad


class SlowSGD(torch.optim.SGD):
    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        pause()
        return loss


class Dear(Callback):
    def on_train_batch_end(self, *_: Any) -> None:
        pause()

    def on_validation_start(self, *_: Any) -> None:
        pause(10)


class Module(StubModule):
    """One part of the step is slow."""

    def __init__(self, slow: str) -> None:
        super().__init__()
        self.slow = slow
        self.criterion = Slow() if slow == "criterion" else torch.nn.Identity()
        if slow == "forward":
            self.backbone.append(Slow())
            self.backbone[-1].forward = lambda x: (pause(SLOW / 2), x)[1]  # of each view

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        if self.slow == "rest":
            pause()
        out = super().training_step(batch, batch_idx)
        out["loss"] = out["loss"] + 0 * self.criterion(out["embeddings"][0]).mean()
        if self.slow == "backward":
            out["loss"] = SlowBackward.apply(out["loss"])
        return out

    def configure_optimizers(self) -> torch.optim.Optimizer:
        kind = SlowSGD if self.slow == "optimiser" else torch.optim.SGD
        return kind(self.parameters(), lr=1e-3)


class Data(StubData):
    def __init__(self, slow: str) -> None:
        super().__init__()
        self.slow = slow

    def _pause(self, batch: Any, part: str) -> Any:
        if self.slow == part and self.trainer.training:
            pause()
        return batch

    def train_dataloader(self) -> Any:
        loader = super().train_dataloader()
        collate = loader.collate_fn
        if self.slow == "data wait":
            loader.collate_fn = lambda samples: (pause(), collate(samples))[1]
        return loader

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        return self._pause(batch, "transfer")

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return self._pause(batch, "augment")


@pytest.mark.parametrize("slow", PARTS)
def test_time_goes_where_it_is_spent(
    slow: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profiler = StepProfiler()
    callbacks = [Dear()] if slow == "callbacks" else []
    run = trainer(tmp_path, *callbacks, epochs=2, profiler=profiler)
    run.fit(Module(slow), datamodule=Data(slow))
    assert profiler.batches == 8
    assert {part: x for part, x in profiler.seconds.items() if x} == {slow: 8 * SLOW}
    text = capsys.readouterr().out
    shares = dict(re.findall(r"^  (\w[\w ]*?) +[\d.]+ s +([\d.]+) %$", text, re.MULTILINE))
    assert [*shares] == [*PARTS]
    assert float(shares[slow]) == sum(map(float, shares.values())) == 100
    assert (tmp_path / "profile.txt").read_text().strip() in text
    if slow == "callbacks":
        assert profiler.callbacks["Dear"] == 8 * SLOW
        assert "    Dear  " in text
        assert profiler.validation == 20


def test_profile_is_all_of_the_training(tmp_path: Path) -> None:
    class Ticking(Callback):
        """Every reading of the clock is later than the one before."""

        def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            self.started = NOW[0]

        def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            self.seconds = NOW[0] - self.started

    profiler, ticking = StepProfiler(), Ticking()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("duality_ssl.runs.profiler.time.perf_counter", lambda: (pause(), NOW[0])[1])
        trainer(tmp_path, ticking, profiler=profiler).fit(Module("rest"), datamodule=Data("rest"))
    total = sum(profiler.seconds.values()) + profiler.validation
    assert total == pytest.approx(ticking.seconds, abs=20)  # a few readings at either end
    assert ticking.seconds > 500


def test_nothing_is_left_on_the_network(tmp_path: Path) -> None:
    module = Module("rest")
    trainer(tmp_path, epochs=1, profiler=StepProfiler()).fit(module, datamodule=StubData())
    for part in (module.backbone, module.projector, module.criterion):
        assert not part._forward_hooks
        assert not part._forward_pre_hooks


def test_validation_alone_has_no_profile(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trainer(tmp_path, profiler=StepProfiler())
    run.validate(StubModule(), datamodule=StubData(), verbose=False)
    assert capsys.readouterr().out == ""
    assert not list(tmp_path.iterdir())
