"""W-MSE needs more samples than dimensions: the common tests on such batches, and its own."""

from collections.abc import Callable
from typing import Any

import pytest
import test_criteria as common
import torch
from helpers.criteria_cases import make_views
from torch import Tensor

from duality_ssl.criteria import WMSE
from duality_ssl.functional import normalize_rows, whiten

Z1, Z2 = make_views(12, 4)


@pytest.mark.parametrize(
    ("check", "arguments"),
    [
        (common.test_matches_float64_reference, ({}, 9, 4)),
        (common.test_gradient_matches_float64_reference, ({}, 30.0, 7, 3)),
        (common.test_gradient_matches_float64_reference, ({}, 1e-2, 7, 3)),
        (common.test_float32_matches_float64_reference, (9, 4)),
        (common.test_float32_is_accurate_at_size_with_near_duplicates, (1.0, 512, 64)),
        (common.test_derivatives_by_finite_differences, ({}, 6, 3)),
        (common.test_transforms_of_torch_func, ({}, 6, 3)),
        (common.test_permuting_samples_changes_nothing, ({}, 9, 4)),
        (common.test_swapping_views_changes_nothing, ({},)),
        (common.test_loss_is_the_weighted_sum_of_scalar_terms, ({},)),
        (common.test_what_is_not_finite_goes_through, ()),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_common(check: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    check("WMSE", *arguments)


def authors(z: Tensor) -> Tensor:
    """Their whitening of one sub-batch."""
    z = z - z.mean(dim=0)
    factor = torch.linalg.cholesky(z.T @ z / (len(z) - 1))
    return z @ torch.linalg.inv(factor).T


@pytest.mark.parametrize("w_size", [None, 8], ids=str)
def test_published_value(w_size: int | None) -> None:
    k = torch.arange(1, 41, dtype=torch.float64)
    z1 = (k * k).sin().reshape(8, 5)
    z2 = z1 + (2 * k * k).sin().reshape(8, 5) / 2
    loss = WMSE(w_size)(z1, z2, step=0)["loss"].item()
    assert loss == pytest.approx(0.695194508770081, rel=1e-12)


def test_sub_batches_have_the_same_samples_of_all_views() -> None:
    criterion, views = WMSE(6), [Z1, Z2, Z1 + Z2.flip(1)]
    order = criterion.draw(3, Z1)
    assert sorted(order.tolist()) == list(range(12))
    assert not torch.equal(order, criterion.draw(4, Z1))
    units = [
        torch.cat([normalize_rows(authors(part)) for part in z[order].split(6)]) for z in views
    ]
    cosines = [(units[i] * units[j]).sum(dim=1).mean() for i, j in [(0, 1), (0, 2), (1, 2)]]
    expected = 2 - 2 * sum(cosines) / 3
    torch.testing.assert_close(criterion(*views, step=3)["loss"], expected, rtol=1e-12, atol=0)


def test_the_gradient_reaches_both_views() -> None:
    """Solo-learn detaches one, for which the value is the same, and the gradient is not."""
    z1, z2 = Z1.clone().requires_grad_(), Z2.clone().requires_grad_()
    gradients = torch.autograd.grad(WMSE()(z1, z2, step=0)["loss"], (z1, z2))
    swapped = torch.autograd.grad(WMSE()(z2, z1, step=0)["loss"], (z1, z2))
    torch.testing.assert_close(gradients, swapped)
    assert all(gradient.abs().max() > 1e-3 for gradient in gradients)


@pytest.mark.parametrize(
    ("w_size", "message"),
    [
        (5, "`w_size` to divide the batch, but got 5 and 12 samples: set it to a divisor"),
        (4, "more samples than dimensions to whiten, but got 4 and D=4"),
        (0, "`w_size` to be at least 2, but got 0"),
    ],
)
def test_a_sub_batch_of_the_wrong_size_is_refused(w_size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WMSE(w_size)(Z1, Z2, step=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_computed_in_full(dtype: torch.dtype) -> None:
    views = [(300 * z).to(dtype) for z in (Z1, Z2)]
    with torch.autocast("cpu", torch.bfloat16):
        loss = WMSE()(*views, step=0)["loss"]
    assert torch.equal(loss, WMSE()(*(z.float() for z in views), step=0)["loss"])


@pytest.mark.parametrize("kind", ["zeros", "all equal", "one line", "duplicates"])
def test_value_and_gradient_of_what_has_collapsed_are_finite(kind: str) -> None:
    z = {
        "zeros": torch.zeros(12, 4),
        "all equal": Z1[:1].float().expand(12, 4),
        "one line": Z1[:, :1].float().expand(12, 4),
        "duplicates": Z1.float()[torch.arange(12) // 4],
    }[kind]
    z1, z2 = z.clone().requires_grad_(), z.clone().requires_grad_()
    loss = WMSE()(z1, z2, step=0)["loss"]
    assert loss.isfinite()
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(loss, (z1, z2)))


def test_whitened_columns_are_white() -> None:
    z = torch.stack([Z1, 1e-3 * Z2 + 5])
    white = whiten(z)
    identity = torch.eye(4).expand(2, 4, 4).double()
    torch.testing.assert_close(white.mT @ white / 11, identity)
    torch.testing.assert_close(white[0], authors(Z1))
    torch.testing.assert_close(white[1], whiten(z[1]))
