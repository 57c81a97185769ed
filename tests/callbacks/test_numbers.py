"""Numbers that go wrong in a fit: each is injected for real, and ends in a sentence with a remedy.

A fault is put where it would arise: into a batch on its way, into the embeddings, the loss or the
gradients of one step, into the images of a set, into the learning rate.
"""

import hashlib
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.callback_stubs import StubData, StubModule, trainer
from helpers.gloo_processes import Processes, trainer_options
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.plugins import MixedPrecision
from PIL import Image
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from duality_ssl import methods
from duality_ssl.callbacks import (
    CollapseGuard,
    GuardError,
    LastCheckpoint,
)
from duality_ssl.cli import main
from duality_ssl.data import SSLDataModule
from duality_ssl.data.augment.color import normalize
from duality_ssl.data.loader import Batch
from duality_ssl.data.sources import ArrayImages, Digits, ImageSource, Split, register_source
from duality_ssl.distributed import rank
from duality_ssl.runs.checkpoint import is_damaged

CONFIGS = Path(__file__).parents[2] / "configs"
LOWER_RATE = "Try a lower learning rate (--model.base_lr)"


class Poison(Callback):
    """Puts a value into one place of every step from one on; a healthy run without it.

    Args:
        where: pixels (rows 3 and 5 of a view), embeddings (of row 2), loss, or gradients.
        step: The step it begins with.
        steps: For how many steps.
        value: What is put there.
        rank: On which process.
    """

    def __init__(
        self,
        where: str = "loss",
        step: int = 5,
        steps: int = 1,
        value: float = math.nan,
        rank: int = 0,
    ) -> None:
        self.where, self.first, self.steps, self.value, self.rank = where, step, steps, value, rank
        self.hooks: list[Any] = []
        self.last = b""

    def _due(self, trainer: Trainer, where: str) -> bool:
        step = trainer.fit_loop.epoch_loop.total_batch_idx
        return (
            where == self.where
            and rank() == self.rank
            and self.first <= step < self.first + self.steps
        )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        def embed(module: nn.Module, inputs: Any, z: Tensor) -> Tensor:
            factors = torch.where(torch.arange(len(z)) == 2, self.value, 1.0)
            due = module.training and self._due(trainer, "embeddings")
            return z * factors[:, None] if due else z

        def descend(grad: Tensor) -> Tensor:
            due = self._due(trainer, "gradients")
            return grad.clone().index_fill_(0, torch.tensor([1]), self.value) if due else grad

        self.hooks = [
            pl_module.projector.register_forward_hook(embed),
            next(pl_module.backbone.parameters()).register_hook(descend),
        ]
        step = pl_module.training_step

        def poisoned(*args: Any) -> dict[str, Any]:
            outputs = step(*args)
            factor = self.value if self._due(trainer, "loss") else 1.0
            last = Path(getattr(trainer.checkpoint_callback, "best_model_path", ""))
            if trainer.fit_loop.epoch_loop.total_batch_idx == self.first and last.is_file():
                self.last = digest(last)
            return outputs | {"loss": outputs["loss"] * factor}

        pl_module.training_step = poisoned

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._due(trainer, "pixels"):
            batch[0][1][[3, 5], 0, 0, 0] = self.value

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for hook in self.hooks:
            hook.remove()


