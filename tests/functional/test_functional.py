"""The maths: against loops, by finite differences, and its accuracy in float32."""

import doctest
import importlib
import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import references
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from duality_ssl import criteria, functional
from duality_ssl.distributed import SINGLE, Group
from duality_ssl.functional._kernels import dispatch, logsumexp
from duality_ssl.functional.logsumexp import Similarity

SHAPES = [
    pytest.param(2, 2, id="minimal"),
    pytest.param(1, 4, id="one sample"),
    pytest.param(4, 1, id="one dimension"),
    pytest.param(11, 4, id="tall"),
    pytest.param(4, 11, id="wide"),
    pytest.param(6, 6, id="square"),
]
each_shape = pytest.mark.parametrize(("n", "d"), SHAPES)
EPS = torch.finfo(torch.float32).eps
FORMULA, KERNELS = 2**62, 0  # the smallest matrix that a kernel takes


@pytest.fixture(params=[FORMULA, KERNELS], ids=["formula", "kernel"])
def each_form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The formula and the kernel, whatever the shape."""
    monkeypatch.setattr(dispatch, "SMALLEST", request.param)


in_each_form = pytest.mark.usefixtures("each_form")


def signature(name: str) -> inspect.Signature:
    return inspect.signature(getattr(functional, name))


def random(n: int, d: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, dtype=torch.float64, generator=generator).to(dtype)


@each_shape
@in_each_form
def test_criteria_match_their_definition(n: int, d: int) -> None:
    z = random(n, d)
    for name in ("sample_contrastive", "dimension_contrastive"):
        value = getattr(functional, name)(z).item()
        expected = getattr(references, name)(z.numpy())
        assert value == pytest.approx(expected, rel=1e-12, abs=1e-12), name


@each_shape
def test_fourth_norms_match_their_definition(n: int, d: int) -> None:
    z = random(n, d)
    rows, columns = functional.fourth_norms(z)
    assert rows.item() == pytest.approx(references.row_fourth_norms(z.numpy()), rel=1e-12)
    assert columns.item() == pytest.approx(references.column_fourth_norms(z.numpy()), rel=1e-12)
    assert functional.norm_regularizer(z) == rows - columns


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("similarity", ["cosine", "squared", "absolute"])
@in_each_form
def test_logsumexp_of_others(views: int, similarity: Similarity) -> None:
    x = random(6, 4)
    value = {"cosine": float, "squared": lambda p: p**2, "absolute": abs}[similarity]
    lse = functional.logsumexp_of_others(x, 0.3, similarity, views)
    for i in range(6):
        others = [value((x[i] @ x[j]).item()) for j in range(6) if j // views != i // views]
        expected = references.logsumexp([other / 0.3 for other in others])
        assert lse[i].item() == pytest.approx(expected, rel=1e-12)


@in_each_form
def test_logsumexp_of_large_products_is_finite() -> None:
    x = (1e4 * random(4, 4, dtype=torch.float32)).requires_grad_()
    lse = functional.logsumexp_of_others(x)
    (gradient,) = torch.autograd.grad(lse.sum(), x)
    assert lse.isfinite().all()
    assert gradient.isfinite().all()


@each_shape
@in_each_form
@pytest.mark.parametrize("distortion", [0.2, 1.0])
def test_coding_rate(n: int, d: int, distortion: float) -> None:
    z = random(n, d)
    expected = references.coding_rate(z.numpy(), distortion)
    assert functional.coding_rate(z, distortion).item() == pytest.approx(expected, rel=1e-12)


@each_shape
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_rankme(n: int, d: int, scale: float) -> None:
    z = scale * random(n, d)
    expected = references.rankme(z.numpy())
    for dtype in (torch.float64, torch.float32):
        got = functional.rankme(z.to(dtype))
        assert got.item() == pytest.approx(expected, rel=1e-5), dtype


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_rankme_of_equal_singular_values_is_the_rank(rank: int) -> None:
    basis = torch.linalg.qr(random(20, rank))[0]
    z = (basis @ torch.linalg.qr(random(7, rank))[0].T).float()
    assert functional.rankme(z).item() == pytest.approx(rank, rel=1e-4)


def test_rankme_of_degenerate_batches() -> None:
    assert functional.rankme(torch.zeros(5, 3)).item() == pytest.approx(1, abs=1e-4)
    assert functional.rankme(torch.full((5, 3), math.nan)).isnan()


class _OnMPS(Tensor):
    """A tensor of a device without float64, as far as ``rankme`` can tell."""

    device = torch.device("mps")

    def cpu(self) -> Tensor:  # type: ignore[override]
        return self.as_subclass(Tensor)

    def double(self) -> Tensor:
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype")


def test_rankme_of_a_device_without_float64() -> None:
    z = random(9, 4, dtype=torch.float32)
    assert functional.rankme(z.as_subclass(_OnMPS)) == functional.rankme(z)


@pytest.mark.parametrize(
    ("n", "d"), [(9, 4), (4, 9), (5, 5), (2, 70), (70, 2)], ids=lambda size: str(size)
)
@in_each_form
def test_covariances(n: int, d: int) -> None:
    z = 3 + random(n, d)
    variance = references.variances(z.numpy())
    assert functional.variance(z).tolist() == pytest.approx(variance, rel=1e-11)
    hinge = functional.variance_hinge(z).item()
    assert hinge == pytest.approx(references.variance_hinge(z.numpy()), rel=1e-11)
    squared = functional.squared_covariance(z).item()
    expected = references.squared_covariance(z.numpy())
    assert squared == pytest.approx(expected, rel=1e-11, abs=1e-14)
    lse = functional.covariance_logsumexp(z, 0.3).item()
    expected = references.covariance_logsumexp(z.numpy(), 0.3)
    assert lse == pytest.approx(expected, rel=1e-11, abs=1e-14)


@pytest.mark.parametrize(("n", "d"), [(9, 4), (4, 9), (2, 70)], ids=lambda size: str(size))
@in_each_form
def test_sample_logsumexp(n: int, d: int) -> None:
    z = 3 + random(n, d)
    products = (z @ z.T / ((d - 1) * 0.3)).tolist()
    others = [[products[i][j] for j in range(n) if j != i] for i in range(n)]
    expected = sum(references.logsumexp(row) for row in others) / n
    assert functional.sample_logsumexp(z, 0.3).item() == pytest.approx(expected, rel=1e-11)


@in_each_form
@pytest.mark.parametrize(
    ("function", "normalization"),
    [
        (functional.normalize_rows, "embeddings"),
        (lambda z, length: functional.normalize_columns(z.T, length).T, "embeddings"),
        (functional.normalize_centered_rows, "centered"),
        (functional.standardize_columns, "standardized"),
    ],
    ids=["rows", "columns", "centered", "standardized"],
)
def test_normalizations(function: Callable[..., Tensor], normalization: str) -> None:
    z = 2 + random(7, 4)
    length = (7 / 4) ** 0.5 if normalization == "standardized" else 1.0
    expected = torch.from_numpy(references.normalized(z.numpy(), normalization))
    torch.testing.assert_close(function(z, length), expected)
    torch.testing.assert_close(function(z, 3 * length), 3 * expected)
    assert torch.autograd.gradcheck(function, (z.requires_grad_(), 0.7))


@pytest.mark.parametrize("offset", [1e-4, 1.0, 1e4])
@in_each_form
def test_constant_columns_and_mean_rows_become_zero(offset: float) -> None:
    """What rounding leaves of a constant must not be blown up to unit norm."""
    constant = offset * torch.rand(1, 300, generator=torch.Generator().manual_seed(0))
    z = constant.repeat(1000, 1).requires_grad_()
    for function in (functional.standardize_columns, functional.normalize_centered_rows):
        result = function(z)
        assert result.abs().max() == 0
        (gradient,) = torch.autograd.grad(result.sum(), z)
        assert gradient.abs().max() == 0


@in_each_form
def test_small_spread_about_a_large_mean_is_kept() -> None:
    z = (1 + 1e-4 * random(64, 8)).float()
    norms = functional.standardize_columns(z).norm(dim=0)
    torch.testing.assert_close(norms, torch.ones(8))


def test_project_to_ball_shortens_only_longer_rows() -> None:
    z = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]], requires_grad=True)
    projected = functional.project_to_ball(z, 2.0)
    torch.testing.assert_close(projected, torch.tensor([[1.2, 1.6], [0.3, 0.4], [0.0, 0.0]]))
    (gradient,) = torch.autograd.grad(projected.sum(), z)
    torch.testing.assert_close(gradient[1:], torch.ones(2, 2))


class _LargestProduct(TorchDispatchMode):
    """Remember the largest matrix that a product made."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN204
        result = func(*args, **(kwargs or {}))
        if "mm" in str(func) and isinstance(result, Tensor):
            self.largest = max(self.largest, result.numel())
        return result


