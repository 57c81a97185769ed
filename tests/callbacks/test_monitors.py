import itertools
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.callback_stubs import PlainModule, StubData, StubModule, plain_loaders
from helpers.fits import fit, trainer
from lightning import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from duality_ssl.callbacks import (
    CollapseGuard,
    DualityMonitor,
    GuardError,
    RankMe,
    SupervisionGap,
    ViewGrid,
    duality_terms,
)
from duality_ssl.criteria import DCL, NSCL
from duality_ssl.functional import rankme, supervision_gap_bound


def embeddings(n: int, d: int) -> Tensor:
    z = torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return z * torch.linspace(0.5, 2, d) + 0.3


@pytest.mark.parametrize("labels", ["own", "probe", None])
def test_rankme_is_that_of_the_validation_set(tmp_path: Path, labels: str | None) -> None:
    data, module = StubData(labels), StubModule()
    run = trainer(tmp_path, RankMe(), epochs=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run.fit(module, datamodule=data)
    with torch.no_grad():
        features = module.backbone(data.val.tensors[0])
        expected = rankme(module.projector(features)), rankme(features)
    logged = [run.callback_metrics[name].item() for name in ("val/rankme", "val/rankme_features")]
    assert logged == pytest.approx([value.item() for value in expected], rel=1e-5)


@pytest.mark.parametrize(("most", "shares"), [(21, [7, 7, 7]), (48, [16, 16, 10]), (2, [1, 1, 0])])
def test_rankme_takes_a_share_of_every_batch(
    tmp_path: Path, most: int, shares: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """50 samples in batches of 20, 20 and 10."""
    seen = []
    monkeypatch.setattr(
        "duality_ssl.callbacks.spectrum.rankme", lambda z: seen.append(z) or torch.tensor(1.0)
    )
    data, module = StubData(), StubModule(lr=0.0)
    fit(tmp_path, module, data, RankMe(max_samples=most), epochs=1)
    images = [data.val.tensors[0][i * 20 :][:n] for i, n in enumerate(shares)]
    with torch.no_grad():
        expected = module.projector(module.backbone(torch.cat(images)))
    torch.testing.assert_close(seen[0], expected)


def test_rankme_of_a_diverged_network_is_nan(tmp_path: Path) -> None:
    run = fit(tmp_path, StubModule(loss=torch.nan), StubData(), RankMe(), epochs=1)
    assert run.callback_metrics["val/rankme"].isnan()


@pytest.mark.parametrize(("n", "d"), [(6, 4), (4, 7), (5, 5)], ids=["tall", "wide", "square"])
def test_duality_terms_match_reference(n: int, d: int) -> None:
    z = embeddings(n, d)
    rows = (z / z.norm(dim=1, keepdim=True)).numpy()
    columns = (z / z.norm(dim=0)).numpy()
    cosines = [rows[i] @ rows[j] for i, j in itertools.permutations(range(n), 2)]
    products = [rows[:, i] @ rows[:, j] for i, j in itertools.permutations(range(d), 2)]
    expected = {
        "sample_contrastive": sum(c**2 for c in cosines),
        "dimension_contrastive": sum(p**2 for p in products),
        "columns_fourth_over_bound": sum((rows[:, j] @ rows[:, j]) ** 2 for j in range(d))
        / (n**2 / d),
        "rows_fourth_over_bound": sum((row @ row) ** 2 for row in columns) / (d**2 / n),
        "cosine_mean": np.mean(cosines),
        "cosine_std": np.std(cosines),
        "theorem_residual": 0,
    }
    terms = {name: value.item() for name, value in duality_terms(z).items()}
    assert terms == pytest.approx(expected, rel=1e-10, abs=1e-12)
    assert terms["columns_fourth_over_bound"] >= 1
    assert terms["rows_fourth_over_bound"] >= 1


@pytest.mark.parametrize(
    ("dim", "name"),
    [(0, "columns_fourth_over_bound"), (1, "rows_fourth_over_bound")],
    ids=["rows", "columns"],
)
def test_bounds_are_of_rows_and_columns_that_are_not_zero(dim: int, name: str) -> None:
    """With half of the rows zero, four times the bound of the rest; zero columns only add to it."""
    z = torch.randn(40, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    half = torch.arange(20)
    zeroed = duality_terms(z.index_fill(dim, half, 0))[name]
    torch.testing.assert_close(zeroed, duality_terms(z.narrow(dim, 20, 20))[name] / 4)
    assert zeroed < 1
    assert duality_terms(z.index_fill(1 - dim, half, 0))[name] >= 1


@pytest.mark.parametrize("scale", [1e-4, 1e4], ids=["tiny", "huge"])
def test_duality_terms_are_float32_and_free_of_scale(scale: float) -> None:
    z = embeddings(40, 8)
    expected = duality_terms(z)
    for dtype, rtol in ((torch.float32, 1e-4), (torch.bfloat16, 0.05)):
        terms = duality_terms((z * scale).to(dtype))
        assert {value.dtype for value in terms.values()} == {torch.float32}
        assert terms.pop("theorem_residual") < 1e-5
        for name, value in terms.items():
            torch.testing.assert_close(value.double(), expected[name], rtol=rtol, atol=0.01)


def test_duality_residual_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """It compares two products; were one wrong, it would say so."""
    z = embeddings(8, 6)
    assert duality_terms(z)["theorem_residual"] < 1e-12
    half = {(6, 6): 0.5}
    monkeypatch.setattr(torch.Tensor, "square", lambda x: x * x * half.get(tuple(x.shape), 1))
    assert duality_terms(z)["theorem_residual"] == pytest.approx(0.5)


def test_duality_monitor_logs_the_mean_over_views_and_its_turns(tmp_path: Path) -> None:
    class Spy(StubModule):
        def training_step(self, batch, batch_idx):  # noqa: ANN001, ANN202
            outputs = super().training_step(batch, batch_idx)
            if batch_idx in (0, 2):  # of 4 batches, every second
                measured.append([duality_terms(z[:20]) for z in outputs["embeddings"]])
            return outputs

    measured: list = []
    monitor = DualityMonitor(every_n_steps=2, max_samples=20)
    run = fit(tmp_path, Spy(), StubData(), monitor, epochs=1)
    for name in measured[0][0]:
        expected = torch.stack([view[name] for views in measured for view in views]).mean()
        torch.testing.assert_close(run.callback_metrics[f"duality/{name}"], expected)


def test_supervision_gap_is_that_of_the_labelled_samples(tmp_path: Path) -> None:
    class Spy(StubModule):
        def training_step(self, batch, batch_idx):  # noqa: ANN001, ANN202
            batch[1][:5] = -1
            if batch_idx == 1:
                batch[1][:] = 2  # one class
            outputs = super().training_step(batch, batch_idx)
            if batch_idx != 1:
                z, y = [z[5:20] for z in outputs["embeddings"]], outputs["labels"][5:20]
                gap = DCL(0.5)(*z)["loss"] - NSCL(0.5)(*z, labels=y)["loss"]
                measured.append((gap, supervision_gap_bound(y, 0.5).float()))
            return outputs

    measured: list = []
    monitor = SupervisionGap(0.5, every_n_steps=1, max_samples=20)
    run = fit(tmp_path, Spy(), StubData(), monitor, epochs=1)
    gap, bound = (torch.stack(values).mean() for values in zip(*measured, strict=True))
    assert len(measured) == 3
    torch.testing.assert_close(run.callback_metrics["supervision/gap"], gap)
    torch.testing.assert_close(run.callback_metrics["supervision/bound"], bound)
    assert 0 < gap < bound


def test_without_labels_there_is_no_supervision_gap(tmp_path: Path) -> None:
    run = fit(tmp_path, StubModule(), StubData(labels=None), SupervisionGap(), epochs=1)
    assert "supervision/gap" not in run.callback_metrics


def test_monitors_take_any_module(tmp_path: Path) -> None:
    module = PlainModule(lambda h, y: {"embeddings": h})
    watching = [RankMe(), DualityMonitor(), CollapseGuard(action="stop")]
    run = fit(tmp_path, module, plain_loaders(), *watching, epochs=2)
    assert run.callback_metrics["val/rankme_features"] > 1
    assert "val/rankme" not in run.callback_metrics
    assert run.callback_metrics["duality/cosine_std"] > 0


def test_guard_names_images_of_any_batch(tmp_path: Path) -> None:
    train, _ = plain_loaders()
    train.dataset.tensors[0][5] = torch.nan
    module = PlainModule(lambda h, y: {"embeddings": h})
    with pytest.raises(GuardError, match=r"pixels of 1 of 32 images \(row 5\) are NaN"):
        fit(tmp_path, module, train, CollapseGuard(action="stop"))


@pytest.mark.parametrize("callback", [DualityMonitor, CollapseGuard, ViewGrid])
def test_what_a_monitor_needs_is_said(tmp_path: Path, callback: type[Callback]) -> None:
    board = TensorBoardLogger(tmp_path)
    run = trainer(tmp_path, callback(), logger=board, log_every_n_steps=1)
    needs = r"'embeddings', a tensor|\(views, labels\)"
    with pytest.raises(ValueError, match=needs):
        run.fit(PlainModule(), *plain_loaders())


@pytest.mark.parametrize(
    "build",
    [
        lambda: CollapseGuard(action="cry"),
        lambda: CollapseGuard(patience=0),
        lambda: CollapseGuard(max_growth=1),
        lambda: DualityMonitor(every_n_steps=0),
        lambda: DualityMonitor(max_samples=1),
        lambda: RankMe(max_samples=1),
        lambda: SupervisionGap(temperature=0),
    ],
    ids=[
        *("action", "patience", "growth", "every_n_steps", "duality_samples", "rankme_samples"),
        "temperature",
    ],
)
def test_arguments_are_checked(build) -> None:  # noqa: ANN001
    with pytest.raises(ValueError, match="Expected `"):
        build()
