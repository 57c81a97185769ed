"""A fit of several gloo processes equals that of one process: weights, probes, metrics."""

import copy
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from helpers.gloo_processes import Processes, trainer_options
from lightning import Trainer
from lightning.pytorch.strategies import (
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    Strategy,
    XLAStrategy,
)
from torch import Tensor, nn

from duality_ssl import distributed, methods
from duality_ssl.callbacks import OnlineKNN, OnlineLinearProbe, RankMe
from duality_ssl.cli import main
from duality_ssl.data import SSLDataModule
from duality_ssl.data.sources import ArrayImages, ImageSource, Split, register_source
from duality_ssl.networks.backbones import register_backbone
from duality_ssl.optim import LARS

OPTIMIZERS = {"LARS": LARS, "SGD": torch.optim.SGD, "AdamW": torch.optim.AdamW}


@register_backbone
def no_batch_norm(in_channels: int) -> nn.Module:
    module = nn.Sequential(nn.Conv2d(in_channels, 8, 3, stride=2), nn.GELU(), nn.Flatten())
    # a bias that a criterion subtracts again has rounding for a gradient, which AdamW blows up
    module.append(nn.Linear(8 * 9, 16, bias=False))
    module.num_features = 16
    return module


class _Blobs(ImageSource):
    """Noisy 8-pixel images of so many classes, so many of them for validation."""

    channels, image_size, mean, std = 1, 8, (0.5,), (0.25,)
    classes, val = 7, 51

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(map(str, range(self.classes)))

    def load(self, split: Split) -> ArrayImages:
        n = self.val if split == "val" else 384
        generator = torch.Generator().manual_seed(n)
        centres = torch.rand(self.classes, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        labels = torch.arange(n) % self.classes
        noise = torch.rand(n, 1, 8, 8, generator=generator)
        return ArrayImages((255 * (centres[labels] + noise) / 2).to(torch.uint8), labels)


# Classes and validation images. No number of classes divides a batch: the probe's bias of a class
# with its even share in the first batch would have rounding for a gradient, too.
SETS = [(7, 51), (7, 50), (7, 49), (5, 50), (7, 4), (7, 2)]
for classes, val in SETS:
    register_source(f"blobs_{classes}_{val}")(
        type(f"Blobs_{classes}_{val}", (_Blobs,), {"classes": classes, "val": val})
    )


class Result(NamedTuple):
    """Results of a fit."""

    before: dict[str, Tensor]
    weights: dict[str, Tensor]
    heads: dict[str, Tensor]
    metrics: dict[str, float]


def fit(
    method: str,
    source: str = "blobs_7_51",
    batch: int = 64,
    precision: Any = "32-true",
    sync_batchnorm: bool = False,
    optimizer: str = "SGD",
    **options: Any,
) -> Result:
    """Five steps with random augmentation; on every process of a group, if there is one."""
    probe = OnlineLinearProbe(["backbone", "projector"], learning_rate=0.1)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        limit_train_batches=5,
        callbacks=[probe, OnlineKNN(k=9), RankMe()],
        sync_batchnorm=sync_batchnorm,
        num_sanity_val_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        precision=precision,
        **trainer_options(),
    )
    torch.manual_seed(0)
    options["optimizer"] = OPTIMIZERS[optimizer]
    shape = {"backbone": "no_batch_norm", "projector": "12", "in_channels": 1}
    model = getattr(methods, method)(**{**shape, "warmup_epochs": 0, **options})
    data = SSLDataModule(source, batch_size=batch // distributed.world_size(), seed=3)
    before = copy.deepcopy(model.state_dict())
    trainer.fit(model, datamodule=data)
    metrics = {name: value.item() for name, value in trainer.callback_metrics.items()}
    return Result(before, model.state_dict(), probe.heads.state_dict(), metrics)


@pytest.fixture(scope="module")
def two(gloo_processes: Callable[[int], Processes]) -> Processes:
    return gloo_processes(2)


@pytest.fixture(scope="module")
def three(gloo_processes: Callable[[int], Processes]) -> Processes:
    return gloo_processes(3)


def fit_on_all(options: dict[str, Any]) -> Result:
    return fit(**options)


def assert_one(result: Result, one: Result, tolerance: float) -> None:
    for ours, theirs in ((result.weights, one.weights), (result.heads, one.heads)):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            torch.testing.assert_close(ours[name], value, rtol=0, atol=tolerance, msg=name)
    assert result.metrics == pytest.approx(one.metrics, rel=1e-4)


@pytest.mark.parametrize(
    ("method", "optimizer", "base_lr"),
    [
        ("VICReg", "LARS", 3.0),
        ("VICReg", "SGD", 0.1),
        ("VICReg", "AdamW", 0.01),
        ("SimCLR", "LARS", 3.0),
        ("SimCLR", "AdamW", 0.01),
        ("DCL", "SGD", 0.1),
        ("NSCL", "SGD", 0.1),
        ("SpectralContrastive", "AdamW", 0.01),
        ("VICRegExp", "LARS", 3.0),
        ("VICRegCtr", "SGD", 0.1),
        ("BarlowTwins", "LARS", 3.0),
        ("TCR", "AdamW", 0.01),
        ("LeJEPA", "AdamW", 0.01),  # draws
        ("CorInfoMax", "SGD", 0.01),  # remembers
    ],
)
def test_weights_heads_and_metrics(
    two: Processes, method: str, optimizer: str, base_lr: float
) -> None:
    options = {"method": method, "optimizer": optimizer, "base_lr": base_lr}
    one = fit(**options)
    for before, after in zip(one.before.values(), one.weights.values(), strict=True):
        assert (before - after).abs().max() > 1e-4  # ten times what processes may differ by
    for result in two.run(fit_on_all, options):
        assert_one(result, one, 1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"method": "BYOL", "predictor": "d", "teacher_momentum": 0.5, "base_lr": 3.0},
        {"method": "SimSiam", "predictor": "d", "base_lr": 8.0},
        {"method": "SimSiam", "predictor": "d", "base_lr": 8.0, "stop_gradient": False},
        {"method": "SwAV", "num_prototypes": 9, "frozen_steps": 2, "queue": 70, "base_lr": 1.0},
        {"method": "DINO", "projector": "16-12", "frozen_epochs": 0, "base_lr": 1.0},
    ],
    ids=[
        *("teacher", "stopped gradient", "gradient through the targets"),
        *("trained prototypes and a queue", "centre of the targets"),
    ],
)
def test_targets(two: Processes, options: dict[str, Any]) -> None:
    """A predictor without batch norm: that of a process sees its own rows only."""
    options = {**options, "precision": "64-true"}
    one = fit(**options)
    for name in one.before.keys() & {"teacher.backbone.0.weight", "backbone.0.weight"}:
        assert (one.before[name] - one.weights[name]).abs().max() > 1e-4
    for result in two.run(fit_on_all, options):
        assert_one(result, one, 1e-5)