@pytest.mark.parametrize(("n", "d"), [(5, 200), (200, 5)], ids=["wide", "tall"])
@in_each_form
@pytest.mark.parametrize(
    "name",
    [
        "sample_contrastive",
        "dimension_contrastive",
        "squared_covariance",
        "coding_rate",
        "matrix_entropy",
        "nuclear_norm",
        "squared_correlation",
        "rankme",
        "cross_gram",
        "cross_correlation",
        "linear_cka",
        "rsa",
    ],
)
def test_no_product_is_larger_than_the_smaller_side(name: str, n: int, d: int) -> None:
    z = random(n, d).requires_grad_()
    with _LargestProduct() as products:
        if name in ("linear_cka", "rsa"):
            result = getattr(functional, name)(z, z.detach().flip(0))
        elif name.startswith("cross"):
            result = getattr(functional, name)(z, z.detach())[1]
        else:
            arguments = (0.2,) if name == "coding_rate" else ()
            result = getattr(functional, name)(z, *arguments)
        if name != "rankme":
            result.backward()
    # The gradient itself has n * d = 1000 entries, the wrong side would have 40,000.
    assert products.largest <= n * d


def exact_sums(z: Tensor) -> tuple[float, float, float]:
    z = z.double()
    rows, columns = functional.fourth_norms(z)
    gram = z @ z.T
    sample = (gram - gram.diagonal().diag()).square().sum()
    return sample.item(), (sample + rows - columns).item(), (rows + columns).item()


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize(
    ("n", "d"),
    [(256, 64), (64, 256), (128, 128), (129, 128), (128, 129), (512, 500)],
    ids=["tall", "wide", "square", "one more sample", "one more dimension", "near"],
)
@pytest.mark.parametrize("rows", ["unit rows", "unit columns", "random"])
def test_float32_accuracy_is_what_the_module_says(scale: float, n: int, d: int, rows: str) -> None:
    z = random(n, d, dtype=torch.float32)
    if rows != "random":
        z = functional.normalize_rows(z) if rows == "unit rows" else z / z.norm(dim=0)
    z = scale * z
    sample, dimension, fourth_norms = exact_sums(z)
    for ours, exact in (
        (functional.sample_contrastive(z).item(), sample),
        (functional.dimension_contrastive(z).item(), dimension),
    ):
        assert ours == pytest.approx(exact, rel=1e-5, abs=4 * EPS * fourth_norms)
        assert ours == pytest.approx(exact, rel=1e-4)  # and so nothing worth a warning is lost


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("correlation", [1e-1, 1e-2, 1e-3])
@pytest.mark.parametrize("wide", [False, True], ids=["dimensions", "samples"])
def test_float32_accuracy_near_the_optimum(scale: float, correlation: float, wide: bool) -> None:
    """Nearly orthogonal vectors on the side that is computed: no digit may go with the diagonal.

    A form that subtracts the diagonal from the whole loses all digits at a correlation of 1e-4.
    """
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(300, 40, dtype=torch.float64, generator=generator))[0]
    noise = torch.randn(300, 40, dtype=torch.float64, generator=generator) / 300**0.5
    z = (scale * (basis + correlation * noise)).float()
    gram = z.double().T @ z.double()
    exact = (gram - gram.diagonal().diag()).square().sum().item()
    z = z.T if wide else z
    z = z.requires_grad_()
    ours = functional.sample_contrastive(z) if wide else functional.dimension_contrastive(z)
    assert ours.item() == pytest.approx(exact, rel=1e-3)
    (gradient,) = torch.autograd.grad(ours, z)
    double = z.detach().double().requires_grad_()
    again = (functional.sample_contrastive if wide else functional.dimension_contrastive)(double)
    (expected,) = torch.autograd.grad(again, double)
    error = (gradient.double() - expected).norm() / expected.norm()
    assert error < 1e-3


