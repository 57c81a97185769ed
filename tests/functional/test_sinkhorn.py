"""Balanced assignments: against the authors' form, and what they balance."""

import pytest
import torch
from helpers import references_prototypes as references

from duality_ssl.functional import divergence_from_uniform, sinkhorn


@pytest.mark.parametrize(("n", "k"), [(8, 5), (5, 8), (1, 3)], ids=str)
@pytest.mark.parametrize("iterations", [1, 3])
def test_matches_the_form_without_logarithms(n: int, k: int, iterations: int) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 5 * torch.randn(n, k, dtype=torch.float64, generator=generator)
    expected = references.sinkhorn(logits, iterations)
    torch.testing.assert_close(sinkhorn(logits, iterations), expected, rtol=1e-12, atol=1e-15)


def test_every_prototype_is_used_as_often() -> None:
    logits = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    logits[:, 0] += 100  # every sample would choose it
    q = sinkhorn(logits, iterations=100)
    torch.testing.assert_close(q.sum(dim=0), torch.full((4,), 3.0))
    torch.testing.assert_close(q.sum(dim=1), torch.ones(12))


def test_has_no_gradient_and_leaves_its_argument() -> None:
    logits = torch.randn(4, 3, requires_grad=True)
    before = logits.detach().clone()
    assert not sinkhorn(logits).requires_grad
    assert torch.equal(logits, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_is_finite_where_the_exponential_overflows(dtype: torch.dtype) -> None:
    logits = torch.tensor([[3e4, 0.0], [0.0, 1e4]], dtype=dtype)
    torch.testing.assert_close(sinkhorn(logits), torch.eye(2))


def test_divergence_from_uniform_is_finite_where_a_mean_is_zero() -> None:
    p = torch.eye(4)[:2].requires_grad_()
    value = divergence_from_uniform(p)
    value.backward()
    assert value.item() == pytest.approx(0.6931472)
    assert p.grad is not None
    assert p.grad.isfinite().all()
