import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.callback_stubs import PlainModule, StubData, StubModule, plain_loaders
from helpers.fits import fit, trainer
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from duality_ssl.callbacks import OnlineKNN, OnlineLinearProbe
from duality_ssl.callbacks.standardized import StandardizedLinear
from duality_ssl.evaluation import linear_top1

TOP1 = {"train/probe_loss", "train/probe_top1", "val/probe_top1"}


@pytest.mark.parametrize("labels", ["own", "probe"], ids=["labelled_pretraining", "probe_set"])
def test_probe_learns_and_logs(tmp_path: Path, labels: str) -> None:
    probe = OnlineLinearProbe(representations=["backbone", "projector"])
    run = fit(tmp_path, StubModule(), StubData(labels), probe, epochs=6)
    metrics = run.callback_metrics
    projector = {name.replace("probe", "probe_projector") for name in TOP1}
    top5 = {"val/probe_top5", "val/probe_projector_top5"}
    assert {name for name in metrics if "probe" in name} == TOP1 | projector | top5
    assert metrics["val/probe_top1"] > 0.9
    assert metrics["val/probe_projector_top1"] > 0.8
    assert metrics["val/probe_top1"] <= metrics["val/probe_top5"] <= 1


def test_probe_tracks_the_offline_evaluation(tmp_path: Path) -> None:
    data, module = StubData(n=320, n_val=200, batch_size=32), StubModule()
    for dataset, seed in ((data.train, 5), (data.val, 6)):  # hard enough to be told apart
        images = dataset.tensors[0]
        images += 0.8 * torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
    run = fit(tmp_path, module, data, OnlineLinearProbe(), epochs=10)
    with torch.no_grad():
        train, val = (module.backbone(d.tensors[0]) for d in (data.train, data.val))
    offline = linear_top1(train, data.train.tensors[1], val, data.val.tensors[1])
    assert offline < 0.95
    assert run.callback_metrics["val/probe_top1"] == pytest.approx(offline, abs=0.04)


@pytest.mark.parametrize("scale", [1e-3, 1e3], ids=["tiny", "huge"])
def test_probe_does_not_depend_on_the_scale_of_features(tmp_path: Path, scale: float) -> None:
    results = []
    for factor in (1.0, scale):
        run = trainer(tmp_path, OnlineLinearProbe(), epochs=2)
        run.fit(StubModule(scale=factor, lr=0.0), datamodule=StubData())
        results.append(run.callback_metrics["train/probe_loss"])
    torch.testing.assert_close(results[0], results[1], rtol=1e-3, atol=1e-4)


def test_two_classes_have_no_top5(tmp_path: Path) -> None:
    run = fit(tmp_path, StubModule(), StubData(classes=2), OnlineLinearProbe(), epochs=1)
    assert "val/probe_top1" in run.callback_metrics
    assert "val/probe_top5" not in run.callback_metrics


def test_validation_counts_each_sample_once(tmp_path: Path) -> None:
    """50 samples in batches of 20, 20 and 10: a mean of batch means would weigh the last twice."""
    data, module, probe = StubData(), StubModule(), OnlineLinearProbe()
    run = fit(tmp_path, module, data, probe, epochs=1, limit_train_batches=2)
    images, labels = data.val.tensors
    with torch.no_grad():
        logits = probe.heads["backbone"](module.backbone(images))
    expected = (logits.argmax(1) == labels).float().mean()
    assert 0 < expected < 1
    torch.testing.assert_close(run.callback_metrics["val/probe_top1"], expected)


@pytest.mark.parametrize("labels", ["own", "probe"])
def test_backbone_sees_nothing_of_the_probe(tmp_path: Path, labels: str) -> None:
    """Neither its weights nor the number of its calls differ from a run without the probe."""
    modules = [StubModule(), StubModule()]
    for module, callbacks in zip(modules, ([], [OnlineLinearProbe()]), strict=True):
        fit(tmp_path, module, StubData(labels), *callbacks)
    without, with_probe = modules
    assert without.forwards == with_probe.forwards
    torch.testing.assert_close(without.state_dict(), with_probe.state_dict(), rtol=0, atol=0)


def test_without_labels_it_is_off_and_says_so_once(tmp_path: Path) -> None:
    run = trainer(tmp_path, OnlineLinearProbe())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run.fit(StubModule(), datamodule=StubData(labels=None))
    said = [str(w.message) for w in caught if "OnlineLinearProbe" in str(w.message)]
    assert len(said) == 1
    assert "off: the data has no labels" in said[0]
    assert "--data.probe_source" in said[0]
    assert "OnlineLinearProbe(num_classes=...)" in said[0]
    assert not [name for name in run.callback_metrics if "probe" in name]


