"""BYOL's and SimSiam's loss: the sheet's values, their identity, and what is not detached."""

import pytest
import torch
from helpers.references import grid
from torch.nn.functional import cosine_similarity

from duality_ssl.criteria import Regression
from duality_ssl.methods import BYOL, SimSiam

Z1 = grid(8, 5)
Z2 = Z1 + grid(8, 5, 2) / 2
TARGETS = Z1 + grid(8, 5, 3) / 2, Z1 + grid(8, 5, 4) / 2


def test_regression_of_byol_has_the_papers_value() -> None:
    loss = Regression()(Z1, Z2, targets=TARGETS)["loss"]
    assert loss.item() == pytest.approx(0.565991169097637, rel=1e-12)


def test_regression_of_simsiam_has_the_authors_value() -> None:
    loss = Regression(scale=0.5)(Z1, Z2, targets=TARGETS)["loss"]
    assert loss.item() - 1 == pytest.approx(-0.858502207725591, rel=1e-12)


def test_byol_is_4_and_4_times_simsiam() -> None:
    """The criteria of the two methods, as they are built."""
    small = {"backbone": "resnet_tiny", "projector": "16-8"}
    byol, simsiam = (method(**small).criterion for method in (BYOL, SimSiam))
    p1, t2 = Z1, TARGETS[1]
    p2, t1 = Z2, TARGETS[0]
    negative = -(cosine_similarity(p1, t2).mean() + cosine_similarity(p2, t1).mean()) / 2
    inputs = {"targets": TARGETS}
    torch.testing.assert_close(byol(Z1, Z2, **inputs)["loss"], 4 + 4 * negative)
    torch.testing.assert_close(simsiam(Z1, Z2, **inputs)["loss"], 1 + negative)


def test_regression_of_many_views_is_the_mean_over_pairs() -> None:
    """Four predictions, of two large views and two small ones, and two targets."""
    views = [Z1, Z2, grid(8, 5, 5), grid(8, 5, 6)]
    pairs = [(0, 1), (1, 0), (2, 0), (2, 1), (3, 0), (3, 1)]
    distances = [(2 - 2 * cosine_similarity(views[v], TARGETS[w])).mean() for v, w in pairs]
    loss = Regression()(*views, targets=TARGETS)["loss"]
    torch.testing.assert_close(loss, 2 * sum(distances) / len(pairs))


def test_regression_leaves_the_gradient_of_its_targets_to_the_method() -> None:
    targets = tuple(t.clone().requires_grad_() for t in TARGETS)
    Regression()(Z1, Z2, targets=targets)["loss"].backward()
    assert all(t.grad is not None and t.grad.abs().max() > 0 for t in targets)