@pytest.mark.parametrize("wide", [False, True], ids=["tall", "wide"])
def test_float32_gradient_on_the_far_side(wide: bool) -> None:
    z = random(96, 128, dtype=torch.float32)
    function = functional.dimension_contrastive if wide else functional.sample_contrastive
    z = (z if wide else z.T.contiguous()).requires_grad_()
    (gradient,) = torch.autograd.grad(function(z), z)
    double = z.detach().double().requires_grad_()
    gram = double.T @ double if wide else double @ double.T
    (expected,) = torch.autograd.grad((gram - gram.diagonal().diag()).square().sum(), double)
    assert (gradient.double() - expected).norm() / expected.norm() < 1e-5


@pytest.mark.parametrize("wide", [True, False], ids=["dimensions", "samples"])
def test_float32_accuracy_of_the_far_side_at_its_optimum(wide: bool) -> None:
    """The regular simplex, 65 unit vectors in 64 dimensions, meets Welch's bound."""
    centering = torch.eye(65, dtype=torch.float64) - 1 / 65
    frame = torch.linalg.eigh(centering)[1][:, 1:].T  # orthonormal, and orthogonal to the ones
    frame = (frame / frame.norm(dim=0)).float()
    exact = exact_sums(frame)[1]
    assert exact == pytest.approx(65**2 / 64 - 65, rel=1e-4)
    contrastive = functional.dimension_contrastive if wide else functional.sample_contrastive
    ours = contrastive(frame if wide else frame.T)
    assert ours.item() == pytest.approx(exact, rel=64 * EPS)


