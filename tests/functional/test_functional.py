"""The maths: against loops, by finite differences, and its accuracy in float32."""

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from duality_ssl.functional.terms import Normalization, Similarity
from helpers import references
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from duality_ssl import functional
from duality_ssl.distributed import ALONE, Processes
from duality_ssl.functional import _logsumexp, _products

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


def signature(name: str) -> inspect.Signature:
    return inspect.signature(getattr(functional, name))


def random(n: int, d: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, dtype=torch.float64, generator=generator).to(dtype)


@each_shape
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


@each_shape
def test_grams_return_the_squared_norms_too(n: int, d: int) -> None:
    z = random(n, d)
    torch.testing.assert_close(_products.sample_gram(z)[1], z.square().sum(dim=1))
    torch.testing.assert_close(_products.dimension_gram(z)[1], z.square().sum(dim=0))


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_offdiagonal_logsumexp(temperature: float) -> None:
    s = random(5, 5)
    before = s.clone()
    values = functional.offdiagonal_logsumexp(s, temperature)
    for i, value in enumerate(values.tolist()):
        others = [s[i, j].item() / temperature for j in range(5) if j != i]
        assert value == pytest.approx(references.logsumexp(others), rel=1e-12)
    assert torch.equal(s, before)


def test_offdiagonal_logsumexp_has_no_gradient_on_the_diagonal() -> None:
    s = (1e4 * random(4, 4, dtype=torch.float32)).requires_grad_()
    functional.offdiagonal_logsumexp(s).sum().backward()
    assert s.grad is not None
    assert s.grad.isfinite().all()
    assert s.grad.diagonal().abs().max() == 0
    torch.testing.assert_close(s.grad.sum(dim=1), torch.ones(4))


@each_shape
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


@pytest.mark.parametrize("temperature", [None, 0.3], ids=["squares", "logsumexp"])
@pytest.mark.parametrize(
    ("n", "d"), [(9, 4), (4, 9), (5, 5), (2, 700), (700, 2)], ids=lambda size: str(size)
)
def test_regularized_dimensions(n: int, d: int, temperature: float | None) -> None:
    z1, z2 = 3 + random(n, d), random(n, d, 1)
    invariance, variances, penalties = functional.regularized_dimensions(z1, z2, temperature)
    assert invariance.item() == pytest.approx(((z1 - z2) ** 2).mean().item(), rel=1e-12)
    for z, variance, penalty in zip((z1, z2), variances, penalties, strict=True):
        assert variance.tolist() == pytest.approx(references.variances(z.numpy()), rel=1e-11)
        hinge = functional.variance_hinge(variance).item()
        assert hinge == pytest.approx(references.variance_hinge(z.numpy()), rel=1e-11)
        if temperature is None:
            expected = references.squared_covariance(z.numpy())
            squared = functional.squared_covariance(z)
            assert squared.item() == pytest.approx(expected, rel=1e-11, abs=1e-14)
        else:
            expected = references.covariance_logsumexp(z.numpy(), temperature)
        assert penalty.item() == pytest.approx(expected, rel=1e-11, abs=1e-14)


@pytest.mark.parametrize(
    ("n", "d"), [(9, 4), (4, 9), (2, 700), (700, 2)], ids=lambda size: str(size)
)
def test_regularized_samples(n: int, d: int) -> None:
    z1, z2 = 3 + random(n, d), random(n, d, 1)
    invariance, variances, penalties = functional.regularized_samples(z1, z2, 0.3)
    assert invariance.item() == pytest.approx(((z1 - z2) ** 2).mean().item(), rel=1e-12)
    for z, variance, penalty in zip((z1, z2), variances, penalties, strict=True):
        rows = (z - z.mean(dim=0)).numpy()
        assert variance.tolist() == pytest.approx(references.variances(rows.T), rel=1e-11)
        products = rows @ rows.T / ((d - 1) * 0.3)
        others = [[products[i, j] for j in range(n) if j != i] for i in range(n)]
        expected = sum(references.logsumexp(row) for row in others) / n
        assert penalty.item() == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize(
    "function",
    [
        functional.regularized_dimensions,
        partial(functional.regularized_dimensions, temperature=0.3),
        partial(functional.regularized_samples, temperature=0.3),
    ],
    ids=["squares", "logsumexp", "samples"],
)
@pytest.mark.parametrize(("n", "d"), [(6, 3), (3, 6), (4, 4)], ids=["tall", "wide", "square"])
def test_gradients_of_regularized_views(function: Callable[..., Any], n: int, d: int) -> None:
    inputs = tuple(z.requires_grad_() for z in (3 + random(n, d), random(n, d, 1)))
    assert torch.autograd.gradcheck(function, inputs)