def test_unlabelled_samples_in_a_batch_do_not_count(tmp_path: Path) -> None:
    heads = []
    for junk in (0.0, 100.0):
        data, probe = StubData(), OnlineLinearProbe()
        images, labels = data.train.tensors
        labels[::4] = -1
        images[::4] += junk
        fit(tmp_path, StubModule(lr=0.0), data, probe)
        heads.append(probe.heads.state_dict())
    assert heads[0]["backbone.linear.weight"].abs().sum() > 0
    torch.testing.assert_close(heads[0], heads[1])


def test_a_batch_without_labels_leaves_the_head_finite(tmp_path: Path) -> None:
    data, probe = StubData(), OnlineLinearProbe()
    data.train.tensors[1][:32] = -1
    fit(tmp_path, StubModule(), data, probe)
    assert all(value.isfinite().all() for value in probe.heads.state_dict().values())


ENTRIES: dict[str, Any] = {
    "tensor": lambda h, y: {"features": h, "labels": y},
    "one": lambda h, y: {"features": (h,), "labels": y},
    "three": lambda h, y: {"features": [h, 2 * h, h + 1], "labels": y.int()},
}


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
def test_any_module_is_probed(tmp_path: Path, entry: Any) -> None:
    probe = OnlineLinearProbe(num_classes=8)
    run = fit(tmp_path, PlainModule(entry), plain_loaders(), probe, epochs=4)
    assert run.callback_metrics["val/probe_top1"] > 0.9
    assert probe.state_dict()["steps"] == 4 * 4


BAD: dict[str, tuple[Any, str]] = {
    "nothing": (lambda h, y: {}, r"Expected `training_step` to return .*'features'.*no 'features'"),
    "no labels": (lambda h, y: {"features": h}, "'labels', a tensor .* but got no 'labels'"),
    "map": (lambda h, y: {"features": h[:, :, None], "labels": y}, r"a tensor \(32, 12, 1\)"),
    "both views in one": (
        lambda h, y: {"features": torch.cat([h, h]), "labels": y},
        r"its N = 64 samples .*, but got a tensor \(32,\)",
    ),
    "classes": (lambda h, y: {"features": h, "labels": y + 5}, "number of classes, 8, .*12: pass"),
}


