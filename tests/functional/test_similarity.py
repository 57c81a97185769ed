"""Similarity of two representations: loops over N x N, and values computed by other code."""

from collections.abc import Callable

import pytest
import torch
from helpers import references
from helpers.references import grid
from torch import Tensor

from duality_ssl.functional import linear_cka, normalize_rows, rsa

Measure = Callable[[Tensor, Tensor], Tensor]
each_measure = pytest.mark.parametrize("measure", [linear_cka, rsa])


def cka_of_cosines(x: Tensor, y: Tensor) -> Tensor:
    return linear_cka(normalize_rows(x), normalize_rows(y))


@pytest.mark.parametrize(
    ("measure", "tall", "wide"),
    [
        (linear_cka, 0.834583748050544, 0.968269218122346),  # of the code of Luthra et al.
        (cka_of_cosines, 0.804179512202324, 0.977201026336084),
        (rsa, 0.693657421990806, 0.878953184431741),
    ],
)
def test_published_values(measure: Measure, tall: float, wide: float) -> None:
    z, w = grid(8, 5), grid(5, 8)
    assert measure(z, z + grid(8, 5, 4) / 2).item() == pytest.approx(tall, rel=1e-12)
    assert measure(w, w + grid(5, 8, 2) / 2).item() == pytest.approx(wide, rel=1e-12)


@each_measure
@pytest.mark.parametrize(
    ("n", "d1", "d2"), [(9, 3, 4), (4, 9, 7), (6, 2, 19)], ids=["tall", "wide", "unlike widths"]
)
def test_value_and_gradient_are_those_of_the_loops(
    measure: Measure, n: int, d1: int, d2: int
) -> None:
    x, y = grid(n, d1).requires_grad_(), grid(n, d2, 3).requires_grad_()
    value, expected = measure(x, y), getattr(references, measure.__name__)(x, y)
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)
    gradients = torch.autograd.grad(value, (x, y))
    for ours, theirs in zip(gradients, torch.autograd.grad(expected, (x, y)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@each_measure
@pytest.mark.parametrize("d", [5, 40], ids=["tall", "wide"])
def test_rotation_and_scale_do_not_count(measure: Measure, d: int) -> None:
    x, rotation = grid(20, d), torch.linalg.qr(grid(d, d, 7))[0]
    assert measure(x, 3 * x @ rotation).item() == pytest.approx(1, rel=1e-12)


def test_cka_alone_does_not_see_a_shift() -> None:
    x = grid(20, 5)
    assert linear_cka(x, x + 4).item() == pytest.approx(1, rel=1e-12)
    assert rsa(x, x + 4).item() < 0.9


@each_measure
def test_float32_features_lose_no_digits_of_the_measure(measure: Measure) -> None:
    """Cosines near 1: in float32 the means would cancel."""
    x, y = (grid(40, 5, s).float() + 50 for s in (1, 3))
    got = measure(x, y)
    assert got.dtype == torch.float64
    assert got.item() == pytest.approx(
        getattr(references, measure.__name__)(x.double(), y.double()).item(), rel=1e-6
    )


@each_measure
def test_equal_rows_have_no_similarity(measure: Measure) -> None:
    assert measure(grid(6, 3), torch.ones(6, 3)).isnan()
