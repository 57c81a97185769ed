"""The training step with a predictor, a teacher, inputs of the criterion and many views."""

import inspect
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.fits import fit, trainer
from lightning import Callback
from safetensors.torch import load_file
from torch import Tensor, nn

from duality_ssl import criteria
from duality_ssl.callbacks import (
    CollapseGuard,
    DualityMonitor,
    LastCheckpoint,
    OfflineEvaluation,
    OnlineKNN,
    OnlineLinearProbe,
    RankMe,
    ViewGrid,
)
from duality_ssl.callbacks.memory import estimate
from duality_ssl.criteria import Criterion
from duality_ssl.data import SSLDataModule
from duality_ssl.data.augment.view import SmallView
from duality_ssl.methods import BYOL, JointEmbedding, SimSiam, VICReg
from duality_ssl.networks.projector import create_projector
from duality_ssl.runs.export import export

SMALL: dict[str, Any] = {"backbone": "resnet_tiny", "projector": "16-8", "in_channels": 1}
SMALL |= {"warmup_epochs": 0, "base_lr": 1.0, "optimizer": torch.optim.SGD}


def make(method: type[JointEmbedding] = BYOL, **options: Any) -> Any:
    torch.manual_seed(0)
    predictor = {} if method is VICReg else {"predictor": "12-d"}
    return method(**{**SMALL, **predictor, **options})


def digits(batch_size: int = 8, **options: Any) -> SSLDataModule:
    return SSLDataModule(batch_size=batch_size, image_size=8, **options)


def train(model: Any, data: Any, *callbacks: Callback, **settings: Any) -> Any:
    settings = {"epochs": 1, "limit_train_batches": 4, "limit_val_batches": 1, **settings}
    return fit(None, model, data, *callbacks, **settings)


def batch(n: int = 6, views: int = 2, small: int = 0) -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(1)
    large = torch.randn(views, n, 1, 8, 8, generator=generator)
    return [*large, *torch.randn(small, n, 1, 5, 5, generator=generator)], torch.arange(n)


