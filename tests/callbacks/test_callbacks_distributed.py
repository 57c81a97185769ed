"""Two processes with shards of uneven length log what one process with all the data logs."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from helpers.callback_stubs import StubData, StubModule, trainer
from lightning import Callback

from duality_ssl.callbacks import (
    CollapseGuard,
    DualityMonitor,
    OfflineEvaluation,
    OnlineKNN,
    OnlineLinearProbe,
    RankMe,
    RunProgress,
    outputs,
)

# without duality/: it looks at what the criterion saw, and the stub's criterion does not gather
NAMES = {
    "val/probe_top1", "val/probe_top5", "val/probe_projector_top1", "val/knn_top1", "val/knn_top5",
    "val/rankme", "val/rankme_features", "train/probe_loss", "train/probe_top1",
}  # fmt: skip


def callbacks() -> list[Callback]:
    return [
        OnlineLinearProbe(representations=["backbone", "projector"]),
        OnlineKNN(k=9),
        RankMe(),
        DualityMonitor(),
        CollapseGuard(),
        RunProgress(),
    ]


def fit(folder: Path, processes: int) -> dict[str, float]:
    settings = {"strategy": "ddp_spawn", "devices": processes} if processes > 1 else {}
    run = trainer(folder, *callbacks(), epochs=2, enable_progress_bar=True, **settings)
    # 51 validation samples are shards of 26 and 25, in batches of 20
    data = StubData(n_val=51, batch_size=32 // processes)
    run.fit(StubModule(), datamodule=data)
    return {name: value.item() for name, value in run.callback_metrics.items()}


@pytest.mark.slow
def test_a_fit_of_two_processes_is_that_of_one(tmp_path: Path) -> None:
    one, two = fit(tmp_path, 1), fit(tmp_path, 2)
    assert set(one) >= NAMES
    assert {name: two[name] for name in NAMES} == pytest.approx(
        {name: one[name] for name in NAMES}, rel=2e-4
    )
    assert {name for name in one if name.startswith("duality/")} <= set(two)


@pytest.mark.slow
def test_a_probe_set_of_uneven_shards_does_not_hang(tmp_path: Path) -> None:
    """The probe set's shards are 3 and 2 batches: a step that one process took alone would wait."""
    run = trainer(tmp_path, *callbacks()[:2], epochs=2, strategy="ddp_spawn", devices=2)
    run.fit(StubModule(), datamodule=StubData("probe", n_probe=65, batch_size=16))
    assert run.callback_metrics["val/probe_top1"] > 0.3
    assert run.callback_metrics["val/knn_top1"] > 0.8


class InPieces(Callback):
    """Gathers 10 of 64 and 64, or of 26 and 25 rows at a time; no advice to synchronise figures."""

    def setup(self, *_: Any, **__: Any) -> None:
        outputs._ROWS, self.rows = 10, outputs._ROWS
        warnings.filterwarnings("error", message=".*sync_dist=True")

    def teardown(self, *_: Any, **__: Any) -> None:
        outputs._ROWS = self.rows


@pytest.mark.slow
def test_evaluation_of_two_processes_is_that_of_one(tmp_path: Path) -> None:
    """Rows come in another order, which only the few-label draws depend on."""
    records = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        settings = {"strategy": "ddp_spawn", "devices": processes} if processes > 1 else {}
        run = trainer(folder, InPieces(), OfflineEvaluation(few_label_draws=1), **settings)
        run.test(StubModule(), StubData(n_val=51), verbose=False)
        record = json.loads((folder / "evaluation.json").read_text())
        records.append({name: value for name, value in record.items() if "few_label" not in name})
    settings = [record.pop("settings") for record in records]
    texts = [(record.pop("method"), record.pop("checkpoint")) for record in records]
    assert (settings[0], texts[0]) == (settings[1], texts[1])
    assert records[0] == pytest.approx(records[1], rel=1e-5)
