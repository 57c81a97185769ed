"""The linear theory of stop-gradient and EMA: loops over samples, and its statements in numbers."""

import doctest
import math
from functools import partial

import pytest
import torch
from helpers.references import grid
from torch import Tensor

from duality_ssl.functional import linear_dynamics, linear_equilibria
from duality_ssl.functional.linear_dynamics import (
    Flow,
    Problem,
    State,
    ema_flow,
    gradient_flow,
    integrate,
    objective,
    stop_gradient_flow,
)
from duality_ssl.functional.linear_equilibria import (
    asymmetry,
    balance,
    collapse_bound,
    equilibrium_predictor,
    equilibrium_radii,
    equilibrium_residual,
    growth_rates,
    jacobian,
    nearest_equilibrium,
)

tensor = partial(torch.tensor, dtype=torch.float64)
EMA = partial(ema_flow, rate=0.2)  # momentum 0.99 at Euler steps of 0.05
with_and_without_ema = pytest.mark.parametrize("flow", [stop_gradient_flow, EMA], ids=["SG", "EMA"])
each_flow = pytest.mark.parametrize(
    "flow", [gradient_flow, stop_gradient_flow, EMA], ids=["gradient", "SG", "EMA"]
)


def one_dimensional(weight_decay: float = 0.05) -> Problem:
    return Problem(*tensor([1, 0.9, 1]).view(3, 1, 1), weight_decay=weight_decay)


SAMPLES = grid(6, 2), grid(6, 2) + grid(6, 2, 3) / 2
TWO_DIMENSIONAL = Problem(
    xx=tensor([[0.8, 0.2], [0.2, 0.6]]),
    yx=tensor([[0.9, 0.1], [0.2, 1]]),
    yy=tensor([[2, 0], [0, 3]]),
    weight_decay=0.1,
)
START = tensor([[1], [0.5], [-0.5]]), torch.eye(3).double()


def state_of(flow: Flow, encoder: Tensor, predictor: Tensor) -> State:
    """The target starts as the encoder."""
    return (encoder, predictor, encoder) if flow is EMA else (encoder, predictor)


def sampled_problem(weight_decay: float = 0.05) -> Problem:
    def moment(one: Tensor, other: Tensor) -> Tensor:
        return sum(torch.outer(a, b) for a, b in zip(one, other, strict=True)) / len(one)

    x, y = SAMPLES
    return Problem(moment(x, x), moment(y, x), moment(y, y), weight_decay)


def sampled_objective(encoder: Tensor, predictor: Tensor, target: Tensor) -> Tensor:
    """The objective with weight decay 0.05, one sample at a time."""
    errors = [
        (predictor @ encoder @ x - target @ y).square().sum() for x, y in zip(*SAMPLES, strict=True)
    ]
    return (sum(errors) / 6 + 0.05 * (encoder.square().sum() + predictor.square().sum())) / 2


