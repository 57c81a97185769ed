"""The one training step, the learning rate's scaling, and the methods' arguments."""

import inspect
import logging
import math
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.fits import fit, trainer
from lightning import Callback, LightningDataModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    SequentialSampler,
)

from duality_ssl import criteria, methods
from duality_ssl.batches import one_view, training_views
from duality_ssl.criteria import Criterion
from duality_ssl.methods import JointEmbedding, SimCLR, VICReg
from duality_ssl.methods.optimization import warmup_cosine
from duality_ssl.networks.backbones import register_backbone

METHODS = [
    method
    for method in (getattr(methods, name) for name in methods.__all__)
    if hasattr(method, "criterion_class")
]
SMALL: dict[str, Any] = {"backbone": "resnet_tiny", "projector": "32-16", "in_channels": 1}


class Noise(LightningDataModule):
    """Two views of noise, as batches of the real data module are."""

    def __init__(self, batch_size: int = 4, batches: int = 3, channels: int = 1) -> None:
        super().__init__()
        self.batch_size, self.batches, self.channels = batch_size, batches, channels

    def train_dataloader(self) -> DataLoader:
        generator = torch.Generator().manual_seed(0)
        views = torch.randn(
            2, self.batches, self.batch_size, self.channels, 8, 8, generator=generator
        )
        labels = torch.zeros(self.batch_size, dtype=torch.long)
        batches = [([x1, x2], labels) for x1, x2 in zip(*views, strict=True)]
        return DataLoader(batches, batch_size=None)


train = partial(fit, None, epochs=1)


def make(method: type[JointEmbedding] = VICReg, **options: Any) -> JointEmbedding:
    torch.manual_seed(0)
    return method(**{**SMALL, "warmup_epochs": 0, **options})


def batch(n: int = 6) -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(1)
    return list(torch.randn(2, n, 1, 8, 8, generator=generator)), torch.arange(n)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_method_takes_its_criterions_arguments_with_their_defaults(
    method: type[JointEmbedding],
) -> None:
    arguments = inspect.signature(method).parameters
    criterion = method.criterion_class
    own = {**inspect.signature(criterion).parameters}
    own.pop("dimensions", None)  # the method's own
    for name, parameter in own.items():
        assert arguments[name].default == method.defaults.get(name, parameter.default)
        assert arguments[name].annotation == parameter.annotation
    shared = [*inspect.signature(JointEmbedding.__init__).parameters][1:-1]
    assert set(arguments) == {*shared, *own}
    assert isinstance(make(method).criterion, criterion)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_step_is_the_criterion_of_the_projected_features(method: type[JointEmbedding]) -> None:
    model = make(method, projector="32-4")  # fewer dimensions than samples, for W-MSE
    model.criterion.eval()  # its state stays
    (x1, x2), labels = batch()
    outputs = model.training_step(([x1, x2], labels), 0)
    h1, h2 = model.backbone(x1), model.backbone(x2)
    z1, z2 = model.projector(h1), model.projector(h2)
    p1, p2 = (z1, z2) if model.predictor is None else (model.predictor(z1), model.predictor(z2))
    given = {
        "targets": (z1.detach(), z2.detach()),
        "labels": labels,
        "step": 0,
    }
    if model.teacher is not None:
        given["targets"] = (model.teacher(x1), model.teacher(x2))
    inputs = {name: given[name] for name in model.criterion.inputs}
    torch.testing.assert_close(outputs["loss"], model.criterion(p1, p2, **inputs)["loss"])
    torch.testing.assert_close(outputs["features"], (h1.detach(), h2.detach()))
    torch.testing.assert_close(outputs["embeddings"], (z1.detach(), z2.detach()))
    assert torch.equal(outputs["labels"], labels)
    kept = [*outputs["features"], *outputs["embeddings"]]
    assert not any(tensor.requires_grad for tensor in kept)
    assert outputs["loss"].requires_grad


def test_joint_forward_shares_batch_statistics() -> None:
    separate, joint = make(), make(joint_forward=True)
    joint.load_state_dict(separate.state_dict())
    views, labels = batch()
    views = [views[0], views[1] + 3]
    features = joint.backbone(torch.cat(views))
    expected = joint.projector(features).chunk(2)
    outputs = joint.training_step((views, labels), 0)
    torch.testing.assert_close(outputs["features"], features.chunk(2))
    torch.testing.assert_close(outputs["embeddings"], expected)
    ours = separate.training_step((views, labels), 0)["embeddings"]
    assert not torch.allclose(ours[1], expected[1], atol=1e-2)


