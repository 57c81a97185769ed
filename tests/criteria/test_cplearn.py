"""CPLearn: the authors' values, saturated rows, and codes that come from a seed alone."""

import math

import pytest
import torch
from helpers.criteria_cases import make_views
from helpers.references import grid
from torch import Tensor

from duality_ssl.criteria import CPLearn
from duality_ssl.functional import code_temperature

Z = grid(8, 5), grid(8, 5) + grid(8, 5, 2) / 2


@pytest.mark.parametrize(
    ("invariance", "expected"), [(1, 1.41711281273194), (0.05, 0.0973082793057702)]
)
def test_logits_have_the_authors_loss(invariance: float, expected: float) -> None:
    criterion = CPLearn(5, num_codes=5, invariance=invariance, temperature=1)
    criterion.codes = torch.eye(5)  # the logits are the embeddings
    assert criterion(*Z)["loss"].item() == pytest.approx(expected, rel=1e-12)


def test_codes_have_the_authors_loss() -> None:
    criterion = CPLearn(5, num_codes=7, temperature=code_temperature(5, 7, n=8))
    criterion.codes = grid(5, 7, 5).sign()
    loss = criterion(Z[0].tanh(), Z[1].tanh())["loss"]
    assert loss.item() == pytest.approx(1.55338176768352, rel=1e-12)


def codes_of(criterion: CPLearn, n: int) -> Tensor:
    return criterion.codes.T[:n].float().contiguous()


def test_saturated_aligned_rows_are_finite_in_float32() -> None:
    """0 log 0 is NaN in the authors' code, at their own sizes."""
    criterion = CPLearn(2048, temperature=code_temperature(2048, 16384, n=64))
    h1, h2 = (codes_of(criterion, 64).requires_grad_() for _ in range(2))
    loss = criterion(h1, h2)["loss"]
    loss.backward()
    assert loss.item() == pytest.approx(math.log(16384 / 64), abs=1e-4)
    assert h1.grad is not None
    assert h1.grad.isfinite().all()


@pytest.mark.parametrize("collapse", ["one code", "uniform"])
def test_collapse_costs_the_logarithm_of_the_codes(collapse: str) -> None:
    criterion = CPLearn(32, num_codes=256)
    rows = codes_of(criterion, 1).expand(16, 32) if collapse == "one code" else torch.zeros(16, 32)
    collapsed = criterion(rows, rows)["loss"].item()
    assert collapsed == pytest.approx(math.log(256), abs=1e-4)
    spread = codes_of(criterion, 16)
    assert criterion(spread, spread)["loss"].item() == pytest.approx(math.log(256 / 16), abs=1e-3)


def test_the_gradient_reaches_both_arguments_of_a_cross_entropy() -> None:
    """A stop-gradient of either changes it."""
    criterion = CPLearn(5, num_codes=7, temperature=1)
    h1, h2 = (h.requires_grad_() for h in make_views(8, 5))
    invariance = criterion(h1, h2)["invariance"]
    (ours,) = torch.autograd.grad(invariance, h1)
    p, q = (torch.softmax(h @ criterion.codes.double(), dim=1) for h in (h1, h2))
    of_weights = -(p * q.detach().log()).sum(dim=1).mean() / 2
    of_logarithms = -(q.detach() * p.log()).sum(dim=1).mean() / 2
    parts = [
        torch.autograd.grad(part, h1, retain_graph=True)[0] for part in (of_weights, of_logarithms)
    ]
    torch.testing.assert_close(ours, parts[0] + parts[1])
    assert all(part.abs().max() > 1e-3 for part in parts)


def test_codes_come_from_their_seed_alone() -> None:
    """Not from a global generator, as the authors' do; and no checkpoint holds them."""
    torch.manual_seed(1)
    first = CPLearn(6, num_codes=9)
    torch.manual_seed(2)
    assert torch.equal(first.codes, CPLearn(6, num_codes=9).codes)
    assert not torch.equal(first.codes, CPLearn(6, num_codes=9, seed=1).codes)
    assert set(first.codes.unique().tolist()) == {-1, 1}
    assert first.codes.element_size() == 1
    assert not first.state_dict()
    assert not [*first.buffers()]  # which distributed data parallel would send in each step


def test_the_temperature_does_not_follow_the_batch() -> None:
    """Logits would grow with the square root of the batch, or of one process's part of it."""
    criterion = CPLearn(2048, num_codes=16384)
    assert criterion.temperature == pytest.approx(2048 / (8 * math.log((1 - 1e-8 * 16383) / 1e-8)))
    assert code_temperature(2048, 16384, 256) == pytest.approx(criterion.temperature / 2)