@pytest.mark.parametrize(
    ("ratio", "value_error", "gradient_error"),
    [(1e2, 1e-3, 1e-4), (1e3, 1e-1, 1e-3)],
    ids=["100", "1000"],
)
def test_one_long_column_loses_the_digits_that_the_module_says(
    ratio: float, value_error: float, gradient_error: float
) -> None:
    z = random(64, 256, dtype=torch.float32)
    z[:, 0] *= ratio
    z.requires_grad_()
    ours = functional.dimension_contrastive(z)
    (gradient,) = torch.autograd.grad(ours, z)
    double = z.detach().double().requires_grad_()
    gram = double.T @ double
    exact = (gram - gram.diagonal().diag()).square().sum()
    (expected,) = torch.autograd.grad(exact, double)
    assert ours.item() == pytest.approx(exact.item(), rel=value_error)
    assert (gradient.double() - expected).norm() / expected.norm() < gradient_error


def test_coding_rate_is_nan_where_the_factorisation_fails() -> None:
    z = torch.ones(4, 8)
    z[0, 0] = torch.nan  # what rounding does to 1 beside 1e12 depends on the machine
    z.requires_grad_()
    rate = functional.coding_rate(z, 0.2)
    (gradient,) = torch.autograd.grad(rate, z)
    assert rate.isnan()
    assert gradient.isnan().any()


