"""Two processes with shards of uneven length log what one process with all the data logs."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.callback_stubs import StubData, StubModule, trainer
from helpers.gloo_processes import Processes, trainer_options
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
from duality_ssl.distributed import world_size

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


@pytest.fixture
def two(gloo_processes: Callable[[int], Processes]) -> Processes:
    return gloo_processes(2)


def fit(folder: Path, callbacks: list[Callback], data: StubData) -> dict[str, float]:
    run = trainer(folder, *callbacks, enable_progress_bar=True, **trainer_options())
    run.fit(StubModule(), datamodule=data)
    return {name: value.item() for name, value in run.callback_metrics.items()}


def fit_uneven(folder: Path) -> dict[str, float]:
    """51 validation samples are shards of 26 and 25, in batches of 20."""
    return fit(folder, callbacks(), StubData(n_val=51, batch_size=32 // world_size()))


def test_a_fit_of_two_processes_is_that_of_one(two: Processes, tmp_path: Path) -> None:
    one = fit_uneven(tmp_path)
    assert set(one) >= NAMES
    for metrics in two.run(fit_uneven, tmp_path):
        assert {name: metrics[name] for name in NAMES} == pytest.approx(
            {name: one[name] for name in NAMES}, rel=2e-4
        )
        assert {name for name in one if name.startswith("duality/")} <= set(metrics)


def fit_uneven_probe_set(folder: Path) -> dict[str, float]:
    """The probe set's shards are 3 and 2 batches: a step that one process took alone would wait."""
    return fit(folder, callbacks()[:2], StubData("probe", n_probe=65, batch_size=16))


def test_a_probe_set_of_uneven_shards_does_not_hang(two: Processes, tmp_path: Path) -> None:
    for metrics in two.run(fit_uneven_probe_set, tmp_path):
        assert metrics["val/probe_top1"] > 0.3
        assert metrics["val/knn_top1"] > 0.8


class InPieces(Callback):
    """Gathers 10 of 64 and 64, or of 26 and 25 rows at a time."""

    def setup(self, *_: Any, **__: Any) -> None:
        outputs._ROWS, self.rows = 10, outputs._ROWS

    def teardown(self, *_: Any, **__: Any) -> None:
        outputs._ROWS = self.rows


def evaluate(folder: Path) -> None:
    """Evaluate without Lightning's advice to synchronise figures."""
    callbacks = [InPieces(), OfflineEvaluation(few_label_draws=1)]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*sync_dist=True")
        run = trainer(folder, *callbacks, **trainer_options())
        run.test(StubModule(), StubData(n_val=51), verbose=False)


def test_evaluation_of_two_processes_is_that_of_one(two: Processes, tmp_path: Path) -> None:
    """Rows come in another order, which only draws depend on: few labels, and those held out."""
    evaluate(tmp_path / "one")
    two.run(evaluate, tmp_path / "two")
    records = []
    for folder in ("one", "two"):
        record = json.loads((tmp_path / folder / "evaluation.json").read_text())
        drawn = {"few_label_top1", "few_label_std", "linear_c"}
        records.append({name: value for name, value in record.items() if name not in drawn})
    settings = [record.pop("settings") for record in records]
    texts = [(record.pop("method"), record.pop("checkpoint")) for record in records]
    assert (settings[0], texts[0]) == (settings[1], texts[1])
    nested = [(record.pop("per_class"), record.pop("confusion")) for record in records]
    assert nested[0] == nested[1]
    assert records[0] == pytest.approx(records[1], rel=1e-5)