class Everything(Criterion):
    """Keeps what it was called with; takes all that a criterion can."""

    def __init__(self, dimensions: int, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = weight
        self.prototypes = nn.Parameter(torch.randn(3, dimensions))
        self.calls: list[dict[str, Any]] = []

    def terms(
        self, *views: Tensor, targets: tuple[Tensor, ...], labels: Tensor, step: int
    ) -> dict[str, Tensor]:
        self.calls.append({"views": views, "targets": targets, "labels": labels, "step": step})
        scores = [view @ self.prototypes.T for view in views]
        return {"loss": self.weight * sum(score.square().mean() for score in scores)}


class Whole(JointEmbedding, criterion=Everything, teacher_momentum=0.9):
    """All that the step can."""


# signature


def test_class_keywords_are_defaults_of_the_signature_and_saved(tmp_path: Path) -> None:
    class Mine(BYOL, teacher_momentum=0.5, scale=3.0):
        """Another momentum."""

    defaults = {name: each.default for name, each in inspect.signature(Mine).parameters.items()}
    expected = {"predictor": "4096-d", "teacher_momentum": 0.5, "scale": 3.0, "base_lr": 0.3}
    assert {name: defaults[name] for name in expected} == expected
    assert inspect.signature(BYOL).parameters["teacher_momentum"].default == 0.99
    model = make(Mine)
    assert (model.teacher.momentum, model.criterion.scale) == (0.5, 3.0)
    assert model.hparams["teacher_momentum"] == 0.5
    assert make(Mine, teacher_momentum=0.7).teacher.momentum == 0.7


def test_dimensions_are_the_methods_and_no_argument() -> None:
    assert "dimensions" not in inspect.signature(Whole).parameters
    assert inspect.signature(Whole).parameters["weight"].default == 1.0
    model = make(Whole)
    assert model.criterion.prototypes.shape == (3, 8)
    groups = train(model, digits(), max_steps=1).optimizers[0].param_groups
    assert any(p is model.criterion.prototypes for group in groups for p in group["params"])


def test_keyword_of_no_argument_is_refused() -> None:
    with pytest.raises(ValueError, match=r"of class Mine to be arguments of .* got `momentum`"):
        type("Mine", (JointEmbedding,), {}, criterion=criteria.VICReg, momentum=0.9)
    with pytest.raises(ValueError, match="class Mine to have no keywords such as `base_lr`"):
        type("Mine", (VICReg,), {"__init__": lambda self: None}, base_lr=0.9)


def test_networks_of_one_seed_are_the_same_for_every_method() -> None:
    states = [make(method).state_dict() for method in (VICReg, BYOL, SimSiam, Whole)]
    for state in states[1:]:
        for name in states[0]:
            assert torch.equal(state[name], states[0][name])


def test_a_head_of_ones_own_takes_the_place_of_the_projector() -> None:
    def head(spec: str, in_features: int, embedding_dim: int | None = None) -> nn.Module:
        return nn.Sequential(create_projector(spec, in_features, embedding_dim), nn.Tanh())

    class Mine(JointEmbedding, criterion=Everything, head=head):
        """Embeddings in (-1, 1)."""

    model = make(Mine)
    assert model.embedding_dim == 8
    assert model(batch()[0][0]).shape == (6, model.num_features)
    embeddings = model.training_step(batch(), 0)["embeddings"]
    assert max(z.abs().max() for z in embeddings) < 1


# targets, predictor, inputs


@pytest.mark.parametrize("joint", [False, True], ids=["a call a view", "one call"])
def test_step_gives_the_criterion_what_it_asks_for(joint: bool) -> None:
    model = make(Whole, joint_forward=joint).eval()  # batch norms do not see who is beside whom
    views, labels = batch(views=3, small=2)
    outputs = model.training_step((views, labels), 0)
    z = [model.projector(model.backbone(x)) for x in views]
    (call,) = model.criterion.calls
    torch.testing.assert_close(call["views"], tuple(model.predictor(each) for each in z))
    torch.testing.assert_close(call["targets"], tuple(model.teacher(x) for x in views[:3]))
    assert (call["labels"] is labels, call["step"]) == (True, 0)
    torch.testing.assert_close(outputs["embeddings"], tuple(each.detach() for each in z[:3]))
    assert len(outputs["features"]) == 3
    assert not any(t.requires_grad for t in (*call["targets"], *outputs["embeddings"]))


def test_joint_forward_sends_views_of_one_size_together() -> None:
    sizes: list[tuple[int, ...]] = []
    model = make(Whole, joint_forward=True)
    model.backbone.register_forward_hook(lambda _, images, __: sizes.append(images[0].shape))
    model.training_step(batch(views=2, small=3), 0)
    assert sizes == [(12, 1, 8, 8), (18, 1, 5, 5)]


@pytest.mark.parametrize("stop", [True, False], ids=["stopped", "not stopped"])
def test_gradient_reaches_the_targets_only_if_it_is_not_stopped(stop: bool) -> None:
    model = make(SimSiam, stop_gradient=stop).eval()
    (x1, x2), labels = batch()
    z1, z2 = (model.projector(model.backbone(x)) for x in (x1, x2))
    targets = (z1.detach(), z2.detach()) if stop else (z1, z2)
    p1, p2 = model.predictor(z1), model.predictor(z2)
    weights = [*model.backbone.parameters(), *model.projector.parameters()]
    loss = model.criterion(p1, p2, targets=targets)["loss"]
    expected = torch.autograd.grad(loss, weights)
    got = torch.autograd.grad(model.training_step(([x1, x2], labels), 0)["loss"], weights)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(
    ("method", "options", "said"),
    [
        (VICReg, {"teacher_momentum": 0.9}, "takes targets with `teacher_momentum`, but VICReg"),
        (VICReg, {"stop_gradient": False}, "takes targets with `stop_gradient`, but VICReg"),
        (BYOL, {"stop_gradient": False}, "`stop_gradient` true with `teacher_momentum`"),
        (BYOL, {"teacher_momentum": 1.1}, r"`teacher_momentum` in \[0, 1\]"),
        (BYOL, {"predictor": "12-9"}, "last width of predictor '12-9', but got 8"),
        (BYOL, {"predictor": "12-x"}, "Expected `predictor` to be widths"),
    ],
    ids=["teacher", "stop", "stop and teacher", "momentum", "width", "notation"],
)
def test_arguments_that_do_nothing_or_do_not_fit_are_refused(
    method: Any, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        make(method, **options)


@pytest.mark.parametrize(
    ("method", "data", "settings", "said"),
    [
        (VICReg, {"views": 3}, {}, "two views of an image for VICReg, but the data has 3"),
        (
            VICReg,
            {"small_views": 1, "small_view": SmallView(size=5)},
            {},
            "but the data has 3: set --data.views 2 and --data.small_views 0",
        ),
        (Whole, {"probe_source": "digits"}, {}, "labelled training images for Everything"),
        (BYOL, {}, {"precision": "bf16-true"}, "bf16-mixed or 32-true with a teacher, but got"),
    ],
    ids=["views", "small views", "labels", "precision"],
)
def test_data_without_the_inputs_is_refused_before_the_fit(
    method: Any, data: dict[str, Any], settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        train(make(method), digits(**data), **settings)


def test_small_views_of_a_transformer_of_one_size_are_refused() -> None:
    model = make(Whole, backbone="vit_tiny_patch16_224", image_size=16)
    data = SSLDataModule(image_size=16, small_views=1, small_view=SmallView(size=8))
    with pytest.raises(ValueError, match="a backbone for images of any size with small views"):
        train(model, data)


# optimizer


def test_teacher_is_no_parameter_of_the_optimizer_and_gets_no_gradient() -> None:
    model = make()
    groups = train(model, digits(), max_steps=1).optimizers[0].param_groups
    trained = {p for group in groups for p in group["params"]}
    own = {*model.backbone.parameters(), *model.projector.parameters()}
    assert trained == own | {*model.predictor.parameters()}
    assert all(p.grad is None and not p.requires_grad for p in model.teacher.parameters())


def test_learning_rate_of_simsiams_predictor_is_constant() -> None:
    rates: dict[bool, set[float]] = {True: set(), False: set()}

    class Watch(Callback):
        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            for group in trainer.optimizers[0].param_groups:
                rates[group.get("constant", False)].add(group["lr"])

    model = make(SimSiam, weight_decay=0.1)
    run = train(model, digits(), Watch())
    highest = 8 / 256
    assert rates[True] == {highest}
    assert len(rates[False]) == 4
    groups = [g for g in run.optimizers[0].param_groups if g.get("constant")]
    assert [g["weight_decay"] for g in groups] == [0.1, 0.0]
    assert {p for g in groups for p in g["params"]} == {*model.predictor.parameters()}
    assert model.predictor[-1].bias is None  # of this notation
    assert make(SimSiam, predictor="12-d-b").predictor[-1].bias is not None
    assert inspect.signature(SimSiam).parameters["predictor"].default == "512-d-b"


@pytest.mark.parametrize("accumulate", [1, 2])
def test_teacher_moves_once_an_optimizer_step(accumulate: int) -> None:
    """By hand: from the network after each step, with the momentum of that step."""
    states: list[list[Tensor]] = []

    class Watch(Callback):
        def on_train_start(self, trainer: Any, model: Any) -> None:
            states.append([p.detach().clone() for p in model.teacher.parameters()])

        def on_train_batch_end(self, trainer: Any, model: Any, *_: Any) -> None:
            if trainer.global_step == len(states):
                networks = (*model.backbone.parameters(), *model.projector.parameters())
                states.append([p.detach().clone() for p in networks])

    model = make(teacher_momentum=0.8)
    run = train(model, digits(), Watch(), accumulate_grad_batches=accumulate)
    steps = 4 // accumulate
    assert run.global_step == steps == len(states) - 1
    expected = states[0]
    for k, network in enumerate(states[1:]):
        m = 1 - 0.2 * (1 + math.cos(math.pi * k / steps)) / 2
        expected = [m * t + (1 - m) * p for t, p in zip(expected, network, strict=True)]
    for ours, exact in zip(model.teacher.parameters(), expected, strict=True):
        torch.testing.assert_close(ours, exact)
    assert any(not torch.equal(a, b) for a, b in zip(states[0], expected, strict=True))


# checkpoints


@pytest.mark.parametrize("method", [BYOL, Whole], ids=["BYOL", "labels and prototypes"])
def test_resumed_fit_with_a_teacher_is_the_uninterrupted_one(method: Any, tmp_path: Path) -> None:
    whole, first, second = make(method), make(method), make(method)
    settings = {"epochs": 2, "enable_checkpointing": True, "default_root_dir": tmp_path}
    train(whole, digits(), epochs=2)
    train(first, digits(), LastCheckpoint(every_n_steps=3), **settings)
    mid = tmp_path / "checkpoints" / "previous.ckpt"
    assert torch.load(mid, weights_only=True)["global_step"] == 6
    train(second, digits(), LastCheckpoint(), **settings, ckpt_path=mid)
    state = whole.state_dict()
    assert any(name.startswith("teacher.backbone") for name in state)
    torch.testing.assert_close(second.state_dict(), state, rtol=0, atol=0)


def test_checkpoint_with_a_teacher_loads_and_another_network_is_named(tmp_path: Path) -> None:
    model = make()
    train(model, digits(), max_steps=1).save_checkpoint(tmp_path / "a.ckpt")
    again = BYOL.load_from_checkpoint(tmp_path / "a.ckpt")
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)
    content = torch.load(tmp_path / "a.ckpt", weights_only=True)
    with pytest.raises(ValueError, match=r"set --model.teacher_momentum 0\.99, or load"):
        make(teacher_momentum=None).check_weights(content)


def test_teacher_starts_from_pretrained_weights(tmp_path: Path) -> None:
    source = make(VICReg).backbone
    with torch.no_grad():
        source.stem[0].weight += 1
    torch.save(source.state_dict(), tmp_path / "w.pt")
    model = make(pretrained=tmp_path / "w.pt")
    model.load_pretrained()
    for backbone in (model.backbone, model.teacher.backbone):
        assert torch.equal(backbone.stem[0].weight, source.stem[0].weight)


def test_test_evaluates_the_teacher_on_request(tmp_path: Path) -> None:
    """Files of its own, other scores than the network's, and the network back in its place."""
    model = make(teacher_momentum=0.5, base_lr=100.0)
    train(model, digits()).save_checkpoint(tmp_path / "last.ckpt")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    records, seen = {}, []
    for teacher in (False, True):
        evaluation = OfflineEvaluation(protocols=("knn", "ranks"), teacher=teacher)
        run = trainer(tmp_path, evaluation)
        hook = model.teacher.backbone.register_forward_hook(lambda *_: seen.append(True))
        run.test(model, digits(64, subset=100), ckpt_path=tmp_path / "last.ckpt", verbose=False)
        hook.remove()
        assert bool(seen) == teacher
        name = "evaluation-teacher.json" if teacher else "evaluation.json"
        records[teacher] = json.loads((tmp_path / name).read_text())
    assert records[True].pop("teacher") is True
    assert records[True].keys() == records[False].keys()
    assert records[True]["rankme_features"] != records[False]["rankme_features"]
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
    kept = {path.name for path in (tmp_path / "features-cache").iterdir()}
    assert kept == {"last-test.npz", "last-test-teacher.npz"}
    with pytest.raises(ValueError, match=r"a method with a teacher for --evaluation\.teacher"):
        trainer(None, OfflineEvaluation(teacher=True)).test(make(SimSiam), digits(64))


def test_the_teachers_backbone_is_written_on_request(tmp_path: Path) -> None:
    model = make(teacher_momentum=0.5)
    train(model, digits()).save_checkpoint(tmp_path / "last.ckpt")
    model.save_backbone(tmp_path / "own.safetensors", teacher=True)
    path = export(tmp_path / "last.ckpt", "safetensors", teacher=True)
    assert path.name == "backbone-teacher.safetensors"
    for file in (path, tmp_path / "own.safetensors"):
        expected = dict(model.teacher.backbone.state_dict())
        torch.testing.assert_close(load_file(file), expected, rtol=0, atol=0)
    train(make(SimSiam), digits(), max_steps=1).save_checkpoint(tmp_path / "none.ckpt")
    with pytest.raises(ValueError, match=r"with a teacher, but it holds no teacher\.backbone"):
        export(tmp_path / "none.ckpt", "safetensors", teacher=True)


def test_memory_counts_views_predictor_and_teacher() -> None:
    """By hand: 4 x 3 + 3 x 2 weights, 3 of a norm twice; a predictor of 2 x 2."""
    projector, predictor = create_projector("3-2", 4), create_projector("2", 2)
    options: dict[str, Any] = {"views": 3, "predictor": predictor, "teacher": projector}
    need = estimate(projector, criteria.Regression(), 5, **options)
    assert need.parameters == 24 + 4
    assert need.weights == 4 * (3 * 28 + 24)
    assert need.activations == 4 * 3 * 5 * (2 * 3 + 2 + 2)
    assert need.criterion == 4 * (criteria.Regression().memory(5, 2) + 3 * 5 * 2)


# in a fit


@pytest.mark.parametrize(
    "settings",
    [{"precision": "bf16-mixed"}, {"sync_batchnorm": True}, {}],
    ids=["bf16-mixed", "sync_batchnorm", "compile"],
)
def test_teacher_in_a_fit_of_another_kind(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[nn.Module] = []
    monkeypatch.setattr(nn.Module, "compile", lambda module: compiled.append(module))
    model = make(compile=not settings, teacher_momentum=0.5)
    before = [p.clone() for p in model.teacher.parameters()]
    train(model, digits(), **settings)
    assert all(p.dtype == torch.float32 for p in model.teacher.parameters())
    after = model.teacher.parameters()
    assert any(not torch.equal(a, b) for a, b in zip(after, before, strict=True))
    parts = (model.backbone, model.projector, model.predictor, *model.teacher.children())
    assert compiled == ([] if settings else [*parts, model.criterion])


class Spread(Criterion):
    """The mean of the views' distances from their mean."""

    def terms(self, *views: Tensor) -> dict[str, Tensor]:
        stack = torch.stack(views)
        return {"loss": (stack - stack.mean(0)).square().mean()}


class ManyViews(JointEmbedding, criterion=Spread):
    """A criterion of many views."""


def test_callbacks_follow_many_views(tmp_path: Path) -> None:
    probe, knn = OnlineLinearProbe(["backbone", "projector"]), OnlineKNN(k=3)
    monitors = [probe, knn, RankMe(), DualityMonitor(every_n_steps=1), CollapseGuard(), ViewGrid()]
    data = digits(views=3, small_views=2, small_view=SmallView(size=5))
    run = train(make(ManyViews, predictor=None), data, *monitors)
    names = {"val/probe_top1", "val/knn_top1", "val/rankme", "duality/cosine_mean"}
    assert names <= run.callback_metrics.keys()
    assert probe.state_dict()["steps"] == 4
    assert len(knn.state_dict()["labels"]) == 4 * 3 * 8  # of the large views
