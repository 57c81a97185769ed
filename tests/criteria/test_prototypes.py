"""SwAV and DINO: published values, small views, state, and the mistakes of public code."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers.criteria_cases import make_views
from helpers.gloo_processes import Processes, start_processes
from helpers.references import grid
from helpers.references_prototypes import dino, swav
from torch import Tensor, nn

from duality_ssl import distributed
from duality_ssl.criteria import DINO, Criterion, SwAV
from duality_ssl.distributed import process_group
from duality_ssl.functional import normalize_rows

D = 5
SWAV = {"temperature": 0.1, "epsilon": 0.05, "iterations": 3}
DINOS = {"temperature": 0.1, "teacher_temperature": 0.04}


Z = grid(8, 5), grid(8, 5) + grid(8, 5, 2) / 2
T = Z[0] + grid(8, 5, 3) / 2, Z[0] + grid(8, 5, 4) / 2


def make_swav(**arguments: Any) -> SwAV:
    criterion = SwAV(D, **{"num_prototypes": 6, "frozen_steps": 0, **arguments}).double()
    criterion.prototypes.data = grid(criterion.num_prototypes, D, 5)
    return criterion


def batch(n: int, seed: int) -> tuple[Tensor, ...]:
    """Two large views and two small ones."""
    return *make_views(n, D, seed=seed), *make_views(n, D, seed=seed + 100)


def test_swav_has_the_published_value() -> None:
    loss = make_swav()(*Z, step=0)["loss"]
    assert loss.item() == pytest.approx(1.62440359079909, rel=1e-12)


def test_dino_has_the_authors_values() -> None:
    criterion = DINO(D).double()
    first = criterion(*Z, targets=T, step=0)["loss"]
    assert first.item() == pytest.approx(1.3688158722361, rel=1e-12)
    assert criterion.center[0].item() == pytest.approx(-0.00140597383420501, rel=1e-12)
    second = criterion(*Z, targets=T, step=1)["loss"]
    assert second.item() == pytest.approx(1.38076355488447, rel=1e-12)


def assert_equal_with_gradient(ours: Tensor, expected: Tensor, leaves: list[Tensor]) -> None:
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    gradients = [
        torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
        for loss in (ours, expected)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("views", [2, 4])
def test_small_views_predict_the_assignments_of_the_large_ones(views: int) -> None:
    z = [z.requires_grad_() for z in batch(7, 0)[:views]]
    criterion = make_swav()
    leaves = [*z, criterion.prototypes]
    ours = criterion(*z, step=0)["loss"]
    expected = swav(*z, prototypes=criterion.prototypes, **SWAV)
    assert_equal_with_gradient(ours, expected, leaves)


@pytest.mark.parametrize("large", [1, 2, 3])
def test_small_views_predict_the_teacher_of_the_large_ones(large: int) -> None:
    z, targets = [z.requires_grad_() for z in batch(7, 0)], batch(7, 1)[:large]
    ours = DINO(D).double()(*z, targets=targets, step=0)["loss"]
    expected = dino(*z, targets=targets, center=torch.zeros(D), **DINOS)
    assert_equal_with_gradient(ours, expected, z)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_scores_do_not_overflow(dtype: torch.dtype) -> None:
    """exp(1 / 0.05) is infinite in float16, and without unit rows in float32 (swav #67)."""
    z1, z2 = (1000 * z.to(dtype) for z in make_views(8, D))
    terms = make_swav().float()(z1.requires_grad_(), z2, step=0)
    terms["loss"].backward()
    assert z1.grad is not None
    assert z1.grad.isfinite().all()
    exact = make_swav()(z1.double(), z2.double(), step=0)["loss"]
    torch.testing.assert_close(terms["loss"].double(), exact, rtol=1e-5, atol=0)


def test_the_queue_is_used_once_it_is_full() -> None:
    criterion = make_swav(queue=12, queue_start=1)
    for step in range(5):
        views = batch(8, step)
        # filled from step 1 on: step 2 would see 8 of its 12
        earlier = [batch(8, s)[:2] for s in range(step - 1, 0, -1)]
        queued = (
            torch.stack([torch.cat([b[w] for b in earlier])[:12] for w in range(2)])
            if (step >= 3)
            else None
        )
        expected = swav(*views, prototypes=criterion.prototypes, queued=queued, **SWAV)
        torch.testing.assert_close(criterion(*views, step=step)["loss"], expected)


def test_the_queue_holds_unit_rows_of_the_large_views() -> None:
    """Of the newest first, each view by itself."""
    criterion = make_swav(queue=4)
    for step in range(2):
        criterion(*batch(3, step), step=step)
    new, old = batch(3, 1), batch(3, 0)
    for w in range(2):
        expected = normalize_rows(torch.cat([new[w], old[w][:1]]))
        torch.testing.assert_close(criterion.queued[w], expected)


def test_prototypes_are_frozen_for_the_first_steps() -> None:
    """They have a gradient, of zero: distributed data parallel waits for each parameter's."""
    criterion = make_swav(frozen_steps=2)
    values = []
    for step in range(3):
        z1, z2 = (z.requires_grad_() for z in make_views(8, D))
        loss = criterion(z1, z2, step=step)["loss"]
        (gradient, of_view) = torch.autograd.grad(loss, [criterion.prototypes, z1])
        assert bool(gradient.any()) == (step == 2)
        values.append((loss.item(), of_view))
    assert values[0][0] == values[2][0]
    torch.testing.assert_close(values[0][1], values[2][1])


def test_accumulated_batches_move_the_centre_once() -> None:
    """Of one optimizer step: all use the same centre, and move it by their mean."""
    whole, parts = DINO(D).double(), DINO(D).double()
    for step in range(3):
        views, targets = batch(8, step)[:2], batch(8, step + 50)[:2]
        expected = whole(*views, targets=targets, step=step)["loss"]
        losses = [
            parts(*(z[rows] for z in views), targets=tuple(t[rows] for t in targets), step=step)[
                "loss"
            ]
            for rows in (slice(0, 4), slice(4, 8))
        ]
        torch.testing.assert_close(sum(losses) / 2, expected)
        torch.testing.assert_close(parts.center, whole.center)


@pytest.mark.parametrize("name", ["SwAV", "DINO"])
def test_state_changes_in_training_only(name: str) -> None:
    criterion: Criterion = make_swav(queue=8) if name == "SwAV" else DINO(D).double()
    inputs: dict[str, Any] = {} if name == "SwAV" else {"targets": T}
    criterion(*Z, step=0, **inputs)
    before = {key: value.clone() for key, value in criterion.state_dict().items()}
    first = criterion.eval()(*Z, step=1, **inputs)["loss"]
    assert torch.equal(criterion(*Z, step=2, **inputs)["loss"], first)
    for key, value in criterion.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize("name", ["SwAV", "DINO"])
def test_resumed_state_continues(name: str) -> None:
    def build() -> Criterion:
        return make_swav(queue=8) if name == "SwAV" else DINO(D).double()

    def run(criterion: Criterion, step: int) -> Tensor:
        inputs: dict[str, Any] = {} if name == "SwAV" else {"targets": batch(8, step + 50)[:2]}
        return criterion(*batch(8, step), step=step, **inputs)["loss"]

    criterion, resumed = build(), build()
    for step in range(2):
        run(criterion, step)
    resumed.load_state_dict(criterion.state_dict())
    assert torch.equal(run(criterion, 2), run(resumed, 2))


def test_the_teacher_temperature_warms_up() -> None:
    criterion = DINO(
        D, teacher_temperature=0.07, initial_teacher_temperature=0.04, teacher_warmup_steps=30
    )
    temperatures = [criterion.teacher_temperature_at(step) for step in (0, 10, 30, 100)]
    assert temperatures == pytest.approx([0.04, 0.05, 0.07, 0.07])


def test_a_momentum_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match="Expected `center_momentum` below 1, but got 1"):
        DINO(D, center_momentum=1.0)


