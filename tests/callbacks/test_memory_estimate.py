"""The estimate against what the allocator gives out in a real step, and what is said of it."""

import re
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import fits
from helpers.callback_stubs import StubData
from helpers.criteria_cases import WithInputs, build
from torch.profiler import ProfilerActivity, profile

from duality_ssl import criteria
from duality_ssl.callbacks import memory
from duality_ssl.callbacks.memory import MemoryEstimate, estimate
from duality_ssl.criteria import Criterion
from duality_ssl.methods import VICReg
from duality_ssl.networks.projector import create_projector

OPTIMIZERS = {
    "momentum": (lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9), 1),
    "adam": (torch.optim.AdamW, 2),
    "plain": (lambda weights: torch.optim.SGD(weights, lr=0.1), 0),
}


def peak_of_two_steps(
    criterion: Criterion, spec: str, batch_size: int, optimizer: str, precision: torch.dtype
) -> int:
    """Bytes of all tensors at the fullest moment, weights and inputs included."""

    def run() -> None:
        projector = create_projector(spec, 128)
        stepper = OPTIMIZERS[optimizer][0](projector.parameters())

        def closure() -> torch.Tensor:  # in the order of the Trainer
            with torch.autocast("cpu", precision, enabled=precision != torch.float32):
                z1, z2 = (projector(torch.randn(batch_size, 128)) for _ in range(2))
                loss = criterion(z1, z2)["loss"]
            stepper.zero_grad()
            loss.backward()
            return loss

        for _ in range(2):
            stepper.step(closure)

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as seen:
        run()
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    ("criterion", "spec", "batch_size", "optimizer"),
    [
        (criteria.VICReg, "512-512-512", 32, "momentum"),
        (criteria.VICReg, "512-512-512", 32, "adam"),
        (criteria.TCR, "512-512-512", 32, "plain"),
        (criteria.BarlowTwins, "256-256-256", 512, "adam"),
        (criteria.SpectralContrastive, "64-1024", 256, "momentum"),
        (criteria.SimCLR, "128-128", 1024, "momentum"),
        (criteria.DCL, "256-256", 256, "momentum"),
        (partial(build, "NSCL"), "128-128", 1024, "momentum"),
        (partial(build, "SupCon"), "128-128", 1024, "momentum"),
        (partial(build, "MoCoV3"), "128-128", 1024, "momentum"),
        (criteria.VICRegExp, "64-2048", 64, "momentum"),
        (criteria.FroSSL, "64-1024", 256, "momentum"),
        (criteria.MMCR, "64-512", 512, "plain"),
        (criteria.VICRegCtr, "64-64", 1024, "momentum"),
    ],
    ids=lambda value: getattr(value, "__name__", "".join(getattr(value, "args", [str(value)]))),
)
def test_estimate_is_what_a_step_takes(
    criterion: Callable[[], Any],
    spec: str,
    batch_size: int,
    optimizer: str,
    precision: torch.dtype,
) -> None:
    measured = peak_of_two_steps(criterion(), spec, batch_size, optimizer, precision)
    estimated = criterion()
    if isinstance(estimated, WithInputs):
        estimated = estimated.built(torch.zeros(2, 2))
    need = estimate(
        create_projector(spec, 128),
        estimated,
        batch_size,
        activation_bytes=precision.itemsize,
        state_tensors=OPTIMIZERS[optimizer][1],
    )
    assert 0.7 < need.total / measured < 1.5


def test_estimate_of_the_papers_projector() -> None:
    """By hand: 2048 x 8192 + 2 x 8192^2 weights, and two norms of two vectors each."""
    with torch.device("meta"):
        projector = create_projector("8192-8192-8192", 2048)
    need = estimate(projector, criteria.VICReg(), 256)
    assert need.parameters == 2048 * 8192 + 2 * 8192**2 + 4 * 8192
    assert need.weights == 3 * 4 * need.parameters
    assert need.activations == 2 * 256 * 5 * 8192 * 4
    assert need.criterion == 4 * (3 * 2 * 256 * 8192 + 256**2)
    spread = estimate(projector, criteria.VICReg(), 256, world_size=4, activation_bytes=2)
    assert spread.weights == 18 * need.parameters  # buckets of gradients, weights in half precision
    assert spread.activations == need.activations // 2
    embeddings = 2 * 1024 * 8192
    assert spread.criterion == 4 * (4 * embeddings + 1024**2) + 2 * embeddings


@pytest.mark.parametrize("criterion", [criteria.SimCLR, criteria.DCL, criteria.VICRegCtr])
def test_many_similarities_are_not_all_there(criterion: type[Criterion]) -> None:
    with torch.device("meta"):
        projector = create_projector("256", 128)
    need = estimate(projector, criterion(), 16_384)
    assert need.criterion < 2**28 < 4 * 16_384**2


def first_step(folder: Path, **options: Any) -> None:
    network = {"backbone": "resnet_tiny", "projector": "64-64", "in_channels": 1}
    method = VICReg(**network, warmup_epochs=0, **options)
    fits.fit(folder, method, StubData(), MemoryEstimate(), fast_dev_run=True)


def test_a_fit_says_it_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        first_step(tmp_path)
    said = [r.message for r in caplog.records if r.message.startswith("Projector of")]
    assert len(said) == 1
    pattern = r"Projector of 0\.0 M weights: \d+ MiB .*, \d+ MiB of act.*; criterion: \d+ MiB\."
    assert re.fullmatch(pattern, said[0])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_state_of_the_fits_optimiser_is_counted(
    optimizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, tensors = OPTIMIZERS[optimizer]
    asked: list[int] = []

    def spy(*arguments: Any, **options: Any) -> memory.Estimate:
        asked.append(options["state_tensors"])
        return estimate(*arguments, **options)

    monkeypatch.setattr(memory, "estimate", spy)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the optimizer's own learning rate is replaced
        first_step(tmp_path, optimizer=make)
    assert asked == [tensors]


def test_what_does_not_fit_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda device: 1000)
    with pytest.warns(UserWarning, match=r"but cpu has .* free.*Set --") as caught:
        first_step(tmp_path)
    assert sum("Set --" in str(w.message) for w in caught) == 1


@pytest.mark.parametrize(
    ("spec", "batch_size", "first"),
    [("4096-4096", 8, "Set --model.projector"), ("64-64", 4096, "Set --data.batch_size")],
    ids=["weights", "batch"],
)
def test_the_setting_that_helps_most_comes_first(spec: str, batch_size: int, first: str) -> None:
    need = estimate(create_projector(spec, 64), criteria.SimCLR(), batch_size)
    assert first in memory.advice(need, 2**20, torch.device("cpu"))


def test_a_processor_says_what_is_free() -> None:
    free = memory.free_memory(torch.device("cpu"))
    assert free is None or 2**20 < free < 2**50
    assert memory.free_memory(torch.device("meta")) is None
