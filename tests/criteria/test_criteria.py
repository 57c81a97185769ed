"""What every criterion must pass; a new one is found by itself and needs a reference."""

import importlib
import inspect
import pkgutil
from typing import Any, NamedTuple

import pytest
import torch
from helpers import references
from helpers.criteria_cases import (
    EXPORTED,
    NEED_MORE_SAMPLES,
    VARIANTS,
    WithInputs,
    build,
    make_inputs,
    make_views,
    rearranged,
)
from torch import Tensor

from duality_ssl import criteria
from duality_ssl.criteria import Criterion, SimCLR, SpectralContrastive
from duality_ssl.distributed import SINGLE, Group
from duality_ssl.functional._kernels import dispatch

SHAPES = [
    pytest.param(2, 3, id="minimal"),
    pytest.param(9, 4, id="tall"),
    pytest.param(4, 9, id="wide"),
    pytest.param(5, 5, id="square"),
]
each_variant = pytest.mark.parametrize(("name", "arguments"), VARIANTS)
each_shape = pytest.mark.parametrize(("n", "d"), SHAPES)
in_each_form = pytest.mark.usefixtures("each_form")


@pytest.fixture(params=[2**62, 0], ids=["formula", "kernel"])
def each_form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The formulas and the kernels, whatever the shape."""
    monkeypatch.setattr(dispatch, "SMALLEST", request.param)


def value_and_gradients(
    criterion: Criterion, z1: Tensor, z2: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    z1, z2 = z1.detach().clone().requires_grad_(), z2.detach().clone().requires_grad_()
    loss = criterion(z1, z2)["loss"]
    loss.backward()
    assert z1.grad is not None
    assert z2.grad is not None
    return loss.detach(), z1.grad, z2.grad


def test_every_criterion_is_exported_and_has_a_reference() -> None:
    modules = [
        importlib.import_module(f"{criteria.__name__}.{module.name}")
        for module in pkgutil.iter_modules(criteria.__path__)
    ]
    defined = {
        name
        for module in modules
        for name, value in vars(module).items()
        if inspect.isclass(value) and issubclass(value, Criterion) and not inspect.isabstract(value)
    }
    public = {name for name in defined if not name.startswith("_")}
    assert public == {*EXPORTED, *NEED_MORE_SAMPLES} == set(references.CRITERIA)


def reference_loss(criterion: Any, z1: Any, z2: Any) -> Any:
    """The loop over float64 numbers, with the criterion's own arguments, inputs and state.

    A reference takes by name what it needs; ``drawn`` is what the criterion draws in a step.
    """
    given: dict[str, Any] = {}
    built = criterion
    if isinstance(criterion, WithInputs):
        z = torch.as_tensor(z1).detach()
        built = criterion.built(z)
        given |= make_inputs(built, z)
        given |= built.state_dict()
        if hasattr(built, "draw"):
            given["drawn"] = built.draw(given["step"], z)
    reference = references.CRITERIA[type(built).__name__][0]
    arguments = inspect.signature(type(built)).parameters
    given |= {key: getattr(built, key) for key in arguments if hasattr(built, key)}
    wanted = inspect.signature(reference).parameters
    return reference(z1, z2, **{key: given[key] for key in given if key in wanted})


@each_variant
@each_shape
@in_each_form
def test_matches_float64_reference(name: str, arguments: dict[str, Any], n: int, d: int) -> None:
    criterion = build(name, arguments)
    z1, z2 = make_views(n, d)
    expected = float(reference_loss(criterion, z1.numpy(), z2.numpy()))
    loss = criterion(z1, z2)["loss"]
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(expected, rel=1e-12, abs=1e-12)


@each_variant
@in_each_form
@pytest.mark.parametrize("scale", [1e-2, 1.0, 30.0])
@pytest.mark.parametrize(("n", "d"), [(7, 3), (3, 7)], ids=["tall", "wide"])
def test_gradient_matches_float64_reference(
    name: str, arguments: dict[str, Any], scale: float, n: int, d: int
) -> None:
    criterion = build(name, arguments)
    z1, z2 = (scale * z for z in make_views(n, d))
    _, *gradients = value_and_gradients(criterion, z1, z2)
    views = z1.requires_grad_(), z2.requires_grad_()
    expected = torch.autograd.grad(reference_loss(criterion, *views), views)
    for ours, exact in zip(gradients, expected, strict=True):
        assert (ours - exact).norm() <= 1e-10 * exact.norm()


@pytest.mark.parametrize("name", EXPORTED)
@pytest.mark.parametrize(("n", "d"), [(9, 4), (4, 9)], ids=["tall", "wide"])
def test_float32_matches_float64_reference(name: str, n: int, d: int) -> None:
    z1, z2 = make_views(n, d, dtype=torch.float32)
    expected = value_and_gradients(build(name), z1.double(), z2.double())
    got = value_and_gradients(build(name), z1, z2)
    terms = build(name)(z1.double(), z2.double()).values()
    for ours, exact in zip(got, expected, strict=True):
        assert ours.dtype == torch.float32
        # a loss may be a small difference of terms, whose rounding it has
        scale = max(x.abs().max().item() for x in ([exact] if exact.ndim else terms))
        torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=3e-6 * scale)


BOUNDED = {"CPLearn"}  # its rows are in [-1, 1]


@pytest.mark.parametrize(
    ("name", "scale"),
    [
        (name, scale)
        for name in EXPORTED
        for scale in (1e-4, 1.0, 1e4)
        if scale <= 1 or name not in BOUNDED
    ],
)
@pytest.mark.parametrize(("n", "d"), [(256, 512), (512, 256), (257, 256)], ids=str)
def test_float32_is_accurate_at_size_with_near_duplicates(
    name: str, scale: float, n: int, d: int
) -> None:
    z1, z2 = make_views(n, d)
    z1[1::2] = z1[: n - 1 : 2] + 1e-3 * z1[1::2]
    views = (scale * z1).float(), (scale * z2).float()
    expected = value_and_gradients(build(name), *(z.double() for z in views))
    loss, *gradients = value_and_gradients(build(name), *views)
    assert loss.item() == pytest.approx(expected[0].item(), rel=1e-5)
    for ours, exact in zip(gradients, expected[1:], strict=True):
        # duplicates that are equal in float32 have each other's quantiles in VISReg
        most = 5e-3 if name == "VISReg" else 5e-4
        assert (ours.double() - exact).norm() < most * exact.norm()


each_side = pytest.mark.parametrize(
    ("n", "d"), [(5, 3), (3, 5), (4, 4)], ids=["tall", "wide", "square"]
)
STOPS_GRADIENT = {
    "SwAV",  # the assignments follow the views, and have none
    "VISReg",  # the standard deviations that it divides by have none
}


@pytest.mark.parametrize(
    ("name", "arguments"), [case for case in VARIANTS if case.values[0] not in STOPS_GRADIENT]
)
@each_side
@in_each_form
def test_derivatives_by_finite_differences(
    name: str, arguments: dict[str, Any], n: int, d: int
) -> None:
    criterion = build(name, arguments)
    views = tuple(z.requires_grad_() for z in make_views(n, d))
    assert torch.autograd.gradcheck(lambda *z: tuple(criterion(*z).values()), views)
    assert torch.autograd.gradgradcheck(lambda *z: criterion(*z)["loss"], views)


MOVES_STATE = {"CorInfoMax", "DINO", "SwAV"}  # in training, which is no function of the views alone


@each_variant
@each_side
@in_each_form
def test_transforms_of_torch_func(name: str, arguments: dict[str, Any], n: int, d: int) -> None:
    criterion = build(name, arguments).train(name not in MOVES_STATE)
    z1, z2 = make_views(n, d)
    _, expected, _ = value_and_gradients(criterion, z1, z2)
    gradient = torch.func.grad(lambda *z: criterion(*z)["loss"])(z1, z2)
    torch.testing.assert_close(gradient, expected)
    losses = torch.vmap(criterion)(torch.stack([z1, z2]), torch.stack([z2, 2 * z1]))["loss"]
    expected = torch.stack([criterion(z1, z2)["loss"], criterion(z2, 2 * z1)["loss"]])
    torch.testing.assert_close(losses, expected)


DRAW = {"LeJEPA", "VISReg"}  # NumPy's generator is no part of a graph


@pytest.mark.parametrize("name", EXPORTED)
@in_each_form
@pytest.mark.parametrize("autocast", [False, True], ids=["float64", "within autocast"])
def test_compiles_into_one_graph(name: str, autocast: bool) -> None:
    torch.compiler.reset()
    criterion = build(name)
    whole = name not in DRAW
    compiled = torch.compile(criterion, backend="aot_eager", fullgraph=whole)
    z1, z2 = make_views(4, 6)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        expected, got = (
            criterion(*(z.requires_grad_() for z in (z1, z2)))["loss"]
            for criterion in (criterion, compiled)
        )
    torch.testing.assert_close(got, expected)
    gradients = [torch.autograd.grad(loss, (z1, z2)) for loss in (got, expected)]
    torch.testing.assert_close(*gradients)


NO_COLLAPSE_COST = {
    "DINO",  # teacher, center and sharpening keep it from a collapse
    "MoCoV3",  # spread costs less where the targets are near
    "Regression",  # predictor and stopped gradient keep BYOL and SimSiam from a collapse
    "SupCon",  # spread costs less where the classes are apart: test_contrast.py
}


@pytest.mark.parametrize(
    ("name", "arguments"), [case for case in VARIANTS if case.values[0] not in NO_COLLAPSE_COST]
)
@pytest.mark.parametrize("kind", ["one_point", "one_line"])
def test_collapsed_costs_more_than_spread(name: str, arguments: dict[str, Any], kind: str) -> None:
    n, d = 32, 16
    criterion = build(name, arguments)
    z1, z2 = make_views(n, d, noise=0.05)
    # White: what every criterion calls spread, at whatever weights.
    basis, triangle = torch.linalg.qr(z1 - z1.mean(dim=0))
    white = (n - 1) ** 0.5 * torch.linalg.inv(triangle)
    spread = (n - 1) ** 0.5 * basis, (z2 - z1.mean(dim=0)) @ white
    direction = torch.ones(1, d, dtype=torch.float64)
    collapsed = {
        "one_point": (direction.expand(n, d), direction.expand(n, d)),
        "one_line": (z1[:, :1] * direction, z2[:, :1] * direction),
    }[kind]
    assert criterion(*collapsed)["loss"] > criterion(*spread)["loss"]


@each_variant
@pytest.mark.parametrize(("n", "d"), [(9, 4), (4, 9)], ids=["tall", "wide"])
def test_permuting_samples_changes_nothing(
    name: str, arguments: dict[str, Any], n: int, d: int
) -> None:
    criterion = build(name, arguments)
    z1, z2 = make_views(n, d)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(1))
    loss, grad1, grad2 = value_and_gradients(criterion, z1, z2)
    permuted = value_and_gradients(rearranged(criterion, order), z1[order], z2[order])
    for got, expected in zip(permuted, (loss, grad1[order], grad2[order]), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


@each_variant
def test_swapping_views_changes_nothing(name: str, arguments: dict[str, Any]) -> None:
    criterion = build(name, arguments)
    z1, z2 = make_views(6, 5)
    swapped = rearranged(criterion, swapped=True)
    torch.testing.assert_close(criterion(z1, z2)["loss"], swapped(z2, z1)["loss"])


@each_variant
def test_loss_is_the_weighted_sum_of_scalar_terms(name: str, arguments: dict[str, Any]) -> None:
    criterion = build(name, arguments)
    terms = criterion(*make_views(6, 5))
    assert all(term.ndim == 0 and term.requires_grad is False for term in terms.values())
    weights = {"coding_rate": -1.0}
    if hasattr(criterion, "regularization"):  # its share; the rest is that of the invariance
        share = criterion.regularization
        weights |= dict.fromkeys(terms, share) | {"invariance": 1 - share}
    total = sum(
        (weights.get(term) or getattr(criterion, term, 1.0)) * value
        for term, value in terms.items()
        if term != "loss"
    )
    torch.testing.assert_close(terms["loss"], getattr(criterion, "scale", 1.0) * total)


@each_variant
@pytest.mark.parametrize(
    ("batch", "scale"),
    [
        ("random", 1e-4),
        ("zero_rows", 1e4),
        ("duplicates", 1.0),
        ("all_equal", 1.0),
        ("zeros", 1.0),
    ],
)
@in_each_form
def test_value_and_gradient_are_finite(
    name: str, arguments: dict[str, Any], batch: str, scale: float
) -> None:
    n, d = 6, 16
    z1, z2 = (scale * z for z in make_views(n, d, dtype=torch.float32))
    if batch == "duplicates":
        z1, z2 = z1[torch.arange(n) // 2], z1[torch.arange(n) // 2]
    elif batch == "all_equal":
        z1, z2 = z1[:1].expand(n, d), z1[:1].expand(n, d)
    elif batch == "zero_rows":
        z1 = z1 * (torch.arange(n) % 2)[:, None]
    elif batch == "zeros":
        z1, z2 = torch.zeros(n, d), torch.zeros(n, d)
    loss, grad1, grad2 = value_and_gradients(build(name, arguments), z1, z2)
    assert loss.isfinite()
    # Finite is not enough: a row of zeros divided by an epsilon has a gradient of 1e12, too.
    steepest = 1e6 * max(1 / scale, scale**3)
    assert max(grad1.abs().max(), grad2.abs().max()) < steepest


@each_variant
@in_each_form
@pytest.mark.parametrize("offset", [1.0, 100.0])
def test_equal_rows_are_not_spread_by_rounding(
    name: str, arguments: dict[str, Any], offset: float
) -> None:
    """The mean of equal numbers is not exactly that number: standardising must not amplify it."""
    point = offset * torch.rand(1, 64, generator=torch.Generator().manual_seed(0)) + offset / 3
    z = point.expand(100, 64)
    criterion = build(name, arguments)
    exact = criterion(z.double(), z.double())["loss"].item()
    assert criterion(z, z)["loss"].item() == pytest.approx(exact, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("name", EXPORTED)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    z1, z2 = (300 * z for z in make_views(8, 12, dtype=torch.float32))  # a half Gram would overflow
    z1, z2 = z1.to(dtype), z2.to(dtype)
    expected, grad1, _ = value_and_gradients(build(name), z1.float(), z2.float())
    loss, half_grad1, _ = value_and_gradients(build(name), z1, z2)
    assert loss.dtype == torch.float32
    assert half_grad1.dtype == dtype
    assert torch.equal(loss, expected)
    if grad1.abs().max() < torch.finfo(dtype).max:
        torch.testing.assert_close(half_grad1, grad1.to(dtype))


@pytest.mark.parametrize("name", EXPORTED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@in_each_form
def test_autocast_changes_nothing(name: str, dtype: torch.dtype) -> None:
    z1, z2 = make_views(8, 12, dtype=dtype)
    expected = value_and_gradients(build(name), z1, z2)
    z1, z2 = z1.requires_grad_(), z2.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = build(name)(z1, z2)["loss"]
    loss.backward()
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.equal(loss, expected[0])
    for z, grad in ((z1, expected[1]), (z2, expected[2])):
        assert z.grad is not None
        torch.testing.assert_close(z.grad, grad, rtol=1e-6, atol=1e-6 * grad.abs().max())


@pytest.mark.parametrize("name", EXPORTED)
@pytest.mark.parametrize(
    ("z1", "z2", "message"),
    [
        pytest.param(
            torch.rand(4), torch.rand(4), r"\(N, D\), but got \(4,\) and \(4,\)", id="1-D"
        ),
        pytest.param(torch.rand(4, 3, 2), torch.rand(4, 3, 2), r"got \(4, 3, 2\)", id="3-D"),
        pytest.param(torch.rand(4, 3), torch.rand(5, 3), r"got \(4, 3\) and \(5, 3\)", id="rows"),
        pytest.param(
            torch.rand(4, 3), torch.rand(4, 2), r"got \(4, 3\) and \(4, 2\)", id="columns"
        ),
        pytest.param(torch.rand(1, 3), torch.rand(1, 3), "at least 2 samples.* got N=1", id="N=1"),
        pytest.param(torch.rand(0, 3), torch.rand(0, 3), "at least 2 samples.* got N=0", id="N=0"),
        pytest.param(torch.rand(4, 0), torch.rand(4, 0), "dimension.* got D=0", id="D=0"),
        pytest.param(torch.ones(4, 3).int(), torch.ones(4, 3).int(), "torch.int32", id="integer"),
        pytest.param(torch.ones(4, 3).bool(), torch.ones(4, 3).bool(), "torch.bool", id="boolean"),
        pytest.param(torch.rand(4, 3), torch.rand(4, 3).double(), "torch.float64", id="two dtypes"),
        pytest.param(torch.rand(4, 3).numpy(), torch.rand(4, 3), "ndarray and Tensor", id="array"),
        pytest.param(torch.rand(4, 3), [[0.0] * 3] * 4, "to be tensors, .* and list", id="list"),
    ],
)
def test_bad_views_are_refused(name: str, z1: Any, z2: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(name)(z1, z2)


@pytest.mark.parametrize("name", ["VICRegExp", "VICRegCtr"])
def test_one_dimension_has_no_other(name: str) -> None:
    with pytest.raises(ValueError, match=r"at least 2 dimension.* got D=1"):
        build(name)(torch.rand(4, 1), torch.rand(4, 1))


@pytest.mark.parametrize("name", EXPORTED)
def test_what_is_not_finite_goes_through(name: str) -> None:
    views = make_views(6, 4, dtype=torch.float32)
    views[0][2, 1] = torch.nan
    assert build(name)(*views)["loss"].isnan(), "and no error of a solver"


NUMBERS = [
    pytest.param(name, argument, id=f"{name}-{argument}")
    for name in EXPORTED
    for argument, parameter in inspect.signature(vars(criteria)[name]).parameters.items()
    if parameter.annotation is float
]
WEIGHTS = ("invariance", "variance", "covariance", "redundancy", "compactness")
WEIGHTS += ("regularization", "forgetting")


@pytest.mark.parametrize(("name", "argument"), NUMBERS)
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")], ids=str)
def test_argument_out_of_range_is_refused(name: str, argument: str, value: float) -> None:
    if argument in WEIGHTS and value == 0:
        assert build(name, {argument: value})(*make_views(4, 3))["loss"].isfinite()
        return
    expected = "at least 0" if argument in WEIGHTS else "positive"
    message = f"Expected `{argument}` to be {expected} and finite, but got {value}"
    with pytest.raises(ValueError, match=message):
        build(name, {argument: value})


@pytest.mark.parametrize("name", ["SimCLR", "DCL"])
@pytest.mark.parametrize(
    ("argument", "valid"),
    [
        ("similarity", "'cosine', 'squared', 'absolute'"),
        ("normalization", "'embeddings', 'centered', 'standardized'"),
    ],
)
def test_unknown_name_is_refused_with_the_valid_ones(name: str, argument: str, valid: str) -> None:
    with pytest.raises(ValueError, match=rf"`{argument}` to be one of \[{valid}\], but got 'cos'"):
        build(name, {argument: "cos"})


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("SimCLR", {"temperature": 0.15, "similarity": "cosine", "normalization": "embeddings"}),
        ("DCL", {"temperature": 0.1, "similarity": "cosine", "normalization": "embeddings"}),
        ("NSCL", {"temperature": 0.1, "similarity": "cosine", "normalization": "embeddings"}),
        ("SupCon", {"temperature": 0.1}),
        ("MoCoV3", {"temperature": 1.0}),
        ("SpectralContrastive", {"mu": 1.0}),
        ("VICReg", {"invariance": 25, "variance": 25, "covariance": 1}),
        ("VICRegExp", {"invariance": 25, "variance": 25, "covariance": 2.5, "temperature": 0.1}),
        ("VICRegCtr", {"invariance": 25, "variance": 25, "covariance": 3.75, "temperature": 0.15}),
        ("BarlowTwins", {"redundancy": 0.005, "scale": 1.0}),
        ("TCR", {"invariance": 100, "distortion": 0.2}),
        ("VIbCReg", {"invariance": 25, "variance": 25, "covariance": 200}),
        ("FroSSL", {"invariance": 1}),
        ("MMCR", {"compactness": 0}),
        ("LeJEPA", {"regularization": 0.05, "directions": 1024}),
        ("VISReg", {"regularization": 0.9, "directions": 4096}),
        ("WMSE", {"w_size": None}),
        ("CorInfoMax", {"invariance": 250, "forgetting": 0.01, "epsilon": 1e-8}),
        ("Regression", {"scale": 2.0}),
        ("CPLearn", {"num_codes": 16384, "invariance": 1.0, "temperature": None, "seed": 0}),
        (
            "SwAV",
            {
                **{"num_prototypes": 3000, "temperature": 0.1, "epsilon": 0.05, "iterations": 3},
                **{"queue": 0, "queue_start": 0, "frozen_steps": 313},
            },
        ),
        (
            "DINO",
            {
                **{"temperature": 0.1, "teacher_temperature": 0.04},
                **{"initial_teacher_temperature": 0.04, "teacher_warmup_steps": 0},
                **{"center_momentum": 0.9, "frozen_epochs": 1},
            },
        ),
    ],
)
def test_public_signature(name: str, expected: dict[str, Any]) -> None:
    parameters = inspect.signature(vars(criteria)[name]).parameters
    defaults = {key: parameter.default for key, parameter in parameters.items()}
    assert defaults.pop("dimensions", inspect.Parameter.empty) is inspect.Parameter.empty
    assert defaults == expected


def test_repr_names_the_arguments() -> None:
    expected = "SimCLR(temperature=0.2, similarity='squared', normalization='embeddings')"
    assert repr(SimCLR(0.2, "squared")) == expected


def test_vicreg_has_the_authors_value() -> None:
    """Their code, line by line, at their weights; 25/25/1 elsewhere means other numbers."""
    x, y = make_views(32, 8)
    expected = 25 * torch.nn.functional.mse_loss(x, y)
    x, y = x - x.mean(dim=0), y - y.mean(dim=0)
    std_x, std_y = torch.sqrt(x.var(dim=0) + 0.0001), torch.sqrt(y.var(dim=0) + 0.0001)
    expected += 25 * (torch.relu(1 - std_x).mean() / 2 + torch.relu(1 - std_y).mean() / 2)
    for view in (x, y):
        covariance = view.T @ view / (32 - 1)
        covariance.fill_diagonal_(0)
        expected += covariance.pow(2).sum() / 8
    x, y = make_views(32, 8)
    torch.testing.assert_close(build("VICReg")(x, y)["loss"], expected)


def test_spectral_contrastive_leaves_short_rows_alone() -> None:
    z = torch.tensor([[0.5, 0.0], [0.0, 4.0]], dtype=torch.float64)
    # The second row is shortened to 1: -2 * (0.25 + 1) / 2, and the two are orthogonal.
    assert SpectralContrastive()(z, z)["loss"].item() == pytest.approx(-1.25)


def test_gradient_does_not_reach_a_zero_row() -> None:
    z1, z2 = make_views(5, 4)
    z1[3] = 0
    _, grad1, grad2 = value_and_gradients(SimCLR(), z1, z2)
    assert grad1[3].abs().max() == 0
    assert grad1[0].abs().max() > 0
    assert grad2.isfinite().all()


def test_terms_get_the_group_if_they_take_it() -> None:
    class Whole(Criterion):
        def terms(self, z1: Tensor, z2: Tensor) -> dict[str, Tensor]:
            return {"loss": (z1 * z2).sum()}

    class Shared(Criterion):
        def terms(self, z1: Tensor, z2: Tensor, group: Group = SINGLE) -> dict[str, Tensor]:
            return {"loss": group.sum((z1 * z2).sum()) * group.world_size}

    class TwoProcesses(NamedTuple):
        world_size: int = 2

        def gather(self, z: Tensor) -> Tensor:
            return torch.cat([z, z])

        def sum(self, x: Tensor) -> Tensor:
            return 2 * x

    z1, z2 = make_views(3, 2)
    one = (z1 * z2).sum()
    assert Whole()(z1, z2)["loss"] == Shared()(z1, z2)["loss"] == one
    group: Any = TwoProcesses()
    torch.testing.assert_close(Whole()(z1, z2, group=group)["loss"], 2 * one)
    torch.testing.assert_close(Shared()(z1, z2, group=group)["loss"], 4 * one)
