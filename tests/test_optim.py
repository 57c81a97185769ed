"""LARS and the schedule against peers and plain loops; fused steps."""

import importlib
import math
import warnings
from collections.abc import Iterator
from functools import partial
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

from duality_ssl.methods.optimization import parameter_groups, warmup_cosine
from duality_ssl.networks.backbones import create_backbone
from duality_ssl.networks.projector import create_projector
from duality_ssl.optim import LARS, fuse

STEPS = 6
SHAPES = {"matrix": (7, 5), "kernel": (4, 3, 3, 3), "vector": (6,), "scalar": ()}


@pytest.fixture
def bolts() -> Iterator[ModuleType]:
    """Give ``pl_bolts.optimizers``; importing and using it warns of its age on every occasion."""
    # Recorded, not ignored: bolts puts filters of its own before any of ours.
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        yield importlib.import_module("pl_bolts.optimizers")


def groups(
    dtype: torch.dtype, weight_decays: tuple[float, ...] = (1e-2, 0.0, 1e-6)
) -> list[dict[str, Any]]:
    """Make a group for each weight decay; one parameter is zero, the last has a zero gradient."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for number, weight_decay in enumerate(weight_decays):
        values = [
            torch.randn(shape, generator=generator, dtype=torch.float64)
            for shape in SHAPES.values()
        ]
        values += [torch.zeros(3, 2, dtype=torch.float64), torch.ones(2, 2, dtype=torch.float64)]
        params = [nn.Parameter(value.to(dtype)) for value in values]
        made.append({"params": params, "weight_decay": weight_decay, "lr": 0.5 / (number + 1)})
    return made


def set_gradients(made: list[dict[str, Any]], step: int) -> None:
    """Set gradients; the last of a group is always zero, the first is missing at step 2."""
    generator = torch.Generator().manual_seed(100 + step)
    for group in made:
        for number, parameter in enumerate(group["params"]):
            gradient = 10.0**number * torch.randn(
                parameter.shape, generator=generator, dtype=torch.float64
            )
            parameter.grad = gradient.to(parameter.dtype)
        group["params"][-1].grad = torch.zeros_like(group["params"][-1])
        if step == 2:
            group["params"][0].grad = None


def values(made: list[dict[str, Any]]) -> list[Tensor]:
    return [parameter.detach() for group in made for parameter in group["params"]]


def reference_lars_step(
    weight: list[float], gradient: list[float], velocity: list[float], group: dict[str, Any]
) -> tuple[list[float], list[float]]:
    """Take one step of LARS on one tensor, an entry at a time."""
    weight_norm = math.sqrt(sum(w * w for w in weight))
    gradient_norm = math.sqrt(sum(g * g for g in gradient))
    decay, trust = 0.0, 1.0
    if group["adapt"] and weight_norm > 0 and gradient_norm > 0:
        decay = group["weight_decay"]
        trust = group.get("eta", 0.001) * weight_norm
        trust /= gradient_norm + decay * weight_norm + 1e-8
        if group.get("clip"):
            trust = min(trust, group["lr"]) / group["lr"]
    momentum, lr = group["momentum"], group["lr"]
    update = [trust * (g + decay * w) for w, g in zip(weight, gradient, strict=True)]
    velocity = [momentum * v + u for v, u in zip(velocity, update, strict=True)]
    if group["nesterov"]:
        step = [u + momentum * v for u, v in zip(update, velocity, strict=True)]
    else:
        step = velocity
    return [w - lr * s for w, s in zip(weight, step, strict=True)], velocity


MOMENTA = pytest.mark.parametrize(
    ("momentum", "nesterov"),
    [(0.0, False), (0.9, False), (0.9, True)],
    ids=["plain", "momentum", "nesterov"],
)


@MOMENTA
@pytest.mark.parametrize(
    ("adapt", "clip"),
    [(None, False), (True, False), (False, False), (True, True)],
    ids=["adapt-by-weight-decay", "adapt-all", "adapt-none", "clip"],
)
def test_lars_matches_reference(
    momentum: float, nesterov: bool, adapt: bool | None, clip: bool
) -> None:
    ours, plain = groups(torch.float64), groups(torch.float64)
    for group in ours:
        group["adapt"] = adapt
    eta = 0.2 if clip else 0.001  # some tensors are clipped, others are not
    options: dict[str, Any] = {"momentum": momentum, "nesterov": nesterov, "clip": clip}
    optimizer = LARS(ours, lr=0.5, trust_coefficient=eta, **options)
    weights = [parameter.flatten().tolist() for parameter in values(plain)]
    velocities = [[0.0] * len(weight) for weight in weights]
    for step in range(STEPS):
        set_gradients(ours, step)
        set_gradients(plain, step)
        optimizer.step()
        position = 0
        for group in plain:
            rule = {**group, **options, "eta": eta}
            rule["adapt"] = group["weight_decay"] != 0 if adapt is None else adapt
            for parameter in group["params"]:
                if parameter.grad is not None:
                    weights[position], velocities[position] = reference_lars_step(
                        weights[position],
                        parameter.grad.flatten().tolist(),
                        velocities[position],
                        rule,
                    )
                position += 1
    for parameter, expected in zip(values(ours), weights, strict=True):
        expected_tensor = torch.tensor(expected, dtype=torch.float64).view_as(parameter)
        torch.testing.assert_close(parameter, expected_tensor, rtol=1e-12, atol=1e-14)


@MOMENTA
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_lars_takes_the_steps_of_bolts(
    bolts: ModuleType, momentum: float, nesterov: bool, dtype: torch.dtype
) -> None:
    ours, theirs = groups(dtype), groups(dtype)
    optimizers = [
        (ours, LARS(ours, lr=0.5, momentum=momentum, nesterov=nesterov)),
        (theirs, bolts.LARS(theirs, lr=0.5, momentum=momentum, nesterov=nesterov)),
    ]
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    for step in range(STEPS):
        for made, optimizer in optimizers:
            set_gradients(made, step)
            optimizer.step()
        torch.testing.assert_close(values(ours), values(theirs), rtol=tolerance, atol=tolerance)
    assert not torch.equal(values(ours)[0], values(groups(dtype))[0])


def test_lars_takes_the_steps_of_bolts_on_a_network(bolts: ModuleType) -> None:
    """Same, with our parameter groups, our schedule and its, on a net and a loss."""
    images = torch.randn(8, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    losses = []
    for make, schedule in [
        (LARS, lambda optimizer: warmup_cosine(optimizer, 2, STEPS, floor=0.0)),
        (bolts.LARS, lambda optimizer: bolts.LinearWarmupCosineAnnealingLR(optimizer, 2, STEPS)),
    ]:
        torch.manual_seed(0)
        model = nn.Sequential(create_backbone("resnet_tiny", 1), create_projector("16-8", 128))
        optimizer = make(parameter_groups(model, weight_decay=1e-4), lr=2.0, momentum=0.9)
        scheduler = schedule(optimizer)
        losses.append([])
        for _ in range(STEPS):
            loss = (model(images) - 1).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            losses[-1].append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0][-1] < losses[0][0]


@MOMENTA
@pytest.mark.parametrize(
    ("module", "name"),
    [("timm.optim", "Lars"), ("lightly.utils.lars", "LARS")],
    ids=["timm", "lightly"],
)
def test_lars_takes_the_steps_of_peers(
    module: str, name: str, momentum: float, nesterov: bool
) -> None:
    """lightly's are also those of `reference_lars_step` that adapts by weight decay."""
    peer = getattr(pytest.importorskip(module), name)
    runs = []
    for make in (LARS, peer):
        made = groups(torch.float64)
        for group in made:  # timm decays where the gradient is zero
            group["params"] = group["params"][:-1]
        runs.append((made, make(made, lr=0.5, momentum=momentum, nesterov=nesterov)))
    for step in range(STEPS):
        for made, optimizer in runs:
            set_gradients(made, step)
            optimizer.step()
    (ours, _), (theirs, _) = runs
    torch.testing.assert_close(values(ours), values(theirs), rtol=1e-6, atol=1e-9)