@pytest.mark.parametrize(
    ("function", "normalization"),
    [
        (functional.normalize_rows, "embeddings"),
        (functional.normalize_centered_rows, "centered"),
        (functional.standardize_columns, "standardized"),
    ],
    ids=["embeddings", "centered", "standardized"],
)
def test_normalizations(function: Callable[..., Tensor], normalization: str) -> None:
    z = 2 + random(7, 4)
    length = (7 / 4) ** 0.5 if normalization == "standardized" else 1.0
    expected = torch.from_numpy(references.normalized(z.numpy(), normalization))
    torch.testing.assert_close(function(z, length), expected)
    torch.testing.assert_close(function(z, 3 * length), 3 * expected)
    assert torch.autograd.gradcheck(function, (z.requires_grad_(), 0.7))


@pytest.mark.parametrize("offset", [1e-4, 1.0, 1e4])
def test_constant_columns_and_mean_rows_become_zero(offset: float) -> None:
    """What rounding leaves of a constant must not be blown up to unit norm."""
    constant = offset * torch.rand(1, 300, generator=torch.Generator().manual_seed(0))
    z = constant.repeat(1000, 1).requires_grad_()
    for function in (functional.standardize_columns, functional.normalize_centered_rows):
        result = function(z)
        assert result.abs().max() == 0
        (gradient,) = torch.autograd.grad(result.sum(), z)
        assert gradient.abs().max() == 0


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


@pytest.mark.parametrize(("n", "d"), [(6, 3), (3, 6), (4, 4)], ids=["tall", "wide", "square"])
@pytest.mark.parametrize(
    "function",
    [
        _products.sample_gram,
        _products.dimension_gram,
        functional.cross_gram,
        functional.cross_correlation,
        functional.cross_gram_in_ball,
        functional.contrast_logits,
        functional.coding_rate,
        functional.cosines_and_coding_rates,
        functional.fourth_norms,
    ],
    ids=lambda function: function.__name__,
)
def test_gradients_by_finite_differences(function: Callable[..., Any], n: int, d: int) -> None:
    parameters = inspect.signature(function).parameters.values()
    matrices = [p for p in parameters if p.annotation is Tensor]
    inputs = tuple(random(n, d, seed).requires_grad_() for seed in range(len(matrices)))
    arguments = [0.2 for p in parameters if p.annotation is float]
    assert torch.autograd.gradcheck(lambda *z: function(*z, *arguments), inputs)


@pytest.mark.parametrize(("n", "d"), [(6, 3), (3, 6)], ids=["tall", "wide"])
@pytest.mark.parametrize("name", ["sample_contrastive", "dimension_contrastive", "coding_rate"])
def test_second_derivative_is_refused(name: str, n: int, d: int) -> None:
    """Not silently wrong: the gradient that reaches these sums is a constant."""
    z = random(n, d).requires_grad_()
    arguments = (0.2,) if name == "coding_rate" else ()
    value = getattr(functional, name)(functional.normalize_rows(z), *arguments)
    with pytest.raises(NotImplementedError, match="create_graph=True"):
        torch.autograd.grad(value, z, create_graph=True)