SAMPLE_ARGUMENTS: dict[Any, Any] = {
    **{int: 1, float: 0.5, Similarity: "squared", Group: SINGLE},
    Tensor | None: None,
}
CONSTANT = {"labels", "keys"}  # tensors without gradient
# Every public function that takes a tensor.
OF_TENSORS = [
    name
    for name in functional.__all__
    if any(p.annotation is Tensor for p in signature(name).parameters.values())
]


def sample_arguments(
    name: str, dtype: torch.dtype = torch.float64, n: int = 6, d: int = 6
) -> dict[str, Any]:
    given = {
        parameter.name: random(n, d, seed, dtype).view(-1, *((2, 3) if name == "lidar" else (d,)))
        if parameter.annotation is Tensor
        else SAMPLE_ARGUMENTS[parameter.annotation]
        for seed, parameter in enumerate(signature(name).parameters.values())
    }
    if isinstance(given.get("labels"), Tensor):
        given["labels"] = torch.arange(n) // 2
    return given


# Names of those that compute in float64 whatever they get; the others keep the precision.
DOUBLE = {"alpha_req", "lidar", "linear_cka", "rankme", "rsa", "singular_values"}
DOUBLE |= {"supervision_gap_bound"}


def as_tuple(result: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else result


def test_every_public_name_is_listed() -> None:
    public = {
        name
        for name, value in vars(functional).items()
        if inspect.isfunction(value) and not name.startswith("_")
    }
    assert public == set(functional.__all__)
    assert {"sample_contrastive", "cross_gram", "rankme"} < set(OF_TENSORS)


@pytest.mark.parametrize("name", OF_TENSORS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("by_keyword", [False, True], ids=["by position", "by keyword"])
def test_functions_leave_autocast(
    name: str, dtype: torch.dtype, by_keyword: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "SMALLEST", KERNELS)
    function, arguments = getattr(functional, name), sample_arguments(name, dtype)
    full = torch.float64 if dtype == torch.float64 else torch.float32
    in_full = {
        k: v.to(full) if isinstance(v, Tensor) and v.is_floating_point() else v
        for k, v in arguments.items()
    }
    expected = as_tuple(function(**in_full))
    with torch.autocast("cpu", torch.bfloat16):
        got = as_tuple(function(**arguments) if by_keyword else function(*arguments.values()))
    for ours, exact in zip(got, expected, strict=True):
        if ours.is_floating_point():
            assert ours.dtype == (torch.float64 if name in DOUBLE else full)
        assert torch.equal(ours, exact)


NO_GRADIENT = {"alpha_req", "lidar", "rankme", "singular_values", "sinkhorn"}
BOUNDS = {"sample_contrastive_bounds", "dimension_contrastive_bounds", "supervision_gap_bound"}
MORE_SAMPLES = {"whiten"}  # more than dimensions; tests/criteria/test_whitening.py has it
EXEMPT = NO_GRADIENT | BOUNDS | MORE_SAMPLES
DIFFERENTIABLE = [name for name in OF_TENSORS if name not in EXEMPT]
each_differentiable = pytest.mark.parametrize("name", DIFFERENTIABLE)
each_side = pytest.mark.parametrize(
    ("n", "d"), [(5, 3), (3, 5), (4, 4)], ids=["tall", "wide", "square"]
)


def weighted_sum(results: Tensor | tuple[Tensor, ...]) -> Tensor:
    """One number that every entry counts in."""
    return sum(
        (torch.linspace(0.5, 1.5, max(1, x.numel())).to(x).view(x.shape) * x).sum()
        for x in as_tuple(results)
    )


def scalar_function(name: str, n: int, d: int) -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
    """One number from all that a function returns, and its tensors."""
    arguments = sample_arguments(name, n=n, d=d)
    tensors = {
        key: value
        for key, value in arguments.items()
        if isinstance(value, Tensor) and key not in CONSTANT
    }

    def function(*z: Tensor) -> Tensor:
        given = dict(zip(tensors, z, strict=True))
        return weighted_sum(getattr(functional, name)(**arguments | given))

    return function, tuple(tensors.values())


@each_differentiable
@each_side
@in_each_form
def test_derivatives_by_finite_differences(name: str, n: int, d: int) -> None:
    function, tensors = scalar_function(name, n, d)
    inputs = tuple(z.requires_grad_() for z in tensors)
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


@each_differentiable
@each_side
def test_transforms_of_torch_func(
    name: str, n: int, d: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "SMALLEST", KERNELS)
    function, tensors = scalar_function(name, n, d)
    inputs = tuple(z.clone().requires_grad_() for z in tensors)
    (expected,) = torch.autograd.grad(function(*inputs), inputs[0])
    torch.testing.assert_close(torch.func.grad(function)(*tensors), expected)
    stacked = [torch.stack([z, 2 * z]) for z in tensors]
    expected = torch.stack([function(*tensors), function(*(2 * z for z in tensors))])
    torch.testing.assert_close(torch.vmap(function)(*stacked), expected)


def dense_logits(h1: Tensor, h2: Tensor, similarity: str) -> tuple[Tensor, Tensor]:
    """The definition, on the whole matrix of both views."""
    h = torch.cat([h1, h2])
    value = {"cosine": lambda p: p, "squared": torch.square, "absolute": torch.abs}[similarity]
    logits, n = value(h @ h.T) / 0.3, len(h1)
    same = torch.arange(2 * n) % n
    negatives = logits.masked_fill(same[:, None] == same, -torch.inf).logsumexp(dim=1)
    return logits.diagonal(n), negatives.view(2, n).T


@pytest.mark.parametrize("kept", [0, 2**24], ids=["computed anew", "kept"])
@pytest.mark.parametrize("similarity", ["cosine", "squared", "absolute"])
@pytest.mark.parametrize("n", [2, 256, 257, 550], ids=lambda n: f"N={n}")
def test_tiles_are_the_whole_matrix(
    n: int, similarity: Similarity, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "SMALLEST", KERNELS)
    monkeypatch.setattr(logsumexp, "_KEPT", kept)
    views = tuple(random(n, 3, seed).requires_grad_() for seed in range(2))
    ours = weighted_sum(functional.contrast_logits(*views, 0.3, similarity))
    whole = weighted_sum(dense_logits(*views, similarity))
    torch.testing.assert_close(ours, whole)
    for got, expected in zip(
        torch.autograd.grad(ours, views), torch.autograd.grad(whole, views), strict=True
    ):
        torch.testing.assert_close(got, expected)


def spread_labels(n: int) -> Tensor:
    """Classes of different sizes, in no order, and one of one sample."""
    labels = torch.arange(n) * 7 % 5
    labels[0] = 10**6
    return labels


@pytest.mark.parametrize("kept", [0, 2**24], ids=["computed anew", "kept"])
@pytest.mark.parametrize("similarity", ["cosine", "squared"])
@pytest.mark.parametrize("n", [2, 257, 550], ids=lambda n: f"N={n}")
def test_tiles_with_labels_are_the_formula(
    n: int, similarity: Similarity, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logsumexp, "_KEPT", kept)
    views = tuple(random(n, 3, seed).requires_grad_() for seed in range(2))
    results = []
    for smallest in (FORMULA, KERNELS):
        monkeypatch.setattr(dispatch, "SMALLEST", smallest)
        logits = functional.contrast_logits(*views, 0.3, similarity, labels=spread_labels(n))
        total = weighted_sum(logits)
        results.append((total, *torch.autograd.grad(total, views)))
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.parametrize("kept", [0, 2**24], ids=["computed anew", "kept"])
@pytest.mark.parametrize(("n", "keys"), [(2, 3), (300, 1100), (1100, 300)], ids=str)
def test_tiles_of_keys_are_the_formula(
    n: int, keys: int, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logsumexp, "_KEPT", kept)
    queries, others = random(n, 3).requires_grad_(), random(keys, 3, seed=1)
    results = []
    for smallest in (FORMULA, KERNELS):
        monkeypatch.setattr(dispatch, "SMALLEST", smallest)
        total = weighted_sum(functional.logsumexp_of_keys(queries, others, 0.3))
        results.append((total, *torch.autograd.grad(total, queries)))
    torch.testing.assert_close(results[1], results[0])


def test_class_sums_and_logits() -> None:
    x, labels = random(9, 3), torch.tensor([5, 0, 5, 5, 2, 0, 9, 2, 5])
    sums, sizes = functional.class_sums(x, labels)
    for i in range(9):
        alike = [j for j in range(9) if labels[j] == labels[i]]
        torch.testing.assert_close(sums[i], x[alike].sum(dim=0))
        assert sizes[i] == len(alike)
    z1, z2 = functional.normalize_rows(x), functional.normalize_rows(random(9, 3, seed=1))
    positives, others = functional.class_logits(z1, z2, labels, 0.3)
    both, classes = torch.stack([z1, z2], dim=1).flatten(0, 1), labels.repeat_interleave(2)
    logits, itself = both @ both.T / 0.3, torch.eye(18).bool()
    alike = (classes[:, None] == classes) & ~itself
    torch.testing.assert_close(positives.flatten(), (logits * alike).sum(dim=1) / alike.sum(dim=1))
    expected = logits.masked_fill(itself, -torch.inf).logsumexp(dim=1)
    torch.testing.assert_close(others.flatten(), expected)


@pytest.mark.parametrize("layout", ["rows", "columns"])
@pytest.mark.parametrize("n", [3, 7, 1024], ids=lambda n: f"N={n}")
@pytest.mark.parametrize("name", ["squared_covariance", "variance", "standardize_columns"])
def test_pieces_do_not_show(
    name: str, n: int, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However the embeddings are cut or lie in memory, value and gradient stay."""
    z = random(n, 40)
    if layout == "columns":
        z = z.T.contiguous().T
    results = []
    for smallest, cached in ((FORMULA, 1), (KERNELS, 1), (KERNELS, 100), (KERNELS, 2**30)):
        monkeypatch.setattr(dispatch, "SMALLEST", smallest)
        monkeypatch.setattr(dispatch, "_CACHED", cached)
        x = z.clone().requires_grad_()
        loss = weighted_sum(getattr(functional, name)(x))
        results.append((loss, *torch.autograd.grad(loss, x)))
    for result in results[1:]:
        torch.testing.assert_close(result, results[0])


def test_small_matrices_take_the_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    z = random(4, 9).requires_grad_()
    assert "Kernel" not in type(functional.sample_gram(z).grad_fn).__name__
    monkeypatch.setattr(dispatch, "SMALLEST", 36)
    assert "Kernel" in type(functional.sample_gram(z).grad_fn).__name__


@pytest.mark.parametrize("smallest", [FORMULA, KERNELS], ids=["formula", "kernel"])
def test_a_missing_argument_is_named(smallest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "SMALLEST", smallest)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'temperature'"):
        functional.covariance_logsumexp(random(3, 3))


@pytest.mark.parametrize(
    "module",
    [
        "duality_ssl.distributed",
        *sorted({getattr(criteria, name).__module__ for name in criteria.__all__}),
        *sorted({getattr(functional, name).__module__ for name in functional.__all__}),
    ],
)
def test_examples(module: str) -> None:
    failed, attempted = doctest.testmod(
        importlib.import_module(module), extraglobs={"torch": torch}
    )
    assert attempted > 0
    assert failed == 0


@pytest.mark.parametrize("n", [4, 300], ids=["formula", "kernel"])
def test_unknown_arguments_are_refused(n: int) -> None:
    with pytest.raises(TypeError):
        functional.variance(torch.ones(n, 300), gruop=SINGLE)
