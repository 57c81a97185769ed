"""Training from existing weights: frozen stages and layer-wise learning rates in a fit."""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.fits import fit
from helpers.gloo_processes import Processes, trainer_options
from lightning import Callback
from torch import Tensor

from duality_ssl import distributed
from duality_ssl.callbacks import LastCheckpoint
from duality_ssl.cli import main
from duality_ssl.data import SSLDataModule
from duality_ssl.methods import BYOL, JointEmbedding, SimSiam, SwAV, VICReg
from duality_ssl.methods.optimization import parameter_groups
from duality_ssl.networks.backbones import create_backbone
from duality_ssl.networks.stages import layer_scales, split_stages
from duality_ssl.optim import LARS

SMALL: dict[str, Any] = {"backbone": "resnet_tiny", "projector": "16-8", "in_channels": 1}
SMALL |= {"warmup_epochs": 0, "base_lr": 1.0, "weight_decay": 0.1, "optimizer": torch.optim.SGD}
OWN: dict[Any, dict[str, Any]] = {
    BYOL: {"predictor": "12-d", "teacher_momentum": 0.5},
    SimSiam: {"predictor": "12-d"},
    SwAV: {"num_prototypes": 5, "frozen_steps": 0},
}


def make(method: type[JointEmbedding] = VICReg, **options: Any) -> Any:
    torch.manual_seed(0)
    return method(**{**SMALL, **OWN.get(method, {}), **options})


def digits(batch_size: int = 8, size: int = 8) -> SSLDataModule:
    return SSLDataModule(batch_size=batch_size, image_size=size)


def train(model: Any, *callbacks: Callback, data: Any = None, **settings: Any) -> Any:
    settings = {"epochs": 2, "limit_train_batches": 3, "limit_val_batches": 1, **settings}
    return fit(None, model, data or digits(), *callbacks, **settings)


def parts(model: Any, *begin: str) -> dict[str, Tensor]:
    """Parameters and buffers in such modules of the network and of its teacher."""
    wanted = tuple(top + name for top in ("backbone.", "teacher.backbone.") for name in begin)
    return {name: x.clone() for name, x in model.state_dict().items() if name.startswith(wanted)}


# frozen stages


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        (VICReg, {}),
        (BYOL, {}),
        (BYOL, {"sync_batchnorm": True}),
        (BYOL, {"precision": "bf16-mixed"}),
        (BYOL, {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1}),
    ],
    ids=["VICReg", "teacher", "sync_batchnorm", "bf16-mixed", "accumulated and clipped"],
)
def test_frozen_stages_and_their_statistics_stay_bitwise_equal(
    method: Any, settings: dict[str, Any]
) -> None:
    """Two epochs with a validation in between, which sets the modes of all modules anew."""
    model = make(method, freeze=2, optimizer=LARS)
    frozen, rest = parts(model, "stem", "stages.0"), parts(model, "stages.1", "stages.2")
    assert any(name.endswith("running_mean") for name in frozen)
    train(model, **settings)
    torch.testing.assert_close(parts(model, "stem", "stages.0"), frozen, rtol=0, atol=0)
    for name, now in parts(model, "stages.1", "stages.2").items():
        assert not torch.equal(now, rest[name]), name


@pytest.mark.slow
def test_compiled_fit_with_frozen_stages_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    torch.compiler.reset()
    models = [make(BYOL, freeze=2, compile=flag) for flag in (False, True)]
    frozen = parts(models[1], "stem", "stages.0")
    for model in models:
        train(model, epochs=1)
    plain, compiled = (model.state_dict() for model in models)
    torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(parts(models[1], "stem", "stages.0"), frozen, rtol=0, atol=0)


def test_frozen_stages_cause_no_warning_of_their_mode(recwarn: pytest.WarningsRecorder) -> None:
    train(make(freeze=2), max_steps=1)
    assert not [each for each in recwarn if "eval mode" in str(each.message)]


@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "test_resnet"])
def test_fit_continues_from_weights_of_timm(name: str, tmp_path: Path) -> None:
    """Random weights in a file, as a transformer's, a ConvNeXt's and a ResNet's."""
    torch.manual_seed(1)
    size = {"image_size": 32} if name == "test_vit" else {}
    theirs = create_backbone(name, 1, **size).state_dict()
    torch.save(theirs | {"fc.weight": torch.ones(2, 2)}, tmp_path / "w.pt")
    options = {"freeze": 2, "layer_decay": 0.5, "pretrained": tmp_path / "w.pt", **size}
    model = make(backbone=name, optimizer=torch.optim.AdamW, base_lr=0.01, **options)
    train(model, data=digits(size=32), epochs=1)
    names = {parameter: key for key, parameter in model.backbone.named_parameters()}
    for number, stage in enumerate(split_stages(model.backbone)):
        for parameter in stage:
            same = torch.equal(parameter, theirs[names[parameter]])
            assert same == (number < 2), names[parameter]