def test_lars_takes_the_same_steps_a_part_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, parts = groups(torch.float64), groups(torch.float64)
    first, second = LARS(whole, lr=0.5), LARS(parts, lr=0.5)
    for step in range(STEPS):
        set_gradients(whole, step)
        first.step()
        monkeypatch.setattr("duality_ssl.optim._CACHED_BYTES", 300)
        set_gradients(parts, step)
        second.step()
        monkeypatch.undo()
    torch.testing.assert_close(values(parts), values(whole), rtol=0, atol=0)


def test_lars_step_makes_nothing_of_a_weights_size() -> None:
    weight = nn.Parameter(torch.ones(256, 256))
    weight.grad = torch.ones_like(weight)
    optimizer = LARS([{"params": [weight], "adapt": True}], lr=0.1)
    optimizer.step()
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        optimizer.step()
    allocated = [event.self_cpu_memory_usage for event in profile.events()]
    assert 0 < max(allocated) < weight.nbytes / 2


def test_lars_step_never_waits_for_the_device() -> None:
    """On the meta device there are no values: whatever reads one on the host raises."""
    model = create_backbone("resnet_tiny").to("meta")
    optimizer = LARS(parameter_groups(model, 1e-6), lr=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.empty_like(parameter)
    optimizer.step()
    optimizer.step()


def test_clipped_lars_keeps_its_momentum_finite_at_the_start_of_a_warm_up() -> None:
    weight = nn.Parameter(torch.ones(3, 2))
    optimizer = LARS([{"params": [weight], "adapt": True}], lr=0.0, clip=True)
    weight.grad = torch.ones(3, 2)
    optimizer.step()
    assert torch.equal(weight, torch.ones(3, 2))
    assert torch.equal(optimizer.state[weight]["momentum_buffer"], torch.ones(3, 2))


def test_lars_resumes_from_its_state() -> None:
    whole, halves = groups(torch.float64), groups(torch.float64)
    optimizer, first = LARS(whole, lr=0.5), LARS(halves, lr=0.5)
    for step in range(STEPS):
        if step == 3:
            second = LARS(groups(torch.float64), lr=9.0, momentum=0.1)
            second.load_state_dict(first.state_dict())
            for group, made in zip(second.param_groups, halves, strict=True):
                with torch.no_grad():
                    for parameter, value in zip(group["params"], made["params"], strict=True):
                        parameter.copy_(value)
            first, halves = second, second.param_groups
        for made in (whole, halves):
            set_gradients(made, step)
        optimizer.step()
        first.step()
    torch.testing.assert_close(values(halves), values(whole), rtol=0, atol=0)


def test_lars_evaluates_a_closure_with_gradients() -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = LARS([weight], lr=0.1)

    def closure() -> float:
        loss = weight.square().sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 4.0
    assert weight[0, 0] < 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param({"lr": -0.1}, "`lr` of LARS to be at least 0, but got -0.1", id="lr"),
        pytest.param({"lr": math.nan}, "`lr` of LARS to be at least 0, but got nan", id="nan"),
        pytest.param({"momentum": -1}, "`momentum` of LARS", id="momentum"),
        pytest.param({"weight_decay": -1}, "`weight_decay` of LARS", id="weight-decay"),
        pytest.param(
            {"trust_coefficient": -1}, "`trust_coefficient` of LARS", id="trust-coefficient"
        ),
        pytest.param({"eps": -1}, "`eps` of LARS", id="eps"),
        pytest.param({"momentum": 0.0, "nesterov": True}, "positive `momentum`", id="nesterov"),
    ],
)
def test_lars_refuses(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LARS([nn.Parameter(torch.ones(1))], **{"lr": 0.1, **arguments})


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        pytest.param(torch.optim.SGD, True, id="SGD"),
        pytest.param(torch.optim.Adam, True, id="Adam"),
        pytest.param(torch.optim.AdamW, True, id="AdamW"),
        pytest.param(torch.optim.RMSprop, None, id="RMSprop-has-none"),
        pytest.param(torch.optim.Adagrad, None, id="Adagrad-on-CPUs-only"),
        pytest.param(LARS, None, id="LARS"),
        pytest.param(partial(SGD, fused=False), False, id="user-says-no"),
        pytest.param(partial(torch.optim.AdamW, foreach=True), None, id="user-says-foreach"),
        pytest.param(partial(torch.optim.Adam, foreach=False), None, id="user-says-loop"),
    ],
)
def test_fused_steps_where_there_are_any_and_the_user_has_not_chosen(
    make: Any, expected: bool | None
) -> None:
    optimizer = make(parameter_groups(nn.Linear(2, 3), 0.1), lr=0.1)
    fuse(optimizer)
    assert [group.get("fused") for group in optimizer.param_groups] == [expected] * 2


