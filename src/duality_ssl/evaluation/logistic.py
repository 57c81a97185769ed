"""Multinomial logistic regression with an L2 penalty, and the choice of its strength."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from duality_ssl.evaluation.sets import draw_rows

C_GRID = tuple(10 ** (quarter / 4) for quarter in range(-24, 21))
"""Inverse regularizations to choose from: 45 from 1e-6 to 1e5, evenly spaced in their logarithm.

Source: the grid of DINOv2's logistic regression (Oquab et al., TMLR 2024),
https://github.com/facebookresearch/dinov2/blob/main/dinov2/eval/log_regression.py
"""

_HELD_OUT = 0.1  # of the training samples, as in DINOv2's evaluation


class LogisticRegression(NamedTuple):
    """A fitted model: weights of shape ``(F + 1, C)``, the bias last, and its classes ``(C,)``."""

    weights: Tensor
    classes: Tensor

    def logits(self, features: Tensor) -> Tensor:
        """Compute logits ``(N, C)`` of features ``(N, F)``."""
        return torch.addmm(self.weights[-1], features, self.weights[:-1])

    def predict(self, features: Tensor) -> Tensor:
        """Predict classes ``(N,)`` of features ``(N, F)``."""
        return self.classes[self.logits(features).argmax(1)]


def fit(
    features: Tensor, labels: Tensor, c: float = 1.0, start: LogisticRegression | None = None
) -> LogisticRegression:
    r"""Fit a multinomial logistic regression by L-BFGS with a diagonal preconditioner.

    .. math:: \min_{W, b}\; \frac{1}{2} \lVert W \rVert_F^2
        + C \sum_i \mathrm{cross\ entropy}(W^\top x_i + b,\, y_i)

    Args:
        features: Standardized features of shape ``(N, F)``; uncorrelated ones take the fewest
            steps.
        labels: Classes of shape ``(N,)``.
        c: C, the inverse regularization.
        start: A model of the same classes to start from; by default zeros.

    Returns:
        The model; it knows the classes that occur in ``labels`` only.

    Raises:
        ValueError: If there is only one class.
    """
    classes, targets = labels.unique(return_inverse=True)
    if len(classes) < 2:
        raise ValueError(
            f"Expected at least 2 classes to fit a logistic regression, but got {len(classes)}."
        )
    n = len(features)
    if start is None:
        start = LogisticRegression(features.new_zeros(features.shape[1] + 1, len(classes)), classes)
    # the diagonal of the Hessian at the start, by which steps are scaled
    spread = start.logits(features).softmax(1)
    spread = spread * (1 - spread)
    curvature = torch.cat(
        [features.square().T @ spread / n + 1 / (c * n), spread.mean(0, keepdim=True) + 1e-6]
    )
    scale = curvature.rsqrt()
    scaled = (start.weights / scale).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [scaled],
        max_iter=1000,
        tolerance_grad=1e-6,
        history_size=10,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        weights = scale * scaled
        # divided by C N, so that one tolerance fits all C and N
        penalty = weights[:-1].square().sum() / (2 * c * n)
        logits = LogisticRegression(weights, classes).logits(features)
        mean = cross_entropy(logits, targets) + penalty
        mean.backward()
        return mean

    with torch.enable_grad():
        optimizer.step(loss)
    return LogisticRegression((scale * scaled).detach(), classes)


def choose_c(features: Tensor, labels: Tensor, seed: int = 0) -> float:
    """Choose the inverse regularization on a held-out tenth of each class.

    The values of `C_GRID` are tried from the strongest regularization on, each fit starting from
    the one before. The best has the highest held-out accuracy and, among those, the lowest
    cross-entropy. C is 1 where no class has two samples.

    Args:
        features: Standardized features of shape ``(N, F)``.
        labels: Classes of shape ``(N,)``.
        seed: Seed of the held-out samples.

    Returns:
        C, which multiplies the sum of the samples' losses.

    Raises:
        ValueError: If there is only one class.
    """
    held = torch.zeros_like(labels, dtype=torch.bool)
    held[draw_rows(labels, _HELD_OUT, seed, keep=1)] = True
    if not held.any():
        return 1.0
    model, scores = None, []
    for c in C_GRID:
        model = fit(features[~held], labels[~held], c, start=model)
        scores.append(_score(model, features[held], labels[held]))
    return C_GRID[scores.index(max(scores))]


def _score(model: LogisticRegression, features: Tensor, labels: Tensor) -> tuple[float, float]:
    """Accuracy, and the negative cross-entropy; all labels are among the model's classes."""
    logits = model.logits(features)
    targets = torch.searchsorted(model.classes, labels)
    right = (logits.argmax(1) == targets).double().mean()
    return right.item(), -cross_entropy(logits, targets).item()