def test_without_the_option_a_networks_own_modes_stay() -> None:
    """A part of a user's network that is fixed by design is left to the user."""
    model = make()
    model.backbone.stages[1].requires_grad_(False)
    model.eval().train()
    assert all(module.training for module in model.modules())
    train(model)
    assert not torch.equal(model.backbone.stages[1].bn1.running_mean, torch.zeros(64))


def test_unfrozen_network_trains_all_of_its_stages() -> None:
    """Lightning's `unfreeze` of a method, and the one of a loaded checkpoint."""
    model = make(freeze=2)
    model.unfreeze()
    assert all(module.training for module in model.modules())


def test_loaded_checkpoint_is_frozen_unless_it_is_told_otherwise(tmp_path: Path) -> None:
    file = tmp_path / "a.ckpt"
    train(make(BYOL, freeze=2), max_steps=1).save_checkpoint(file)
    again, free = BYOL.load_from_checkpoint(file), BYOL.load_from_checkpoint(file, freeze=0)
    for model, trains in ((again, False), (free, True)):
        model.train()
        assert all(p.requires_grad == trains for p in model.backbone.stem.parameters())
        for backbone in (model.backbone, model.teacher.backbone):
            assert backbone.stem[1].training == trains
            assert backbone.stages[1].bn1.training
    assert all(p.requires_grad for p in again.backbone.stages[1].parameters())


# layer-wise rates


@pytest.mark.parametrize("method", [SimSiam, SwAV, BYOL], ids=lambda method: method.__name__)
def test_rates_of_every_step_fall_from_the_projector_to_the_stem(method: Any) -> None:
    """The schedule scales all alike; projector, predictor and prototypes have the full rate."""
    rates: list[dict[str, float]] = []

    class Watch(Callback):
        def on_train_batch_start(self, trainer: Any, model: Any, *_: Any) -> None:
            groups = trainer.optimizers[0].param_groups
            names = {parameter: name for name, parameter in model.named_parameters()}
            rates.append({names[p]: group["lr"] for group in groups for p in group["params"]})

    train(make(method, layer_decay=0.5, warmup_epochs=1), Watch())
    highest = 8 / 256
    warm = [0, highest / 2, highest]
    floor = make(method).final_lr_fraction
    cosine = [highest * (floor + (1 - floor) * x) for x in (1, 0.75, 0.25)]
    begin = {"backbone.stem": 2**-4, "projector": 1.0, "criterion": 1.0, "predictor": 1.0}
    begin |= {f"backbone.stages.{i}": 2.0 ** (i - 3) for i in range(3)}
    for step, rate in enumerate([*warm, *cosine]):
        trained = {name for name, p in make(method).named_parameters() if p.requires_grad}
        assert rates[step].keys() == trained
        for name, got in rates[step].items():
            constant = method is SimSiam and name.startswith("predictor")
            (scale,) = (factor for top, factor in begin.items() if name.startswith(top))
            expected = highest if constant else scale * rate
            assert got == pytest.approx(expected, rel=1e-12, abs=1e-12), name


def test_groups_keep_decay_and_adaptation_and_hold_every_parameter_once() -> None:
    model = make(BYOL, layer_decay=0.5)
    scales = layer_scales(model.backbone, 0.5)
    groups = parameter_groups(model, 0.1, model.predictor, scales)
    flags = [(g.get("scale"), g.get("constant"), g["weight_decay"], g["adapt"]) for g in groups]
    kinds = [(0.1, True), (0.0, False)]
    tops = [(None, None), *((2.0**-i, None) for i in range(1, 5)), (None, True)]
    assert flags == [(*top, *kind) for top in tops for kind in kinds]
    held = [p for group in groups for p in group["params"]]
    assert len(held) == len({*held})
    assert {*held} == {p for p in model.parameters() if p.requires_grad}
    for group in groups:
        assert all(scales.get(p) == group.get("scale") for p in group["params"])
        if group["adapt"]:
            assert all(p.ndim > 1 for p in group["params"])


def test_frozen_stages_are_in_no_group() -> None:
    groups = make(freeze=2, layer_decay=0.5).build_optimizer(1.0).param_groups
    assert [group["lr"] for group in groups] == [1, 1, 0.5, 0.5, 0.25, 0.25]
    assert all(p.requires_grad for group in groups for p in group["params"])