def test_joint_forward_is_the_same_without_batch_statistics() -> None:
    separate, joint = make().eval(), make(joint_forward=True).eval()
    joint.load_state_dict(separate.state_dict())
    outputs = [model.training_step(batch(), 0) for model in (separate, joint)]
    torch.testing.assert_close(outputs[0]["embeddings"], outputs[1]["embeddings"])


@pytest.mark.parametrize(
    ("batch_size", "accumulate", "expected"), [(4, 1, 4), (8, 1, 8), (4, 3, 12)], ids=str
)
def test_learning_rate_scales_with_the_global_batch_and_is_said(
    batch_size: int, accumulate: int, expected: int, caplog: pytest.LogCaptureFixture
) -> None:
    model = make(base_lr=0.5)
    caplog.set_level(logging.INFO)
    logging.getLogger("lightning.pytorch").propagate = True
    run = train(model, Noise(batch_size), accumulate_grad_batches=accumulate, max_steps=1)
    groups = run.optimizers[0].param_groups
    assert [group["initial_lr"] for group in groups] == [0.5 * expected / 256] * 2
    assert f"base_lr 0.5 x global batch {expected} / 256" in caplog.text


def test_learning_rate_warms_up_then_follows_the_cosine_per_step() -> None:
    rates: list[float] = []

    class Watched(VICReg, criterion=criteria.VICReg):
        def on_train_batch_end(self, *_: Any) -> None:
            if len(rates) < self.trainer.global_step:
                rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])

    torch.manual_seed(0)
    model = Watched(**SMALL, base_lr=32.0, warmup_epochs=1, final_lr_fraction=0.1)
    # two batches a step: 8 batches are 4 steps an epoch
    train(model, Noise(4, 8), max_epochs=3, accumulate_grad_batches=2)
    # after step k the rate is that of step k + 1, of 4 of warm-up and 12 together
    warmup = [1 / 3, 2 / 3, 1.0]
    cosine = [0.1 + 0.9 * (1 + math.cos(math.pi * k / 8)) / 2 for k in range(9)]
    assert rates == pytest.approx(warmup + cosine)