def digest(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()


def fit(
    folder: Path,
    guard: CollapseGuard | None,
    *callbacks: Callback,
    module: LightningModule | None = None,
    data: Any = None,
    **settings: Any,
) -> tuple[list[str], str, int]:
    """What a fit of 5 epochs of 4 batches warned of, what ended it, and its steps."""
    guards = [] if guard is None else [guard]
    run = trainer(folder, *guards, *callbacks, **{"epochs": 5, **settings})
    error = ""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            run.fit(module or StubModule(), datamodule=data or StubData())
        except GuardError as ended:
            error = str(ended)
    said = [str(warning.message) for warning in caught]
    of_ours = ("Step ", "last.ckpt")
    return [text for text in said if text.startswith(of_ours)], error, run.global_step


# --------------------------------------------------------------------------------------------------
# Not finite

FAULTS = {
    "pixels": (
        "pixels of 2 of 32 images (row 3, row 5) are NaN or infinite.",
        "Repair or remove these images",
    ),
    "embeddings": (
        "the embeddings of 1 of 32 images (row 2) are NaN or infinite, and their pixels are finite",
        LOWER_RATE,
    ),
    "loss": ("the loss is NaN or infinite, and the embeddings are finite.", "detect_anomaly"),
    "gradients": (
        "the gradients of 1 of 3 weights are NaN or infinite (backbone.1.weight), and the loss is",
        "detect_anomaly",
    ),
}


@pytest.mark.parametrize("where", FAULTS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)
@pytest.mark.parametrize("action", ["warn", "stop"])
def test_the_first_part_that_is_not_finite_is_named_and_ends_the_fit(
    tmp_path: Path, where: str, value: float, action: Any
) -> None:
    """It is put into the second batch of the second epoch, and found in the third's check."""
    guard = CollapseGuard(action=action, every_n_steps=3)
    said, error, steps = fit(tmp_path, guard, Poison(where, value=value))
    what, remedy = FAULTS[where]
    assert said == []
    assert error.startswith(f"Step 7: in batch 2 of epoch 2 {what}")
    assert "The weights are not finite any more, and no step can repair them." in error
    assert remedy in error
    assert steps == 7


def test_a_fault_in_the_last_step_of_a_fit_is_found(tmp_path: Path) -> None:
    _, error, steps = fit(tmp_path, CollapseGuard(), Poison("gradients", step=19))
    assert "in batch 4 of epoch 5" in error
    assert steps == 20


def test_a_fault_in_the_last_batch_of_an_epoch_is_found_before_the_validation(
    tmp_path: Path,
) -> None:
    class Validations(Callback):
        def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            seen.append(trainer.sanity_checking)

    seen: list[bool] = []
    _, error, _ = fit(tmp_path, CollapseGuard(), Poison(step=7), Validations())
    assert "in batch 4 of epoch 2" in error
    assert seen == [True, False]


def test_a_fault_in_an_epoch_cut_short_is_found(tmp_path: Path) -> None:
    _, error, _ = fit(tmp_path, CollapseGuard(), Poison("loss", step=5), max_steps=6)
    assert "in batch 2 of epoch 2" in error


class Forgiving(Callback):
    """Takes what is not finite out of the gradients: the weights stay whole."""

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
        for weight in pl_module.parameters():
            weight.grad.nan_to_num_(0, 0, 0)


@pytest.mark.parametrize(
    ("faulty", "action", "ended"),
    [(1, "warn", 0), (3, "warn", 0), (20, "warn", 6), (20, "stop", 2)],
    ids=["once", "twice in a row", "always", "always, and stop"],
)
def test_a_loss_that_is_not_finite_may_heal_for_as_long_as_patience(
    tmp_path: Path, faulty: int, action: Any, ended: int
) -> None:
    guard = CollapseGuard(action=action, every_n_steps=2, patience=3)
    poison = Poison("loss", step=1, steps=faulty)
    said, error, steps = fit(tmp_path, guard, poison, Forgiving())
    assert len(said) == (action == "warn")
    assert all("the loss is NaN or infinite" in text for text in [*said, error] if text)
    assert all("in batch 2 of epoch 1" in text for text in said)
    assert bool(error) == bool(ended)
    assert "weights are not finite" not in error
    assert steps == (ended or 20)


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed", "bf16-true"])
def test_a_healthy_run_is_left_alone(tmp_path: Path, precision: Any) -> None:
    guard = CollapseGuard(action="stop", every_n_steps=1, patience=1)
    assert fit(tmp_path, guard, precision=precision) == ([], "", 20)


class NoWaiting(TorchDispatchMode):
    """Refuses what makes a host wait for its device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        waits = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "unique", "masked_select")
        assert func.overloadpacket.__name__ not in waits, f"{func} waits for the device"
        return func(*args, **(kwargs or {}))


def test_between_checks_nothing_waits_for_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = []

    class Watched(CollapseGuard):
        def _check(self, *args: Any) -> None:
            checks.append(len(self._faults))
            self._faults = []

        def on_before_optimizer_step(self, *args: Any) -> None:
            with NoWaiting():
                super().on_before_optimizer_step(*args)

        def on_train_batch_end(self, *args: Any) -> None:
            if not self._started:  # the first batch is looked at as it is
                return super().on_train_batch_end(*args)
            with NoWaiting():
                return super().on_train_batch_end(*args)

    assert fit(tmp_path, Watched(every_n_steps=3), epochs=1)[2] == 4
    assert checks == [1, 2, 1]
    with pytest.raises(AssertionError, match="waits"), NoWaiting():
        torch.ones(2).sum().item()


class Marked(SSLDataModule):
    """Views get a NaN where the raw image is the one that is all white, in the second epoch."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        views = super().on_after_batch_transfer(batch, dataloader_idx)
        if isinstance(batch, Batch) and batch.seed is not None and self.trainer.current_epoch == 1:
            white = batch.images[0].flatten(1).amin(1) == 255
            views[0][0][white, 0, 2, 2] = math.nan
        return views


def write_photos(folder: Path, count: int, same: bool = False) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(count):
        if i == 0 or not same:
            pixels = rng.integers(0, 200, (24, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")


def tiny(method: str = "SimCLR", projector: str = "16-16", **options: Any) -> Any:
    torch.manual_seed(0)
    settings = {"backbone": "resnet_tiny", "projector": projector, "warmup_epochs": 0}
    return getattr(methods, method)(**(settings | options))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_file_of_an_image_that_is_not_finite_is_named(tmp_path: Path, seed: int) -> None:
    write_photos(tmp_path / "photos", 24)
    bad = tmp_path / "photos/17.png"
    Image.new("RGB", (24, 24), "white").save(bad)
    data = Marked("folder", tmp_path / "photos", batch_size=4, image_size=16, seed=seed)
    _, error, _ = fit(tmp_path, CollapseGuard(), module=tiny(), data=data, limit_val_batches=0)
    assert f"of epoch 2 pixels of 1 of 4 images ({bad}) are NaN or infinite." in error


def test_a_source_of_hardly_any_deviation_spoils_every_image(tmp_path: Path) -> None:
    @register_source("flat")
    class Flat(Digits):
        std = (1e-50,)

    data = SSLDataModule("flat", batch_size=16, subset=64)
    module = tiny(in_channels=1)
    _, error, _ = fit(tmp_path, CollapseGuard(), module=module, data=data, limit_val_batches=0)
    assert "Step 1: in batch 1 of epoch 1 pixels of all 16 images of the batch are NaN" in error
    assert "a `std` near 0" in error


def test_a_source_without_deviation_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a positive `std` for each channel, but got \(0.2, 0\)"):
        normalize(torch.ones(2, 2, 4, 4), (0.5, 0.5), (0.2, 0))


def _fault_on_the_second_process(folder: Path) -> str:
    callbacks = CollapseGuard(), Poison("pixels", rank=1)
    run = trainer(folder, *callbacks, epochs=5, **trainer_options())
    with pytest.raises(GuardError) as raised:
        run.fit(StubModule(), datamodule=StubData(batch_size=16))
    return str(raised.value)


def test_a_fault_on_one_process_ends_them_all(
    gloo_processes: Callable[[int], Processes], tmp_path: Path
) -> None:
    for message in gloo_processes(2).run(_fault_on_the_second_process, tmp_path):
        # in batch 2 of epoch 2; its rows 3 and 5 are 19 and 21 of both processes' 32
        assert "2 of 32 images (row 19, row 21)" in message


# --------------------------------------------------------------------------------------------------
# Checkpoints and exit codes


@pytest.mark.parametrize("guarded", [True, False], ids=["guard", "no guard"])
@pytest.mark.parametrize("where", ["pixels", "gradients"])
def test_no_checkpoint_of_damaged_weights_replaces_a_good_one(
    tmp_path: Path, guarded: bool, where: str
) -> None:
    last = LastCheckpoint(every_n_steps=1)
    guard, poison = CollapseGuard(every_n_steps=3) if guarded else None, Poison(where)
    settings = {"enable_checkpointing": True, "logger": False}
    said, error, _ = fit(tmp_path, guard, poison, last, **settings)
    path = Path(last.best_model_path)
    state = torch.load(path, weights_only=True)
    assert state["global_step"] == 5
    assert all(weight.isfinite().all() for weight in state["state_dict"].values())
    assert digest(path) == poison.last
    assert len(said) == 1
    assert "last.ckpt is not written at step 6" in said[0]
    assert error.endswith(f"kept from before: {path}.") if guarded else error == ""


@pytest.mark.parametrize("value", [1.0, math.nan, math.inf, -math.inf], ids=str)
@pytest.mark.parametrize("name", ["weight", "running_var"])
def test_weights_and_statistics_are_damaged_by_one_number(name: str, value: float) -> None:
    network = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    network.state_dict()[f"1.{name}"][2] = value
    assert is_damaged(network) == (not math.isfinite(value))


def exit_of(words: list[str]) -> int:
    with pytest.raises(SystemExit) as ended:
        main(words)
    return int(str(ended.value.code))


@pytest.fixture
def digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A fit of 4 steps an epoch, with every callback, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    short = ["--data.subset", "64", "--data.batch_size", "16", "--trainer.limit_val_batches", "1"]
    words = ["fit", "-c", str(CONFIGS / "data/digits.yaml"), "--model", "SimCLR"]
    return [*words, *short, "--trainer.max_epochs", "3", "--model.warmup_epochs", "0"]


@pytest.mark.parametrize("where", ["loss", "pixels"])
def test_the_command_ends_with_code_3_and_keeps_the_last_good_checkpoint(
    digits: list[str], where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    poison = ["--trainer.callbacks+=test_numbers.Poison", f"--trainer.callbacks.where={where}"]
    assert exit_of([*digits, *poison]) == 3
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("duality-ssl: error: Step 8: in batch 2 of epoch 2 ")
    last = Path("runs/digits/SimCLR/version_0/checkpoints/last.ckpt")
    assert f"Training stops here; kept from before: {last}" in said
    kept = torch.load(last, weights_only=True)
    assert kept["global_step"] == 4
    assert all(weight.isfinite().all() for weight in kept["state_dict"].values())


def test_a_learning_rate_that_explodes_ends_the_command(
    digits: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_of([*digits, "--model.base_lr", "1e30"]) == 3
    assert LOWER_RATE in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------
# Finite, and of no use


@pytest.mark.parametrize(("action", "steps"), [("warn", 20), ("stop", 6)])
def test_collapse_is_acted_upon_after_patience(tmp_path: Path, action: Any, steps: int) -> None:
    guard = CollapseGuard(action=action, every_n_steps=2, patience=3)
    said, error, done = fit(tmp_path, guard, module=StubModule(collapse=True))
    text = said[0] if action == "warn" else error
    assert len(said) == (action == "warn")
    assert text.startswith("Step 6: the embeddings have collapsed: the spread of their direction")
    assert "Try a lower learning rate" in text
    assert done == steps


def test_collapse_onto_one_line_is_seen(tmp_path: Path) -> None:
    """Directions v and -v: spread out, but of rank 1."""

    class Line(StubModule):
        def _embed(self, features: Tensor) -> Tensor:
            return (
                super()._embed(features)[:, :1].sign() * torch.arange(1.0, 11) + 0 * features.sum()
            )

    said, _, _ = fit(tmp_path, CollapseGuard(every_n_steps=1, patience=1), module=Line())
    assert len(said) == 1
    assert "effective rank is 1 of 10" in said[0]


def test_patience_goes_on_in_a_resumed_run(tmp_path: Path) -> None:
    """Ill in the 2 checks before the checkpoint, it needs one more of 3."""
    words = {"module": StubModule(collapse=True), "enable_checkpointing": True}
    last = LastCheckpoint()
    fit(tmp_path, CollapseGuard(), last, epochs=2, **words)
    run = trainer(tmp_path, CollapseGuard(action="stop"), epochs=5)
    with pytest.raises(GuardError, match=r"^Step 12: the embeddings have collapsed"):
        run.fit(StubModule(collapse=True), datamodule=StubData(), ckpt_path=last.best_model_path)


@pytest.mark.parametrize(
    ("module", "what"),
    [
        pytest.param(
            lambda: StubModule(lr=3e3), "the norm of the gradient has exploded", id="gradient"
        ),
        pytest.param(
            lambda: Stretched(), "the mean norm of the embeddings has exploded", id="embeddings"
        ),
    ],
)
@pytest.mark.parametrize("action", ["warn", "stop"])
def test_a_norm_that_explodes_is_told_before_it_overflows(
    tmp_path: Path, module: Callable[[], StubModule], what: str, action: Any
) -> None:
    guard = CollapseGuard(action=action, every_n_steps=1, patience=2, max_growth=100)
    said, error, _ = fit(tmp_path, guard, module=module(), epochs=1)
    text = said[0] if action == "warn" else error
    assert len(said) == (action == "warn")
    assert what in text
    assert "--trainer.gradient_clip_val 1" in text


class Stretched(StubModule):
    """Embeddings ten times as long at each step, for the eyes of the guard."""

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        outputs = super().training_step(batch, batch_idx)
        longer = tuple(10**self.global_step * z for z in outputs["embeddings"])
        return outputs | {"embeddings": longer}


@pytest.mark.parametrize(
    ("rate", "said_at"),
    [
        pytest.param(0.0, "Step 0: the learning rate is 0,", id="zero"),
        pytest.param(1e-50, "Step 0: the learning rate is 1e-50", id="tiny"),
        pytest.param(1e-3, "", id="usual"),
    ],
)
@pytest.mark.parametrize("action", ["warn", "stop"])
def test_a_learning_rate_of_zero_is_told(
    tmp_path: Path, rate: float, said_at: str, action: Any
) -> None:
    said, error, _ = fit(tmp_path, CollapseGuard(action=action), module=StubModule(lr=rate))
    told = [*said, error] if error else said
    assert len(told) == bool(said_at)
    assert bool(error) == (action == "stop" and bool(said_at))
    for text in told:
        assert text.startswith(said_at)
        assert "Set --model.base_lr higher" in text


def test_a_base_rate_of_zero_is_told_by_the_command(digits: list[str]) -> None:
    with pytest.warns(UserWarning, match="Step 0: the learning rate is 0, so that nothing"):
        main([*digits, "--model.base_lr", "0", "--trainer.max_epochs", "1"])


def of_images(name: str, images: Tensor) -> SSLDataModule:
    @register_source(name)
    class Source(ImageSource):
        channels, image_size, mean, std, class_names = 3, 8, (0.5,) * 3, (0.25,) * 3, None

        def load(self, split: Split) -> ArrayImages:
            return ArrayImages(images)

    return SSLDataModule(name, batch_size=8)


def noise(n: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, 3, 8, 8), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize(
    ("images", "what"),
    [
        pytest.param(lambda: noise(1).expand(40, -1, -1, -1), "all of 32 images looked", id="same"),
        pytest.param(
            lambda: noise(40)[..., :1, :1].expand(-1, -1, 8, 8), "32 of 32 images", id="plain"
        ),
        pytest.param(lambda: torch.zeros(40, 3, 8, 8).byte(), "all of 32 images", id="black"),
        pytest.param(
            lambda: torch.cat([noise(20), torch.zeros(40, 3, 8, 8).byte()]), "21 of 32", id="most"
        ),
        pytest.param(
            lambda: torch.cat([noise(40), torch.zeros(20, 3, 8, 8).byte()]), "", id="some"
        ),
    ],
)
@pytest.mark.parametrize("action", ["warn", "stop"])
def test_images_with_nothing_to_tell_apart_are_told(
    tmp_path: Path,
    images: Callable[[], Tensor],
    what: str,
    action: Any,
    request: pytest.FixtureRequest,
) -> None:
    data = of_images(request.node.name, images())
    settings = {"epochs": 1, "limit_train_batches": 1, "limit_val_batches": 0}
    guard = CollapseGuard(action=action)
    said, error, steps = fit(tmp_path, guard, module=tiny(), data=data, **settings)
    told = [*said, error] if error else said
    assert len(told) == bool(what)
    assert steps == (not error)
    for text in told:
        assert text.startswith(f"Step 0: {what}")
        assert "Look at --data.root" in text


def test_copies_of_one_file_are_told(tmp_path: Path) -> None:
    """Each would be cropped otherwise: it is the whole images that are compared."""
    write_photos(tmp_path / "photos", 12, same=True)
    data = SSLDataModule("folder", tmp_path / "photos", batch_size=4, image_size=16)
    settings = {"epochs": 1, "limit_val_batches": 0}
    said, _, _ = fit(tmp_path, CollapseGuard(), module=tiny(), data=data, **settings)
    assert said[0].startswith("Step 0: all of 12 images looked at are the same.")


# --------------------------------------------------------------------------------------------------
# Half precision


class Overflowing(StubModule):
    """Gradients that no scale of the loss brings into the range of float16, from a finite loss."""

    def __init__(self, steps: range) -> None:
        super().__init__()
        self.steps = steps

    def _embed(self, features: Tensor) -> Tensor:
        return super()._embed(features).float()  # as criteria have it

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        self.loss_factor = 1e30 if self.global_step in self.steps else 1.0
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize(
    ("overflows", "action", "ended"),
    [
        (range(20), "warn", 0),  # the scale, 2^-4, is under 1 in the last check alone
        (range(100), "warn", 28),
        (range(100), "stop", 20),
        (range(3), "stop", 0),
    ],
    ids=["late", "warn", "stop", "start"],
)
def test_a_loss_scaler_that_skips_every_step_is_told(
    tmp_path: Path, overflows: range, action: Any, ended: int
) -> None:
    """PyTorch's own scaler, from 2^16, halved at each step; checks at every fourth."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    precision = MixedPrecision("16-mixed", "cpu", scaler)
    module = Overflowing(overflows)
    before = [weight.clone() for weight in module.parameters()]
    guard = CollapseGuard(action=action, patience=3)
    settings = {"plugins": [precision], "epochs": 8}
    said, error, steps = fit(tmp_path, guard, module=module, **settings)
    assert steps == (ended or 32)
    assert bool(error) == bool(ended)
    late = len(overflows) > 3
    assert len(said) == (late and action == "warn")
    for text in [*said, error] if error else said:
        assert "all 4 steps since the last check overflowed in float16" in text
        assert "--trainer.precision bf16-mixed, or 32-true" in text
    assert ended == 0 or all(map(torch.equal, before, module.parameters()))
