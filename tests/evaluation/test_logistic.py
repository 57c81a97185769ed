"""The regression is scikit-learn's, and its strength is that of a search of the whole grid."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from duality_ssl.evaluation.logistic import C_GRID, choose_c, fit
from duality_ssl.evaluation.sets import draw_rows


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    pixels, labels = load_digits(return_X_y=True)
    scaled = StandardScaler().fit_transform(pixels[:300]).astype(np.float32)
    return torch.from_numpy(scaled), torch.from_numpy(labels[:300])


def reference(x: Tensor, y: Tensor, c: float) -> LogisticRegression:
    return LogisticRegression(C=c, tol=1e-10, max_iter=10_000).fit(x.double().numpy(), y.numpy())


def objective(weights: np.ndarray, bias: np.ndarray, x: Tensor, y: Tensor, c: float) -> float:
    """Half the squared weights and C times the losses, one sample at a time."""
    total = 0.5 * (weights**2).sum()
    for row, label in zip(x.double().numpy(), y.numpy(), strict=True):
        logits = weights @ row + bias
        total += c * (np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[label])
    return float(total)


@pytest.mark.parametrize("c", [1e-5, 1e-2, 1.0, 100.0])
def test_fit_reaches_the_optimum_of_scikit_learn(digits: tuple[Tensor, Tensor], c: float) -> None:
    x, y = digits
    best, model = reference(x, y, c), fit(x, y, c)
    weights = model.weights.double().numpy()
    found = objective(weights[:-1].T, weights[-1], x, y, c)
    assert found <= objective(best.coef_, best.intercept_, x, y, c) * (1 + 1e-4)
    probabilities = model.logits(x).softmax(1).double().numpy()
    np.testing.assert_allclose(probabilities, best.predict_proba(x.double().numpy()), atol=5e-3)


def test_fit_does_not_depend_on_its_start(digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits
    cold, warm = fit(x, y, 0.1), fit(x, y, 0.1, start=fit(x, y, 100.0))
    expected = cold.logits(x).softmax(1)
    torch.testing.assert_close(warm.logits(x).softmax(1), expected, rtol=0, atol=2e-3)


def test_fit_keeps_the_numbers_of_the_classes(digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits
    some = (y == 3) | (y == 7)
    model = fit(x[some], y[some])
    assert model.classes.tolist() == [3, 7]
    assert torch.equal(model.predict(x[some]), y[some])


def test_one_class_is_refused(digits: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(ValueError, match="at least 2 classes"):
        fit(digits[0], torch.zeros(300, dtype=torch.long))


def noisy(n: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    centres = 0.7 * torch.randn(3, 20, generator=generator)
    return centres[labels] + torch.randn(n, 20, generator=generator), labels


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_choice_is_the_best_of_the_whole_grid(seed: int) -> None:
    x, y = noisy(150, seed)
    held = torch.zeros(150, dtype=torch.bool)
    held[draw_rows(y, 0.1, seed, keep=1)] = True
    scores = []
    for c in C_GRID:
        model = reference(x[~held], y[~held], c)
        unseen, expected = x[held].double().numpy(), y[held].numpy()
        accuracy = model.score(unseen, expected)
        scores.append((accuracy, -log_loss(expected, model.predict_proba(unseen))))
    assert choose_c(x, y, seed) == C_GRID[scores.index(max(scores))]


def test_nothing_to_hold_out_leaves_c_at_one() -> None:
    assert choose_c(torch.eye(4), torch.arange(4)) == 1


def test_grid_is_that_of_dinov2() -> None:
    np.testing.assert_allclose(C_GRID, np.logspace(-6, 5, 45))


@pytest.mark.parametrize(
    ("per_class", "counts"),
    [(2, [2, 2, 1]), (0.1, [4, 2, 1]), (0.01, [1, 1, 1])],
    ids=["count", "tenth", "hundredth"],
)
def test_draws_are_so_many_of_each_class(per_class: int | float, counts: list[int]) -> None:
    labels = torch.tensor([5] * 40 + [2] * 20 + [9])
    drawn = labels[draw_rows(labels, per_class, 0)]
    assert [(drawn == c).sum() for c in (5, 2, 9)] == counts


def test_larger_draws_hold_the_smaller_and_seeds_differ() -> None:
    labels = torch.arange(60) % 3
    one, five = ({*draw_rows(labels, n, 0).tolist()} for n in (1, 5))
    assert one < five
    assert five != {*draw_rows(labels, 5, 1).tolist()}


def test_kept_samples_are_not_drawn() -> None:
    labels = torch.tensor([0, 0, 0, 1])
    assert sorted(labels[draw_rows(labels, 5, 0, keep=1)].tolist()) == [0, 0]


@pytest.mark.parametrize("per_class", [0, -1, 0.0, 1.0, 1.5])
def test_impossible_draws_are_refused(per_class: int | float) -> None:
    with pytest.raises(ValueError, match="count, at least 1, or a fraction"):
        draw_rows(torch.arange(3), per_class, 0)