@pytest.mark.parametrize(("entry", "said"), BAD.values(), ids=BAD)
@pytest.mark.parametrize("callback", [OnlineLinearProbe, OnlineKNN])
def test_what_a_step_must_return_is_said(
    tmp_path: Path, callback: Any, entry: Any, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        fit(tmp_path, PlainModule(entry), plain_loaders(), callback(num_classes=8), epochs=1)


@pytest.mark.parametrize("callback", [OnlineLinearProbe, OnlineKNN])
def test_what_a_validation_step_must_return_is_said(tmp_path: Path, callback: Any) -> None:
    module = PlainModule(val_entry=lambda h, y: h.mean())
    with pytest.raises(ValueError, match=r"Expected `validation_step` .* no 'features'"):
        fit(tmp_path, module, plain_loaders(), callback(num_classes=8), epochs=1)


def test_number_of_classes_is_checked() -> None:
    with pytest.raises(ValueError, match="`num_classes` of at least 1, but got 0"):
        OnlineLinearProbe(num_classes=0)


def test_number_of_classes_that_is_given_is_the_one(tmp_path: Path) -> None:
    probe = OnlineLinearProbe(num_classes=11)
    fit(tmp_path, StubModule(), StubData(), probe, epochs=1)
    assert probe.heads["backbone"].linear.out_features == 11


def test_new_heads_draw_no_random_numbers() -> None:
    before = torch.get_rng_state()
    StandardizedLinear(3, 2)
    assert torch.equal(torch.get_rng_state(), before)


class Rescale(Callback):
    """Moves the features from one validation to the next, as training a backbone does."""

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.scale *= -3


def test_statistics_of_a_probe_set_are_those_of_this_validation(tmp_path: Path) -> None:
    data, module, probe = StubData("probe"), StubModule(lr=0), OnlineLinearProbe()
    fit(tmp_path, module, data, Rescale(), probe, epochs=3, num_sanity_val_steps=0)
    with torch.no_grad():
        features = module._features(data.probe.tensors[0])
    head = probe.heads["backbone"]
    torch.testing.assert_close(head.mean, features.mean(0))
    assert probe.state_dict()["steps"] == 3 * 4


def test_a_probe_set_is_not_learnt_from_before_it_is_seen(tmp_path: Path) -> None:
    """Training batches have no labels, and until the first validation nothing else has come."""
    probe = OnlineLinearProbe()
    settings = {"num_sanity_val_steps": 0, "check_val_every_n_epoch": 2}
    run = fit(tmp_path, StubModule(), StubData("probe"), probe, epochs=1, **settings)
    assert probe.state_dict() == {}
    assert not [name for name in run.callback_metrics if "probe" in name]


def test_a_fit_that_goes_on_keeps_the_head(tmp_path: Path) -> None:
    probe, module, data = OnlineLinearProbe(), StubModule(lr=0), StubData()
    run = fit(tmp_path, module, data, probe, epochs=2)
    head = probe.heads["backbone"]
    run.fit_loop.max_epochs = 3
    run.fit(module, datamodule=data)
    assert probe.heads["backbone"] is head
    assert probe.state_dict()["steps"] == 3 * 4
    fit(tmp_path, module, StubData(classes=3), probe, epochs=1)  # a new run
    assert probe.heads["backbone"].linear.out_features == 3
    assert probe.state_dict()["steps"] == 4


class StopAfter(Callback):
    """Ends the run in the middle, as a kill would, once the checkpoint is written."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == self.epoch:
            raise KeyError("killed")


@pytest.mark.parametrize("labels", ["own", "probe"])
def test_resume_is_bit_exact(tmp_path: Path, labels: str) -> None:
    """Head, statistics, optimiser and schedule come back: the end is that of one run."""

    def end(folder: Path, *extra: Callback, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        probe = OnlineLinearProbe(representations=["backbone", "projector"])
        keep = ModelCheckpoint(dirpath=folder, save_last=True)
        settings = {"epochs": 4, "enable_checkpointing": True, **kwargs}
        run = fit(folder, StubModule(), StubData(labels), probe, keep, *extra, **settings)
        return probe.state_dict(), dict(run.callback_metrics)

    whole, metrics = end(tmp_path / "whole")
    with pytest.raises(KeyError, match="killed"):
        end(tmp_path / "cut", StopAfter(2))
    resumed, resumed_metrics = end(tmp_path / "cut", ckpt_path=tmp_path / "cut" / "last.ckpt")
    assert whole["steps"] == resumed["steps"] == 4 * 4
    torch.testing.assert_close(whole, resumed, rtol=0, atol=0)
    assert metrics == resumed_metrics


def test_validate_uses_the_head_of_the_checkpoint(tmp_path: Path) -> None:
    first = fit(
        tmp_path,
        StubModule(),
        StubData(),
        OnlineLinearProbe(),
        ModelCheckpoint(dirpath=tmp_path, save_last=True),
        enable_checkpointing=True,
    )
    second = trainer(tmp_path, OnlineLinearProbe())
    second.validate(StubModule(), StubData(), ckpt_path=tmp_path / "last.ckpt", verbose=False)
    assert second.callback_metrics["val/probe_top1"] == first.callback_metrics["val/probe_top1"]


def test_validate_without_a_head_logs_nothing(tmp_path: Path) -> None:
    run = trainer(tmp_path, OnlineLinearProbe())
    run.validate(StubModule(), StubData(), verbose=False)
    assert "val/probe_top1" not in run.callback_metrics


def test_a_checkpoint_with_other_classes_is_refused(tmp_path: Path) -> None:
    keep = ModelCheckpoint(dirpath=tmp_path, save_last=True)
    settings = {"epochs": 1, "enable_checkpointing": True}
    fit(tmp_path, StubModule(), StubData(classes=3), OnlineLinearProbe(), keep, **settings)
    last = tmp_path / "last.ckpt"
    with pytest.raises(ValueError, match=r"Expected the checkpoint to have probes .* 4 classes"):
        fit(tmp_path, StubModule(), StubData(classes=4), OnlineLinearProbe(), ckpt_path=last)


def test_the_learning_rate_ends_near_zero(tmp_path: Path) -> None:
    probe = OnlineLinearProbe(learning_rate=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit(tmp_path, StubModule(), StubData(), probe, epochs=25)
    lr = probe.state_dict()["optimizer"]["param_groups"][0]["lr"]
    assert 0 < lr < 1e-4


@pytest.mark.parametrize("representations", [(), ("pixels",)], ids=["none", "unknown"])
def test_representations_are_checked(representations: Any) -> None:
    with pytest.raises(ValueError, match="Expected `representations`"):
        OnlineLinearProbe(representations=representations)


def test_standardised_linear_is_zero_on_a_constant_feature() -> None:
    head = StandardizedLinear(3, 2)
    torch.nn.init.ones_(head.linear.weight)
    h = torch.tensor([[0.1, 1.0, -1.0], [0.1, 3.0, 1.0]])
    head.observe(h, torch.ones(2, 1), torch.tensor(2.0), step=0)
    expected = torch.tensor([[-2.0, -2.0], [2.0, 2.0]]) / 3**0.5
    torch.testing.assert_close(head(h), expected)