ADAPTIVE = pytest.mark.parametrize(
    "make",
    [partial(SGD, momentum=0.9, nesterov=True), torch.optim.AdamW],
    ids=["SGD", "AdamW"],
)


@ADAPTIVE
def test_fused_steps_are_the_same(make: Any) -> None:
    runs = []
    for fused in (False, True):
        made = groups(torch.float64, weight_decays=(0.1, 0.0))
        runs.append((made, make(made)))
        if fused:
            fuse(runs[-1][1])
    for step in range(STEPS):
        for made, optimizer in runs:
            set_gradients(made, step)
            optimizer.step()
    torch.testing.assert_close(values(runs[1][0]), values(runs[0][0]), rtol=1e-12, atol=1e-14)


@ADAPTIVE
@pytest.mark.parametrize("before", [True, False], ids=["fused-before", "not-fused-before"])
@pytest.mark.parametrize("turn", [True, False], ids=["other-layout", "same-layout"])
def test_fused_steps_go_on_from_a_checkpoint_of_any_layout(
    make: Any, before: bool, turn: bool
) -> None:
    """Torch's kernels for a CPU read state of other strides than the weight's in a wrong order."""

    def build(channels_last: bool) -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        module = nn.Conv2d(4, 6, 3)
        if channels_last:
            module.to(memory_format=torch.channels_last)
        return module, make(module.parameters(), lr=0.1)

    def step(module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        images = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        optimizer.zero_grad()
        module(images).square().mean().backward()
        optimizer.step()

    reference, run, resumed = build(True), build(True), build(not turn)
    for each, fused in ((run, before), (resumed, True)):
        if fused:
            fuse(each[1])
    for _ in range(2):
        step(*reference)
        step(*run)
    for ours, theirs in zip(resumed, run, strict=True):
        ours.load_state_dict(theirs.state_dict())
    step(*reference)
    step(*resumed)
    torch.testing.assert_close(resumed[0].weight, reference[0].weight, rtol=1e-5, atol=1e-6)


def reference_learning_rate(step: int, warmup: int, total: int, lr: float, floor: float) -> float:
    if step < warmup:
        return lr * step / (warmup - 1) if warmup > 1 else 0.0
    if step >= total:
        return lr * floor
    return lr * floor + lr * (1 - floor) * 0.5 * (
        1 + math.cos(math.pi * (step - warmup) / (total - warmup))
    )


def learning_rates(
    scheduler: Any, optimizer: torch.optim.Optimizer, steps: int
) -> list[list[float]]:
    rates = []
    for _ in range(steps):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return rates


def sgd(*rates: float) -> SGD:
    return SGD([{"params": [nn.Parameter(torch.ones(1))], "lr": rate} for rate in rates], lr=1.0)


SCHEDULES = pytest.mark.parametrize(
    ("warmup", "total", "floor"),
    [(10, 100, 0.001), (10, 100, 0.0), (1, 20, 0.1), (2, 5, 0.0), (4, 5, 0.5)],
    ids=["vicreg", "to-zero", "one-step-of-warmup", "short", "one-step-of-cosine"],
)


@SCHEDULES
def test_schedule_is_that_of_bolts(
    bolts: ModuleType, warmup: int, total: int, floor: float
) -> None:
    for lr in (4.8, 1e-3):
        ours, theirs = sgd(lr), sgd(lr)
        scheduler = warmup_cosine(ours, warmup, total, floor)
        their_scheduler = bolts.LinearWarmupCosineAnnealingLR(
            theirs, warmup, total, eta_min=floor * lr
        )
        rates = learning_rates(scheduler, ours, total + 1)
        expected = learning_rates(their_scheduler, theirs, total + 1)
        torch.testing.assert_close(rates, expected, rtol=1e-9, atol=1e-12 * lr)


@SCHEDULES
def test_schedule_matches_reference(warmup: int, total: int, floor: float) -> None:
    optimizer = sgd(4.8, 0.3)
    rates = learning_rates(warmup_cosine(optimizer, warmup, total, floor), optimizer, total + 10)
    expected = [
        [reference_learning_rate(k, warmup, total, lr, floor) for lr in (4.8, 0.3)]
        for k in range(total + 10)
    ]
    torch.testing.assert_close(rates, expected, rtol=1e-12, atol=1e-15)


def test_schedule_without_warmup_starts_at_the_top() -> None:
    optimizer = sgd(2.0)
    rates = learning_rates(warmup_cosine(optimizer, 0, 4, floor=0.0), optimizer, 5)
    torch.testing.assert_close(
        rates,
        [[2.0], [2 * math.cos(math.pi / 8) ** 2], [1.0], [2 * math.sin(math.pi / 8) ** 2], [0.0]],
    )


def test_schedule_shorter_than_its_warmup_is_cut() -> None:
    optimizer = sgd(1.0)
    schedule = warmup_cosine(optimizer, 11, 1, floor=0.001)
    assert learning_rates(schedule, optimizer, 3) == [[0.0], [0.1], [0.2]]


def test_schedule_resumes_from_its_state() -> None:
    optimizer = sgd(1.0)
    scheduler = warmup_cosine(optimizer, 3, 10, floor=0.001)
    rates = learning_rates(scheduler, optimizer, 5)
    other = sgd(1.0)
    resumed = warmup_cosine(other, 3, 10, floor=0.001)
    other.load_state_dict(optimizer.state_dict())
    resumed.load_state_dict(scheduler.state_dict())
    rates += learning_rates(resumed, other, 6)
    whole = sgd(1.0)
    assert rates == learning_rates(warmup_cosine(whole, 3, 10, floor=0.001), whole, 11)
