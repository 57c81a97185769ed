"""The criteria on statistics of the batch: published values, more views, and known mistakes."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.criteria_cases import make_views
from helpers.references import grid
from torch import Tensor

from duality_ssl import functional
from duality_ssl.criteria import MMCR, CorInfoMax, Criterion, FroSSL, LeJEPA, VIbCReg, VISReg


def along(directions: Tensor, criterion: Criterion) -> Criterion:
    """The criterion on given directions."""
    criterion.draw = lambda step, z: directions  # type: ignore[assignment]
    return criterion


TALL = grid(8, 5), grid(8, 5) + grid(8, 5, 2) / 2
WIDE = grid(5, 8), grid(5, 8) + grid(5, 8, 2) / 2
DIRECTIONS = functional.normalize_columns(grid(5, 3))


@pytest.mark.parametrize(
    ("criterion", "views", "term", "expected"),
    [
        pytest.param(VIbCReg(), TALL, "loss", 62.5827485152242, id="VIbCReg"),
        pytest.param(VIbCReg(), WIDE, "loss", 106.636199251394, id="VIbCReg wide"),
        pytest.param(FroSSL(), TALL, "loss", -2.28674468708082, id="FroSSL"),
        pytest.param(FroSSL(), WIDE, "loss", -1.99180191722304, id="FroSSL wide"),
        pytest.param(MMCR(), TALL, "loss", -5.60582425750723, id="MMCR"),
        pytest.param(MMCR(0.01), TALL, "loss", -5.58918146912208, id="MMCR compact"),
        pytest.param(MMCR(), WIDE, "loss", -4.55753675716472, id="MMCR wide"),
        pytest.param(LeJEPA(), TALL, "regularization", 1.59980735755465, id="SIGReg"),
        pytest.param(LeJEPA(), TALL, "invariance", 0.0278666754439082, id="LeJEPA invariance"),
        pytest.param(LeJEPA(), TALL, "loss", 0.106463709549445, id="LeJEPA"),
        pytest.param(VISReg(), TALL, "scale", 0.105484405667402, id="VISReg scale"),
        pytest.param(VISReg(), TALL, "shape", 0.0822435324230161, id="VISReg shape"),
        pytest.param(VISReg(), TALL, "center", 0.057214635867093, id="VISReg center"),
        pytest.param(VISReg(), TALL, "loss", 0.223234984106151, id="VISReg"),
        pytest.param(CorInfoMax(5), TALL, "information", 4.34046786474374, id="log-determinants"),
        pytest.param(CorInfoMax(5), TALL, "loss", 13.2196445426223, id="CorInfoMax"),
    ],
)
def test_published_value(
    criterion: Criterion, views: tuple[Tensor, Tensor], term: str, expected: float
) -> None:
    given = {"step": 0} if criterion.inputs else {}
    if hasattr(criterion, "directions"):
        criterion.directions = 3
        along(DIRECTIONS, criterion)
    value = criterion.eval()(*views, **given)[term].item()  # evaluation: the state stays
    assert value == pytest.approx(expected, rel=1e-12)


# --------------------------------------------------------------------------------------------------
# More than two views


def three_views() -> list[Tensor]:
    z1, z2 = make_views(7, 4)
    return [z1, z2, z1 + grid(7, 4)]


def mmcr(*views: Tensor) -> Tensor:
    units = torch.stack([z / z.norm(dim=1, keepdim=True) for z in views], dim=1)
    local = torch.linalg.svdvals(units).sum(dim=1).mean()
    return 2 * local - torch.linalg.svdvals(units.mean(dim=1)).sum()


def frossl(*views: Tensor) -> Tensor:
    y = torch.stack([z / z.norm(dim=0) for z in views])
    v, n, _ = y.shape
    norms = [2 * ((z.T @ z).norm() / (z.T @ z).trace()).log() for z in y]
    return sum(norms) + v / n * (y - y.mean(dim=0)).square().sum()


def sliced(criterion: Criterion) -> Callable[..., Tensor]:
    """The mean of the pairs' regularizations, and the variance over all views."""

    def loss(*views: Tensor) -> Tensor:
        z = torch.stack(views)
        pairs = [criterion(a, b, step=0) for a, b in zip(views, views[1:] + views[:1], strict=True)]
        terms = {name for name in pairs[0] if name not in ("loss", "invariance")}
        total = sum(pair[name] for pair in pairs for name in terms) / len(pairs)
        share = criterion.regularization
        return (1 - share) * (z - z.mean(dim=0)).square().mean() + share * total

    return loss


@pytest.mark.parametrize(
    ("criterion", "reference"),
    [
        (MMCR(2.0), mmcr),
        (FroSSL(), frossl),
        (LeJEPA(directions=4), sliced(LeJEPA(directions=4))),
        (VISReg(directions=4), sliced(VISReg(directions=4))),
    ],
    ids=lambda value: type(value).__name__,
)
def test_three_views(criterion: Criterion, reference: Callable[..., Tensor]) -> None:
    views = three_views()
    given = {"step": 0} if criterion.inputs else {}
    loss = criterion(*views, **given)["loss"]
    torch.testing.assert_close(loss, reference(*views), rtol=1e-12, atol=1e-12)