def test_terms_tell_both_ways_of_collapse() -> None:
    """A uniform teacher has an entropy of log D, one of a single prototype has none."""
    same = torch.zeros(6, D), torch.zeros(6, D)
    terms = DINO(D)(*same, targets=same, step=0)
    torch.testing.assert_close(terms["entropy"].exp().item(), float(D))
    assert terms["divergence"].abs() < 1e-6
    one = 100 * torch.eye(D)[:1].expand(6, D)
    terms = DINO(D)(one, one, targets=(one, one), step=0)
    assert terms["entropy"] < 1e-6


@pytest.fixture(scope="module", params=[2, 3], ids=lambda world: f"W{world}")
def worlds(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Processes]:
    yield from start_processes(request.param, tmp_path_factory.mktemp("group"))


def _steps(name: str, rows: int) -> list[Tensor]:
    """Losses, averaged gradients of a net and of the prototypes, and state, after three steps."""
    torch.manual_seed(0)
    net = nn.Linear(D, D).double()
    criterion: Criterion = make_swav(queue=10) if name == "SwAV" else DINO(D).double()
    group, parameters = process_group(), [*net.parameters()]
    parameters += [p for p in criterion.parameters() if p.requires_grad]
    own, results = group.own(rows), []
    for step in range(3):
        views = [net(x[own]) for x in batch(rows * group.world_size, step)]
        targets = tuple(t[own] for t in batch(rows * group.world_size, step + 50)[:2])
        inputs: dict[str, Any] = {} if name == "SwAV" else {"targets": targets}
        loss = criterion(*views, group=group, step=step, **inputs)["loss"]
        gradients = torch.autograd.grad(loss, parameters)
        averages = [distributed.all_reduce_sum(g) / group.world_size for g in gradients]
        results += [loss.detach(), *averages]
    return [*results, *(b.clone() for b in criterion.state_dict().values())]


@pytest.mark.parametrize("name", ["SwAV", "DINO"])
def test_processes_are_one_with_their_state(worlds: Processes, name: str) -> None:
    """Prototypes, queue and centre, with small views: a loss of each process's own fails here."""
    expected = _steps(name, 12)
    for results in worlds.run(_steps, name, 12 // worlds.world):
        for result, reference in zip(results, expected, strict=True):
            torch.testing.assert_close(result, reference, rtol=1e-10, atol=1e-12)