@pytest.mark.parametrize("method", ["VICReg", "BYOL"])
def test_batch_norm_over_processes(two: Processes, method: str) -> None:
    """``sync_batchnorm`` on a CPU; without it the running statistics are another network's."""
    shape = {"backbone": "resnet_tiny", "projector": "32-16", "precision": "64-true"}
    options = {"method": method, "base_lr": 0.1, **shape}
    one = fit(**options)
    for result in two.run(fit_on_all, {**options, "sync_batchnorm": True}):
        assert_one(result, one, 1e-5)
    for result in two.run(fit_on_all, options):
        with pytest.raises(AssertionError):
            assert_one(result, one, 1e-3)


@pytest.mark.parametrize("world", ["two", "three"])
@pytest.mark.parametrize(("classes", "val"), [s for s in SETS if s[1] > 3], ids=str)
def test_each_validation_sample_counts_once(
    world: str, classes: int, val: int, request: pytest.FixtureRequest
) -> None:
    """Shards of uneven length, in batches with a remainder; of 5 classes there is no top-5."""
    options = {"method": "VICReg", "source": f"blobs_{classes}_{val}", "batch": 24, "base_lr": 0.1}
    one = fit(**options)
    names = {name for name in one.metrics if re.match("val/.*_top", name)}
    assert names == {
        f"val/{kind}_top{k}"
        for kind in ("probe", "probe_projector", "knn")
        for k in ((1, 5) if classes > 5 else (1,))
    }
    for result in request.getfixturevalue(world).run(fit_on_all, options):
        for name in names:
            hits = val * result.metrics[name]
            assert hits == pytest.approx(round(hits), abs=1e-4)
        assert result.metrics == pytest.approx(one.metrics, rel=1e-4)


def _refusal(options: dict[str, Any]) -> str:
    with pytest.raises(ValueError, match="Expected") as refused:
        fit(**options)
    return str(refused.value)


def test_fewer_validation_images_than_processes_are_refused(three: Processes) -> None:
    options = {"method": "VICReg", "source": "blobs_7_2", "batch": 24}
    for message in three.run(_refusal, options):
        assert "at least one image per process (3) in the split `val`, but it has 2" in message


def _trainer() -> Trainer:
    return Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)


@pytest.mark.parametrize(
    "strategy", [FSDPStrategy, DeepSpeedStrategy, ModelParallelStrategy, XLAStrategy]
)
def test_a_network_in_pieces_is_refused(strategy: type[Strategy]) -> None:
    trainer = _trainer()
    # as it is: to build some of them takes a GPU or a package
    trainer._accelerator_connector.strategy = strategy.__new__(strategy)
    model = methods.VICReg(backbone="no_batch_norm", projector="12", in_channels=1)
    model.trainer = trainer
    expected = rf"--trainer.strategy ddp \(or auto\), but got {strategy.__name__}: .* whole network"
    with pytest.raises(ValueError, match=expected):
        model.setup("fit")


@pytest.mark.parametrize("name", ["fsdp", "deepspeed_stage_2", "dp", "xla", "ddp_spawn"])
def test_a_strategy_that_does_not_fit_is_refused_by_name(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["fit", "--model", "VICReg", "--model.backbone", "resnet_tiny"]
    with pytest.raises(SystemExit) as done:
        main([*words, "--model.in_channels", "1", "--trainer.strategy", name])
    assert done.value.code == 2
    assert f"Expected --trainer.strategy ddp (or auto), but got {name}: " in capsys.readouterr().err