@pytest.mark.parametrize(
    ("batches", "accumulate", "epochs", "expected"),
    [
        pytest.param(7, 2, 1, 4, id="the last step of an epoch has one batch"),
        pytest.param(7, 2, 2, 8, id="in each epoch"),
        pytest.param(6, 4, 0.4, 1, id="0.8 of a step is one"),
        pytest.param(7, 1, 0.2, 1, id="1.4 steps are one"),
        pytest.param(7, 1, 9, 21, id="not longer than the run"),
    ],
)
def test_warmup_is_so_many_optimiser_steps(
    batches: int, accumulate: int, epochs: float, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []

    def schedule(optimizer: torch.optim.Optimizer, warmup: int, total: int, floor: float) -> Any:
        asked.append((warmup, total))
        return torch.optim.lr_scheduler.ConstantLR(optimizer)

    monkeypatch.setattr("duality_ssl.methods.optimization.warmup_cosine", schedule)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The warm-up of 9 epochs")
        model = make(backbone="flat_linear", projector="6", warmup_epochs=epochs)
        run = train(model, Noise(4, batches), epochs=3, accumulate_grad_batches=accumulate)
    assert asked == [(expected, run.global_step)]


def test_biases_and_norms_are_neither_decayed_nor_adapted() -> None:
    model = make(weight_decay=0.1)
    run = train(model, Noise(), max_steps=1)
    decayed, rest = run.optimizers[0].param_groups
    assert (decayed["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)
    assert (decayed["adapt"], rest["adapt"]) == (True, False)
    assert all(p.ndim > 1 for p in decayed["params"])
    assert all(p.ndim == 1 for p in rest["params"])
    together = sum(p.numel() for group in (decayed, rest) for p in group["params"])
    assert together == sum(p.numel() for p in model.parameters())


def test_optimiser_of_ones_own_is_injected_and_its_lr_replaced_with_a_word() -> None:
    model = make(optimizer=lambda groups: torch.optim.SGD(groups, lr=7.0, momentum=0.9))
    with pytest.warns(UserWarning, match=r"own lr 7 is replaced by 0\.0046875"):
        run = train(model, Noise(), max_steps=1)
    assert isinstance(run.optimizers[0], torch.optim.SGD)
    assert run.optimizers[0].param_groups[0]["momentum"] == 0.9


def test_scheduler_of_ones_own_is_stepped_once_an_epoch() -> None:
    halve = lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)  # noqa: E731
    model = make(scheduler=halve, base_lr=64.0)
    run = train(model, Noise(4), max_epochs=3)
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.125)


def test_plateau_scheduler_is_refused() -> None:
    model = make(scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau)
    with pytest.raises(
        MisconfigurationException, match="must include a monitor when a `ReduceLROnPlateau`"
    ):
        train(model, Noise())


def test_weight_decay_of_the_optimiser_is_replaced_with_a_word() -> None:
    model = make(optimizer=lambda groups: torch.optim.AdamW(groups, weight_decay=0.3))
    with pytest.warns(UserWarning, match=r"weight_decay 0\.3 is replaced by 1e-06"):
        train(model, Noise(), max_steps=1)


@pytest.mark.parametrize("step", ["validation_step", "test_step", "predict_step"])
def test_other_steps_give_features_and_embeddings_of_one_view(step: str) -> None:
    model = make().eval()
    (x, _), labels = batch()
    outputs = getattr(model, step)(([x], labels), 0)
    torch.testing.assert_close(outputs["features"], model.backbone(x))
    torch.testing.assert_close(outputs["embeddings"], model.projector(model.backbone(x)))
    assert outputs["labels"] is labels


class Endless(Noise):
    """A loader that does not know its length."""

    def train_dataloader(self) -> DataLoader:
        class Stream(torch.utils.data.IterableDataset):
            def __iter__(self) -> Iterator[tuple[list[Tensor], Tensor]]:
                while True:
                    yield batch(4)

        return DataLoader(Stream(), batch_size=None)


def test_loader_without_length_trains_without_warmup() -> None:
    train(make(), Endless(), max_epochs=-1, max_steps=3)
    with pytest.raises(ValueError, match=r"a loader that has a length.*warmup_epochs 0"):
        train(make(warmup_epochs=1), Endless(), max_epochs=-1, max_steps=3)


def test_pretrained_weights_start_a_fit_and_are_not_asked_for_again(tmp_path: Path) -> None:
    source = make(SimCLR).backbone.state_dict()
    torch.save(source, tmp_path / "w.pt")
    torch.manual_seed(1)
    model = VICReg(**SMALL, warmup_epochs=0, base_lr=0, pretrained=tmp_path / "w.pt")
    run = train(model, Noise(), max_steps=1)
    for name, parameter in model.backbone.named_parameters():
        assert torch.equal(parameter, source[name])
    run.save_checkpoint(tmp_path / "model.ckpt")
    (tmp_path / "w.pt").unlink()
    restored = VICReg.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    assert torch.equal(restored.backbone.stem[0].weight, source["stem.0.weight"])


@register_backbone
def flat_linear(in_channels: int) -> nn.Module:
    """No batch statistics: the gradient of a batch is the sum over its rows."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(in_channels * 64, 12))
    module.num_features = 12
    return module


def test_warmup_as_long_as_the_run_is_said() -> None:
    model = make(warmup_epochs=10)
    with pytest.warns(UserWarning, match=r"warm-up of 10 epochs \(30 steps\).*training \(3 steps"):
        train(model, Noise())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"base_lr": -1}, "Expected `base_lr` to be finite and 0 or more, but got -1"),
        ({"base_lr": math.nan}, "Expected `base_lr` to be finite and 0 or more, but got nan"),
        ({"weight_decay": -0.1}, "Expected `weight_decay`"),
        ({"warmup_epochs": -1}, "Expected `warmup_epochs`"),
        ({"final_lr_fraction": 2}, r"Expected `final_lr_fraction` in \[0, 1\], got 2"),
        ({"backbone": "resnet_tinny"}, "resnet_tiny"),
        ({"projector": "8192--d"}, "8192--d"),
        ({"in_channels": 0}, "in_channels"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_bad_argument_is_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make(**options)


def test_unknown_argument_is_refused() -> None:
    with pytest.raises(TypeError, match="temperature"):
        make(VICReg, temperature=0.1)


def test_base_class_has_no_criterion() -> None:
    with pytest.raises(ValueError, match="Expected a method with a criterion, such as VICReg"):
        JointEmbedding()


def test_channels_of_the_data_must_be_the_backbones() -> None:
    with pytest.raises(ValueError, match=r"the data has 3\. Set --model\.in_channels 3"):
        train(make(), Noise(channels=3))


@pytest.mark.parametrize("options", [{}, {"in_channels": None}], ids=["unset", "none"])
def test_channels_are_three_unless_they_are_set(options: dict[str, None]) -> None:
    model = VICReg(backbone="resnet_tiny", projector="32-16", **options)
    assert model.in_channels == model.hparams["in_channels"] == 3
    with pytest.raises(ValueError, match=r"the data has 1\. Set --model\.in_channels 1"):
        train(model, Noise())


class Pairs(Dataset):
    """Two views and a class, sample by sample, as a data set of anybody's has them."""

    def __init__(self, n: int = 12) -> None:
        views = torch.randn(2, n, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        self.samples = [((x1, x2), i % 3) for i, (x1, x2) in enumerate(zip(*views, strict=True))]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[tuple[Tensor, Tensor], int]:
        return self.samples[index]


class PairStream(IterableDataset):
    """The same without a length."""

    def __iter__(self) -> Iterator[tuple[tuple[Tensor, Tensor], int]]:
        return iter(Pairs().samples)


class StopAtStep(Callback):
    """Ends a fit that has no end."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        trainer.should_stop = trainer.global_step >= self.step


@pytest.mark.parametrize(
    ("options", "warmup_epochs", "total", "steps_of_warmup"),
    [
        ({"max_steps": 5}, 1, 5, 3),
        ({"max_epochs": 2}, 1, 6, 3),
        ({"max_epochs": 2, "max_steps": 5}, 0, 5, 0),
        ({"max_epochs": -1, "max_steps": 5}, 0, 5, 0),
        ({"max_epochs": 2, "accumulate_grad_batches": 2}, 1, 4, 2),
        ({"max_epochs": 2, "limit_train_batches": 2}, 1, 4, 2),
        ({"max_time": "00:01:00:00"}, 1, math.inf, 3),
        ({"max_epochs": -1}, 1, math.inf, 3),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_schedule_of_plain_loaders(
    options: dict[str, Any],
    warmup_epochs: float,
    total: float,
    steps_of_warmup: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[float, float]] = []

    def spy(optimizer: Any, warmup_steps: float, total_steps: float, floor: float) -> Any:
        seen.append((warmup_steps, total_steps))
        return warmup_cosine(optimizer, warmup_steps, total_steps, floor)

    monkeypatch.setattr("duality_ssl.methods.optimization.warmup_cosine", spy)
    run = trainer(None, StopAtStep(7), **{"max_epochs": None, **options})
    model = make(backbone="flat_linear", base_lr=64.0, warmup_epochs=warmup_epochs)
    val = DataLoader([(x1, y) for (x1, _), y in Pairs(5).samples], batch_size=2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run.fit(model, DataLoader(Pairs(), batch_size=4), val)
    said = [str(w.message) for w in caught if "length of the fit is" in str(w.message)]
    assert seen == [(steps_of_warmup, total)]
    assert len(said) == (total == math.inf)
    group = run.optimizers[0].param_groups[0]
    assert group["initial_lr"] == 1.0 * options.get("accumulate_grad_batches", 1)
    if total == math.inf:
        assert group["lr"] == group["initial_lr"]
        assert "--trainer.max_steps" in said[0]


@pytest.mark.parametrize(
    ("loader", "options"),
    [
        (lambda: DataLoader(Pairs(), batch_sampler=batches_of(4)), {"max_steps": 2}),
        (lambda: DataLoader(PairStream(), batch_size=4), {"max_steps": 2}),
        (lambda: DataLoader(PairStream(), batch_size=4), {"max_epochs": 1}),
    ],
    ids=["batch_sampler", "no_length", "no_length_and_epochs"],
)
@pytest.mark.filterwarnings("ignore:The learning rate stays constant after the warm-up")
def test_global_batch_is_that_of_the_loader(loader: Any, options: dict[str, Any]) -> None:
    run = train(
        make(backbone="flat_linear", base_lr=64.0), loader(), **{"max_epochs": -1, **options}
    )
    assert run.optimizers[0].param_groups[0]["initial_lr"] == 1.0


def batches_of(size: int) -> BatchSampler:
    return BatchSampler(SequentialSampler(range(12)), size, drop_last=False)


def test_loader_without_a_batch_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a `batch_size`, .* give the data module"):
        train(make(), Noise().train_dataloader(), max_steps=1)


X, Y = torch.zeros(4, 1, 8, 8), torch.arange(4)


@pytest.mark.parametrize(
    "batch", [X, [X], (X, Y), [[X], Y]], ids=["x", "(x)", "(x, y)", "((x), y)"]
)
def test_evaluation_takes_plain_batches(batch: Any) -> None:
    images, labels = one_view(batch)
    assert images is X
    assert labels.tolist() == (Y if len(batch) == 2 else torch.full((4,), -1)).tolist()


@pytest.mark.parametrize(
    ("take", "batch", "said"),
    [
        (training_views, [X, Y], r"got \(a tensor \(4, 1, 8, 8\), a tensor \(4,\)\): let the"),
        (training_views, [X, X], "two or more views of N images and N labels"),
        (training_views, [[X], Y], "two or more views of N images and N labels"),
        (training_views, [[X, X, Y.tolist()], Y], "two or more views of N images and N labels"),
        (training_views, {"x": X}, "got a dict"),
        (one_view, [[X, X], Y], r"Expected batches \(x, labels\)"),
        (one_view, [X, X], r"Expected batches \(x, labels\)"),
    ],
    ids=["images", "no labels", "one view", "list", "dict", "two views", "pair"],
)
def test_other_batches_are_refused(take: Any, batch: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        take(batch)


def test_views_of_the_first_ones_size_are_large() -> None:
    views = [X, X + 1, X + 2, X[..., :6, :6], X[..., :4, :4]]
    large, small, labels = training_views((views, Y))
    assert [*map(id, [*large, *small])] == [*map(id, views)]
    assert len(large) == 3
    assert labels is Y


class Returns(nn.Module):
    """A backbone of 12 features that returns something else."""

    num_features = 12

    def __init__(self, shape: tuple[int, ...] | None) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, images: Tensor) -> Any:
        features = images.new_zeros(len(images), *(self.shape or (12,)))
        return features if self.shape else (features, None)


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((5, 12), r"here \(6, 12\), but got \(6, 5, 12\): pool maps and tokens to one row"),
        ((7,), r"but got \(6, 7\): .* set `num_features`"),
        (None, "but got tuple: "),
    ],
    ids=["tokens", "width", "tuple"],
)
@pytest.mark.parametrize("step", ["training_step", "validation_step"])
def test_backbone_that_returns_no_feature_vectors_is_refused(
    shape: tuple[int, ...] | None, said: str, step: str
) -> None:
    model = make(backbone="flat_linear")
    model.backbone = Returns(shape)
    (x1, x2), labels = batch()
    images = [x1, x2] if step == "training_step" else [x1]
    with pytest.raises(ValueError, match=said):
        getattr(model, step)((images, labels), 0)


def test_method_of_ones_own_is_a_criterion_and_a_name() -> None:
    class Distance(Criterion):
        """Mean squared distance of the views, times a weight.

        Args:
            weight: Of the distance.
        """

        def __init__(self, weight: float = 2.0) -> None:
            super().__init__()
            self.weight = weight

        def terms(self, z1: Tensor, z2: Tensor) -> dict[str, Tensor]:
            return {"loss": self.weight * nn.functional.mse_loss(z1, z2)}

    class Close(JointEmbedding, criterion=Distance):
        """Views close together."""

    model = make(Close, weight=3.0)
    z1, z2 = model.training_step(batch(), 0)["embeddings"]
    expected = 3 * (z1 - z2).square().mean()
    torch.testing.assert_close(model.criterion(z1, z2)["loss"], expected)
    assert "weight: Of the distance." in (Close.__init__.__doc__ or "")


def test_training_learns() -> None:
    """Views that are the same image up to noise: SimCLR's loss falls well under its start."""
    losses: list[float] = []

    class Watched(SimCLR, criterion=criteria.SimCLR):
        def on_train_batch_end(self, outputs: dict[str, Tensor], *_: Any) -> None:
            losses.append(float(outputs["loss"]))

    class Pairs(Noise):
        def train_dataloader(self) -> DataLoader:
            x = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
            noise = 0.1 * torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(1))
            return DataLoader([([x, x + noise], torch.zeros(64).long())] * 20, batch_size=None)

    torch.manual_seed(0)
    model = Watched(**SMALL, warmup_epochs=0, base_lr=0.02, optimizer=torch.optim.AdamW)
    train(model, Pairs(64, 20))
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("method", [VICReg, SimCLR])
def test_compiled_fit_is_the_same_and_so_is_its_checkpoint(
    method: type[JointEmbedding], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs: list[Any] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    states = []
    for flag in (False, True):
        torch._dynamo.reset()
        model = make(method, backbone="flat_linear", compile=flag)
        run = train(model, Noise(8), max_steps=2)
        run.save_checkpoint(tmp_path / "model.ckpt")
        states.append(model.state_dict())
        assert (len(graphs) >= 3) == flag  # backbone, projector and criterion
    assert list(states[0]) == list(states[1])
    torch.testing.assert_close(states[1], states[0], rtol=1e-5, atol=1e-6)
    restored = method.load_from_checkpoint(
        tmp_path / "model.ckpt", weights_only=True, compile=False
    )
    torch.testing.assert_close(restored.state_dict(), states[1], rtol=0, atol=0)


def test_channels_last_is_the_same_and_loads_where_they_are_not(tmp_path: Path) -> None:
    states = []
    for flag in (False, True):
        model = make(backbone="resnet18_32", channels_last=flag, base_lr=0.1)
        run = train(model, Noise(4), max_steps=2)
        states.append(model.state_dict())
        # a single channel leaves the stem's layout open
        weight = model.backbone.layer1[0].conv1.weight
        assert weight.is_contiguous(memory_format=torch.channels_last) == flag
        run.save_checkpoint(tmp_path / "model.ckpt")
    torch.testing.assert_close(states[1], states[0], rtol=1e-3, atol=1e-4)
    resumed = make(backbone="resnet18_32", channels_last=False, base_lr=0.1)
    train(resumed, Noise(4), ckpt_path=tmp_path / "model.ckpt", max_steps=3)
    assert resumed.backbone.layer1[0].conv1.weight.is_contiguous()


@pytest.mark.parametrize(
    ("optimizer", "fused"),
    [
        (torch.optim.AdamW, True),
        (lambda groups: torch.optim.AdamW(groups, foreach=True), None),
        (lambda groups: torch.optim.SGD(groups, fused=False), False),
    ],
    ids=["not-said", "foreach", "not-fused"],
)
def test_steps_are_fused_unless_the_user_said_otherwise(optimizer: Any, fused: bool | None) -> None:
    run = train(make(optimizer=optimizer), Noise(), max_steps=1)
    assert [group["fused"] for group in run.optimizers[0].param_groups] == [fused] * 2


@pytest.mark.parametrize("method", [VICReg, SimCLR])
def test_accumulated_gradient_is_the_mean_over_micro_batches(method: type[JointEmbedding]) -> None:
    """Not that of the criterion of all their images, which no micro-batch sees."""
    options: dict[str, Any] = {"backbone": "flat_linear", "projector": "6", "base_lr": 64.0}
    data = Noise(8, batches=2)
    model = make(method, **options, weight_decay=0, optimizer=torch.optim.SGD)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    batches = list(data.train_dataloader())

    def gradient(views: list[Tensor]) -> dict[str, Tensor]:
        z1, z2 = (model.projector(model.backbone(x)) for x in views)
        loss = model.criterion(z1, z2)["loss"]
        return dict(zip(before, torch.autograd.grad(loss, model.parameters()), strict=True))

    parts = [gradient(views) for views, _ in batches]
    whole = gradient([torch.cat(views) for views in zip(*(v for v, _ in batches), strict=True)])
    train(model, data, max_steps=1, accumulate_grad_batches=2)
    lr = 64.0 * 16 / 256
    for name, parameter in model.named_parameters():
        taken = (before[name] - parameter.detach()) / lr
        mean = (parts[0][name] + parts[1][name]) / 2
        torch.testing.assert_close(taken, mean, rtol=1e-3, atol=1e-5)
    assert any((whole[n] - (parts[0][n] + parts[1][n]) / 2).abs().max() > 1e-4 for n in before)


def test_checkpoint_restores_the_model(tmp_path: Path) -> None:
    model = make(VICReg, covariance=4)
    run = train(model, Noise(), max_steps=1)
    run.save_checkpoint(tmp_path / "model.ckpt")
    restored = VICReg.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    assert restored.criterion.covariance == 4
    for name, tensor in model.state_dict().items():
        assert torch.equal(restored.state_dict()[name], tensor)


def test_transformer_at_another_size_than_its_name_says() -> None:
    model = make(backbone="vit_tiny_patch16_224", image_size=32)
    images = torch.randn(2, 1, 32, 32)
    assert model(images).shape == (2, model.backbone.num_features)