@pytest.mark.parametrize("n", [1, 4])
def test_flows_are_what_autograd_descends(n: int) -> None:
    encoder, predictor = grid(n, 2).requires_grad_(), grid(n, n, 5).requires_grad_()
    target, problem = grid(n, 2, 7), sampled_problem()
    value = objective(encoder, predictor, problem)
    assert value.item() == pytest.approx(
        sampled_objective(encoder, predictor, encoder).item(), rel=1e-12
    )
    for moved, held in [
        (gradient_flow(encoder, predictor, problem), encoder),
        (stop_gradient_flow(encoder, predictor, problem), encoder.detach()),
        (ema_flow(encoder, predictor, target, problem, rate=0.3), target),
    ]:
        loss = sampled_objective(encoder, predictor, held)
        gradients = torch.autograd.grad(loss, (encoder, predictor))
        for derivative, gradient in zip(moved, gradients, strict=False):
            torch.testing.assert_close(derivative, -gradient, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(moved[2], 0.3 * (encoder - target), rtol=1e-14, atol=0)


@each_flow
def test_trials_in_a_batch_are_trials_alone(flow: Flow) -> None:
    states = [state_of(flow, grid(3, 2, s), grid(3, 3, s)) for s in (1, 2)]
    decays = [0.05, 0.2]
    batch = tuple(torch.stack(parts) for parts in zip(*states, strict=True))
    each_decay = tensor(decays).view(2, 1, 1)
    moments = sampled_problem().xx, sampled_problem().yx, sampled_problem().yy
    problem = Problem(*(moment.expand(2, 2, 2) for moment in moments), each_decay)
    together = *integrate(flow, batch, problem, [0, 1]), objective(*batch[:2], problem)[None]
    for trial, (state, decay) in enumerate(zip(states, decays, strict=True)):
        alone = Problem(*moments, decay)
        expected = *integrate(flow, state, alone, [0, 1]), objective(*state[:2], alone)[None]
        for ours, theirs in zip(together, expected, strict=True):
            torch.testing.assert_close(ours[:, trial], theirs, rtol=1e-12, atol=0)


def test_integration_has_order_four_and_stops_at_the_times() -> None:
    def oscillator(x: Tensor, v: Tensor, problem: Problem) -> State:
        return v, -x

    state = tensor([1.0]), tensor([0.0])
    times = [0, 0.2, 1, 3.5]
    errors = []
    for step in (0.1, 0.05):
        positions, _ = integrate(oscillator, state, one_dimensional(), times, step)
        exact = tensor(times).cos()
        errors.append((positions[:, 0] - exact).abs().max().item())
        assert positions.shape == (4, 1)
    assert errors[0] < 1e-4
    assert errors[0] / errors[1] == pytest.approx(16, rel=0.2)


def test_the_gradient_flow_collapses_below_the_bound() -> None:
    """Lemma 4.3."""
    encoder, predictor = integrate(gradient_flow, START, one_dimensional(), range(11))
    squares = encoder.square().sum(dim=(1, 2))
    bounds = torch.stack([collapse_bound(START[0], 0.05, time) for time in range(11)])
    assert (squares[1:] < bounds[1:]).all()
    assert squares[-1].item() == pytest.approx(0.0086, abs=5e-5)
    assert bounds[-1].item() == pytest.approx(0.552, abs=5e-4)
    assert bounds[0] == squares[0] == 1.5
    values = objective(encoder, predictor, one_dimensional())
    assert (values.diff() < 0).all()


@with_and_without_ema
def test_stop_gradient_and_ema_pass_the_bound_and_climb(flow: Flow) -> None:
    """From small weights to the stable sphere, where the objective is higher."""
    state, problem = state_of(flow, START[0] / 4, START[1] / 2), one_dimensional()
    encoder, predictor, *_ = integrate(flow, state, problem, [0, 60], step=0.2)
    assert encoder[-1].square().sum() > 100 * collapse_bound(state[0], 0.05, 60)
    assert (objective(encoder, predictor, problem).diff() > 0.05).all()


def test_only_the_objective_has_a_symmetric_jacobian() -> None:
    """Proposition 3.2."""
    encoder = tensor([[1], [0.5]])
    predictor = tensor([[0.8, 0.1], [-0.2, 0.6]])
    problem = one_dimensional()
    pair = encoder, predictor
    assert asymmetry(stop_gradient_flow, pair, problem).item() == pytest.approx(
        2.04836520181339, rel=1e-12
    )
    assert asymmetry(gradient_flow, pair, problem) < 1e-14
    assert asymmetry(EMA, (*pair, encoder), problem) > 1


def test_the_jacobian_of_the_gradient_flow_is_the_hessian() -> None:
    def flat_objective(entries: Tensor) -> Tensor:
        return objective(entries[:6].view(3, 2), entries[6:].view(3, 3), sampled_problem())

    encoder, predictor = grid(3, 2), grid(3, 3, 5)
    hessian = torch.autograd.functional.hessian(
        flat_objective, torch.cat([encoder.view(-1), predictor.view(-1)])
    )
    ours = jacobian(gradient_flow, (encoder, predictor), sampled_problem())
    torch.testing.assert_close(ours, -hessian, rtol=1e-12, atol=1e-13)


def balance_and_its_derivative(flow: Flow, state: State, problem: Problem) -> tuple[Tensor, Tensor]:
    return torch.autograd.functional.jvp(
        lambda *parts: balance(*parts[:2]), state, flow(*state, problem)
    )


@with_and_without_ema
def test_balance_decays_whatever_the_target(flow: Flow) -> None:
    """It holds at any state, so at a target far from the encoder too; not for the gradient flow."""
    state = grid(4, 2), grid(4, 4, 5), grid(4, 2, 7)
    state = state if flow is EMA else state[:2]
    at_start, derivative = balance_and_its_derivative(flow, state, sampled_problem())
    torch.testing.assert_close(derivative, -2 * 0.05 * at_start, rtol=1e-12, atol=1e-13)
    later = balance(*(part[-1] for part in integrate(flow, state, sampled_problem(), [0, 4])[:2]))
    torch.testing.assert_close(later, math.exp(-0.4) * at_start, rtol=0, atol=1e-4)
    _, of_gradient = balance_and_its_derivative(gradient_flow, state[:2], sampled_problem())
    assert (of_gradient + 2 * 0.05 * at_start).norm() > 0.1


def test_both_end_at_one_orbit_of_stable_equilibria() -> None:
    """Propositions 4.5 and 4.10, for n=4 and m=2."""
    ends, problem = [], TWO_DIMENSIONAL
    for flow, scale in [(stop_gradient_flow, 1), (stop_gradient_flow, 1.5), (EMA, 1)]:
        state = state_of(flow, grid(4, 2) * scale, torch.eye(4).double() + grid(4, 4, 5) / 4)
        assert equilibrium_residual(state[0], problem).norm() > 0.1
        state = tuple(part[-1] for part in integrate(flow, state, problem, [0, 400], step=0.5))
        assert equilibrium_residual(state[0], problem).norm() < 1e-11
        torch.testing.assert_close(
            state[1], equilibrium_predictor(state[0], problem), rtol=0, atol=1e-9
        )
        rates = growth_rates(flow, state, problem)
        assert (rates[:5].abs() < 1e-10).all(), "along the orbit, of dimension nm - m(m + 1)/2"
        assert (rates[5:] < -0.05).all()
        ends.append(state)
    for encoder, *_ in ends[1:]:
        ours, first = encoder.mT @ encoder, ends[0][0].mT @ ends[0][0]
        torch.testing.assert_close(ours, first, rtol=1e-10, atol=0)
    rotation = torch.linalg.qr(grid(4, 4, 7))[0]
    rotated = rotation @ ends[0][0], rotation @ ends[0][1] @ rotation.T
    assert all(d.norm() < 1e-9 for d in stop_gradient_flow(*rotated, problem))


@with_and_without_ema
def test_one_dimension_ends_at_the_outer_radius(flow: Flow) -> None:
    """Proposition 4.11."""
    problem = one_dimensional()
    inner, outer = equilibrium_radii(problem)
    assert outer.item() == pytest.approx(0.840512483795333, rel=1e-12)
    assert inner.item() == pytest.approx(0.0594875, rel=1e-6)
    encoder = integrate(flow, state_of(flow, *START), problem, [0, 320], step=1)[0][-1]
    assert encoder.norm().item() == pytest.approx(0.840512483795333, rel=1e-11)
    unstable = []
    for radius in (0 * inner, inner, outer):
        encoder = radius * START[0] / START[0].norm()
        state = state_of(flow, encoder, equilibrium_predictor(encoder, problem))
        assert all(d.norm() < 1e-12 for d in flow(*state, problem))
        unstable.append((growth_rates(flow, state, problem) > 1e-10).sum().item())
    assert unstable == [0, 1, 0]


def test_too_much_weight_decay_leaves_the_origin_alone() -> None:
    threshold = 0.9**2 / 4
    below = equilibrium_radii(one_dimensional(weight_decay=threshold - 1e-9))
    assert [radius.item() for radius in below] == pytest.approx([0.45, 0.45], rel=1e-3)
    above = one_dimensional(weight_decay=threshold + 1e-9)
    assert all(radius.isnan() for radius in equilibrium_radii(above))
    assert nearest_equilibrium(START[0], above) == 0


def test_basins_of_random_trials() -> None:
    """The paper's of 10,000 trials, outer/origin: EMA 92.8/7.2 %, SG 82/18 %, never the saddle."""
    generator = torch.Generator().manual_seed(0)
    x, y, decay = torch.rand(3, 600, 1, 1, dtype=torch.float64, generator=generator)
    x, y, decay = 3 * x, 2 * y - 1, 0.01 + 0.09 * decay
    kept = ((y**2 > 4 * x * decay) & (y**2 < 20 * x)).flatten()  # others need smaller steps
    x, y, decay = (part[kept][:200] for part in (x, y, decay))
    problem = Problem(x, y, torch.ones_like(x), decay)
    encoder = torch.randn(len(x), 3, 1, dtype=torch.float64, generator=generator)
    predictor = torch.randn(len(x), 3, 3, dtype=torch.float64, generator=generator)
    for flow, ends in [(stop_gradient_flow, (0.11, 0, 0.87)), (EMA, (0.07, 0, 0.92))]:
        ended = integrate(flow, state_of(flow, encoder, predictor), problem, [0, 150], step=0.1)
        nearest = nearest_equilibrium(ended[0][-1], problem)
        fractions = [(nearest == k).double().mean().item() for k in (0, 1, 2)]
        assert fractions == pytest.approx(ends, abs=0.04)


@pytest.mark.parametrize("target", [grid(3, 2), grid(4, 1)], ids=["rows", "columns"])
def test_shapes_that_do_not_fit_are_named(target: Tensor) -> None:
    with pytest.raises(ValueError, match=r"the target to be \(..., n, 2\) .* got \(4, 2\), \(4, 4"):
        EMA(grid(4, 2), grid(4, 4), target, TWO_DIMENSIONAL)
    with pytest.raises(
        ValueError, match=r"share one shape .* got \[\(2, 2\), \(2, 2\), \(1, 1\)\]"
    ):
        Problem(grid(2, 2), grid(2, 2), grid(1, 1), 0.1)
    with pytest.raises(ValueError, match="dimension m=1, but got m=2"):
        equilibrium_radii(TWO_DIMENSIONAL)


@pytest.mark.parametrize(
    ("times", "step"), [([0, 1, 1], 0.1), ([0, 1], 0.0)], ids=["times", "step"]
)
def test_times_must_increase(times: list[float], step: float) -> None:
    with pytest.raises(ValueError, match="increasing times and a positive step, but got times="):
        integrate(stop_gradient_flow, START, one_dimensional(), times, step)


@pytest.mark.parametrize("module", [linear_dynamics, linear_equilibria])
def test_examples(module: object) -> None:
    failed, attempted = doctest.testmod(module, extraglobs={"torch": torch})
    assert attempted > 0
    assert failed == 0