def test_step_of_sgd_is_scaled_layer_by_layer() -> None:
    """One step with and without decay from the same weights, by the same gradient."""
    plain, decayed = make(weight_decay=0.0), make(weight_decay=0.0, layer_decay=0.5)
    before = copy.deepcopy(plain.state_dict())
    for model in (plain, decayed):
        train(model, max_steps=1)
    scales = layer_scales(decayed.backbone, 0.5)
    parameters = dict(plain.named_parameters())
    for name, parameter in decayed.named_parameters():
        step = parameters[name] - before[name]
        expected = before[name] + scales.get(parameter, 1.0) * step
        torch.testing.assert_close(parameter, expected, rtol=1e-5, atol=1e-7)


# resumed


@pytest.mark.parametrize("method", [VICReg, BYOL], ids=["VICReg", "teacher"])
def test_resumed_fit_is_the_uninterrupted_one(method: Any, tmp_path: Path) -> None:
    options = {"freeze": 1, "layer_decay": 0.5, "optimizer": LARS}
    whole, first, second = (make(method, **options) for _ in range(3))
    settings = {"enable_checkpointing": True, "default_root_dir": tmp_path}
    done = train(whole)
    train(first, LastCheckpoint(every_n_steps=2), **settings)
    mid = tmp_path / "checkpoints" / "previous.ckpt"
    assert 0 < torch.load(mid, weights_only=True)["global_step"] < done.global_step
    again = train(second, LastCheckpoint(), **settings, ckpt_path=mid)
    torch.testing.assert_close(second.state_dict(), whole.state_dict(), rtol=0, atol=0)
    states = [run.optimizers[0].state_dict() for run in (done, again)]
    assert states[0]["param_groups"] == states[1]["param_groups"]
    torch.testing.assert_close(states[0]["state"], states[1]["state"], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("method", "options", "said"),
    [
        (VICReg, {"freeze": 2}, "--model.freeze 1 as in the checkpoint, .* but got 2"),
        (VICReg, {"layer_decay": 0.7}, "--model.layer_decay 0.5 as in the checkpoint"),
        (SimSiam, {"predictor_schedule": True}, "--model.predictor_schedule False as in the"),
    ],
    ids=["freeze", "layer_decay", "predictor_schedule"],
)
def test_checkpoint_with_other_groups_is_refused(
    method: Any, options: dict[str, Any], said: str
) -> None:
    own = {"freeze": 1, "layer_decay": 0.5}
    content = {"hyper_parameters": dict(make(method, **own).hparams)}
    make(method, **own).check_groups(content)
    make(method, **own).check_groups({})
    with pytest.raises(ValueError, match=said):
        make(method, **{**own, **options}).check_groups(content)


# two processes


def on_all(options: dict[str, Any]) -> dict[str, Tensor]:
    batch = 16 // distributed.world_size()
    model = make(**options, base_lr=0.5)
    data = SSLDataModule(batch_size=batch, image_size=8, seed=3)
    settings = {"limit_train_batches": 4, "precision": "64-true", "sync_batchnorm": True}
    options = {"epochs": 1, "limit_val_batches": 1, **settings, **trainer_options()}
    fit(None, model, data, **options)
    state: dict[str, Tensor] = model.state_dict()
    return state


@pytest.mark.parametrize("method", [VICReg, BYOL], ids=["VICReg", "teacher"])
def test_two_processes_are_one(method: Any, gloo_processes: Callable[[int], Processes]) -> None:
    """DDP refuses a parameter that requires a gradient and gets none; frozen ones do not count."""
    options = {"method": method, "freeze": 2, "layer_decay": 0.5}
    one, before = on_all(options), make(**options).double().state_dict()
    for state in gloo_processes(2).run(on_all, options):
        for name, expected in one.items():
            torch.testing.assert_close(state[name], expected, rtol=0, atol=1e-6, msg=name)
            frozen = ("backbone.stem" in name) or ("backbone.stages.0" in name)
            assert not frozen or torch.equal(state[name], before[name])


# the command


FIT = ["fit", "--data.source", "digits", "--model", "VICReg", "--model.in_channels", "1"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--model.freeze 4", "`freeze` in 0 to 3 for a backbone of 4 stages"),
        ("--model.layer_decay 0", "`layer_decay` above 0 and at most 1, but got 0"),
        (
            "--model.backbone pit_ti_224 --model.freeze 1",
            "but got PoolingVisionTransformer",
        ),
    ],
    ids=["freeze", "layer_decay", "unknown stages"],
)
def test_command_refuses_in_one_sentence(
    words: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as done:
        main([*FIT, "--model.backbone", "resnet_tiny", *words.split()])
    assert done.value.code == 2
    assert said in capsys.readouterr().err
