"""Means over an epoch: weighted, over processes, and continued after a resume."""

from typing import Any

import pytest
import torch
from lightning import LightningModule

from duality_ssl.callbacks import means as module
from duality_ssl.callbacks.means import EpochMeans

BATCHES = [(1.0, 10.0, 4), (2.0, 20.0, 4), (5.0, 50.0, 1)]


class Logged(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, float]] = []

    def log_dict(self, metrics: Any, *_: Any, **__: Any) -> None:
        self.rows.append({name: value.item() for name, value in metrics.items()})


def add(means: EpochMeans, batches: list[tuple[float, float, int]]) -> None:
    for loss, top1, weight in batches:
        means.add({"loss": torch.tensor(loss), "top1": torch.tensor(top1)}, weight)


@pytest.mark.parametrize("cut", range(4))
def test_means_continue_after_a_resume(cut: int) -> None:
    before, after, logged = EpochMeans(), EpochMeans(), Logged()
    add(before, BATCHES[:cut])
    after.load_state_dict(before.state_dict())
    after.to(torch.device("cpu"))
    add(after, BATCHES[cut:])
    after.log(logged)
    (row,) = logged.rows
    assert row == pytest.approx({"loss": 17 / 9, "top1": 170 / 9})
    after.reset()
    after.log(logged)
    assert len(logged.rows) == 1


def test_each_process_continues_its_own_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    state = {"loss": torch.tensor([4.0, 9.0]), "weight": torch.tensor([2.0, 3.0])}
    another, own, logged = EpochMeans(), EpochMeans(), Logged()
    another.load_state_dict(state)  # one process, and not two
    another.log(logged)
    assert logged.rows == []
    monkeypatch.setattr(module, "world_size", lambda: 2)
    monkeypatch.setattr(module, "rank", lambda: 1)
    own.load_state_dict(state)
    own.log(logged)
    assert logged.rows == [{"loss": 3.0}]