# --------------------------------------------------------------------------------------------------
# What is drawn


@pytest.mark.parametrize("cls", [LeJEPA, VISReg])
def test_directions_depend_on_the_step_alone(cls: type[LeJEPA | VISReg]) -> None:
    z = torch.zeros(3, 5)
    first = cls(directions=4).draw(7, z)
    torch.manual_seed(1)
    assert torch.equal(first, cls(directions=4).draw(7, z[:1] + 1))
    assert torch.equal(first, cls(directions=4).draw(7, z.double()).float())
    assert not torch.equal(first, cls(directions=4).draw(8, z))
    torch.testing.assert_close(first.norm(dim=0), torch.ones(4))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"regularization": 1.5}, "`regularization` to be at most 1, got 1.5"),
        ({"directions": 0}, "at least 1 of `directions`, but got 0"),
    ],
    ids=["weight", "directions"],
)
@pytest.mark.parametrize("cls", [LeJEPA, VISReg])
def test_bad_arguments_of_the_sliced_are_refused(
    cls: Any, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        cls(**arguments)


# --------------------------------------------------------------------------------------------------
# MMCR


@pytest.mark.parametrize(("n", "d"), [(9, 4), (4, 9)], ids=["tall", "wide"])
def test_mmcr_is_bounded_because_its_rows_have_unit_norm(n: int, d: int) -> None:
    """Without, as in lightly, longer rows alone lower the loss without end."""
    z1, z2 = make_views(n, d)
    loss = MMCR()(z1, z2)["loss"]
    torch.testing.assert_close(MMCR()(100 * z1, z2 / 100)["loss"], loss)
    assert loss >= -math.sqrt(n * min(n, d))
    best = torch.eye(n, d) if n < d else torch.eye(d).repeat(2, 1)
    bound = -math.sqrt(len(best) * min(n, d))
    assert MMCR()(best, 3 * best)["loss"].item() == pytest.approx(bound, rel=1e-6)


def test_nuclear_norm_has_no_gradient_of_singular_values_that_are_rounding() -> None:
    """A matrix of rank 1 in float64 has eigenvalues of 1e-16, whose roots are 1e-8."""
    a, b = torch.linspace(1, 2, 9).double(), torch.linspace(-1, 3, 5).double()
    z = torch.outer(a, b).requires_grad_()
    value = functional.nuclear_norm(z)
    assert value.item() == pytest.approx((a.norm() * b.norm()).item(), rel=1e-14)
    (gradient,) = torch.autograd.grad(value, z)
    expected = torch.outer(a / a.norm(), b / b.norm())
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-12)


# --------------------------------------------------------------------------------------------------
# CorInfoMax


def test_corinfomax_remembers() -> None:
    criterion = CorInfoMax(5)
    first = criterion(*TALL)
    second = criterion(*TALL)["information"].item()
    assert first["information"].item() == pytest.approx(4.34046786474374, rel=1e-12)
    assert second == pytest.approx(4.81940101019374, rel=1e-12)


def test_corinfomax_is_resumed_with_what_it_remembers() -> None:
    """In the authors' code R is no buffer, and lost when a run is resumed."""
    whole, interrupted, resumed = CorInfoMax(5), CorInfoMax(5), CorInfoMax(5)
    for criterion in (whole, interrupted):
        criterion(*TALL)
    resumed.load_state_dict(interrupted.state_dict())
    assert torch.equal(resumed(*TALL)["loss"], whole(*TALL)["loss"])
    assert {value.dtype for value in resumed.state_dict().values()} == {torch.float64}


def test_evaluation_does_not_move_the_state() -> None:
    criterion = CorInfoMax(5).eval()
    assert torch.equal(criterion(*TALL)["loss"], criterion(*TALL)["loss"])
    assert torch.equal(criterion.means, torch.zeros(2, 5, dtype=torch.float64))


@pytest.mark.parametrize(("n", "d"), [(9, 4), (4, 9)], ids=["tall", "wide"])
def test_corinfomax_that_remembers_nothing_is_a_coding_rate(n: int, d: int) -> None:
    criterion, views, epsilon = CorInfoMax(d, forgetting=0, epsilon=0.3), make_views(n, d), 0.3
    assert not criterion.state_dict()
    rates = [
        functional.coding_rate(functional.centered(functional.normalize_rows(z)), d * epsilon)
        for z in views
    ]
    expected = -2 * sum(rates) / d - 2 * math.log(epsilon)
    torch.testing.assert_close(criterion(*views)["information"], expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"forgetting": 1.0}, "`forgetting` to be less than 1, but got 1.0"),
        ({"dimensions": 4}, r"D=4, but got embeddings \(8, 5\)"),
    ],
    ids=["forgetting", "dimensions"],
)
def test_bad_arguments_of_corinfomax_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CorInfoMax(**{"dimensions": 5, **arguments})(*TALL)