class _LargestProduct(TorchDispatchMode):
    """Remember the largest matrix that a product made."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN204
        result = func(*args, **(kwargs or {}))
        if "mm" in str(func) and isinstance(result, Tensor):
            self.largest = max(self.largest, result.numel())
        return result


@pytest.mark.parametrize(("n", "d"), [(5, 200), (200, 5)], ids=["wide", "tall"])
@pytest.mark.parametrize(
    "name",
    [
        "sample_contrastive",
        "dimension_contrastive",
        "squared_covariance",
        "coding_rate",
        "rankme",
        "cross_gram",
        "cross_gram_of_dimensions",
    ],
)
def test_no_product_is_larger_than_the_smaller_side(name: str, n: int, d: int) -> None:
    z = random(n, d).requires_grad_()
    with _LargestProduct() as products:
        if name.startswith("cross_gram"):
            a = z.T if name.endswith("dimensions") else z
            result = functional.cross_gram(a, a.detach())[0]
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


SAMPLE_ARGUMENTS = {
    int: 1,
    float: 0.5,
    float | None: 0.5,
    Similarity: "squared",
    Normalization: "embeddings",
    Processes: ALONE,
}
# Every public function that takes a tensor.
OF_TENSORS = [
    name
    for name in functional.__all__
    if any(p.annotation is Tensor for p in signature(name).parameters.values())
]


def sample_arguments(name: str, dtype: torch.dtype) -> dict[str, Any]:
    """Positive square matrices where a tensor is wanted: they will do as variances too."""
    return {
        parameter.name: random(6, 6, seed, dtype).abs()
        if parameter.annotation is Tensor
        else SAMPLE_ARGUMENTS[parameter.annotation]
        for seed, parameter in enumerate(signature(name).parameters.values())
    }


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
def test_functions_leave_autocast(name: str, dtype: torch.dtype, by_keyword: bool) -> None:
    function, arguments = getattr(functional, name), sample_arguments(name, dtype)
    full = torch.float64 if dtype == torch.float64 else torch.float32
    in_full = {k: v.to(full) if isinstance(v, Tensor) else v for k, v in arguments.items()}
    expected = as_tuple(function(**in_full))
    with torch.autocast("cpu", torch.bfloat16):
        got = as_tuple(function(**arguments) if by_keyword else function(*arguments.values()))
    for ours, exact in zip(got, expected, strict=True):
        assert ours.dtype == (torch.float64 if name == "rankme" else full)
        assert torch.equal(ours, exact)


def dense_logits(z1: Tensor, z2: Tensor, similarity: str) -> tuple[Tensor, Tensor]:
    """The definition, on the whole matrix of unit rows of both views."""
    h = torch.nn.functional.normalize(torch.cat([z1, z2]))
    value = {"cosine": lambda p: p, "squared": torch.square, "absolute": torch.abs}[similarity]
    logits, n = value(h @ h.T), len(z1)
    same = torch.arange(2 * n) % n
    negatives = logits.masked_fill(same[:, None] == same, -torch.inf).logsumexp(dim=1)
    return logits.diagonal(n), negatives.view(2, n)


@pytest.mark.parametrize("kept", [0, 2**24], ids=["computed anew", "kept"])
@pytest.mark.parametrize("similarity", ["cosine", "squared", "absolute"])
@pytest.mark.parametrize("n", [2, 512, 513, 1100], ids=lambda n: f"N={n}")
def test_tiles_are_the_whole_matrix(
    n: int, similarity: Similarity, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_logsumexp, "_KEPT", kept)
    views = tuple(random(n, 3, seed).requires_grad_() for seed in range(2))
    weights = random(n, 3, 2)[:, 0], random(n, 2, 3).T

    def value(logits: tuple[Tensor, Tensor]) -> Tensor:
        return sum((w * x).sum() for w, x in zip(weights, logits, strict=True))

    ours = value(functional.contrast_logits(*views, similarity=similarity))
    whole = value(dense_logits(*views, similarity))
    torch.testing.assert_close(ours, whole)
    for got, expected in zip(
        torch.autograd.grad(ours, views), torch.autograd.grad(whole, views), strict=True
    ):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("layout", ["rows", "columns"])
@pytest.mark.parametrize("n", [3, 7, 1024], ids=lambda n: f"N={n}")
def test_pieces_do_not_show(n: int, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However the views are cut, and however they lie in memory, value and gradient stay."""
    functions = (functional.cross_correlation, functional.regularized_dimensions)
    views = [random(n, 40, seed) for seed in range(2)]
    if layout == "columns":
        views = [z.T.contiguous().T for z in views]
    results = []
    for cached in (1, 100, 2**30):
        monkeypatch.setattr(_products, "_CACHED", cached)
        inputs = [z.clone().requires_grad_() for z in views]
        loss = sum(x.square().sum() for function in functions for x in function(*inputs))
        results.append((loss, *torch.autograd.grad(loss, inputs)))
    for result in results[1:]:
        torch.testing.assert_close(result, results[0])
