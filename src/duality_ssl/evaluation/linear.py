"""Linear classification: a logistic regression on standardized features."""

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from duality_ssl.evaluation.logistic import choose_c, fit
from duality_ssl.evaluation.sets import ROWS, Device, LabelledSets, labelled_sets
from duality_ssl.evaluation.settings import DEFAULTS, Settings


def linear(sets: LabelledSets, settings: Settings, device: Device = None) -> dict[str, Any]:
    """Logistic regression whose regularization is chosen on a held-out part of the training set.

    Multinomial, with an L2 penalty on the weights and none on the bias. Each feature has mean 0 and
    variance 1 over the training samples (a constant one stays 0). C is chosen on a tenth of them
    (`choose_c`), and the model fitted on all of them with that C: no choice is made on the
    validation set. A random ``max_linear_samples`` of a larger training set are used, with a
    warning.

    Args:
        sets: Labelled features.
        settings: Options of the protocols.
        device: Device that fits; by default that of the features.

    Returns:
        ``linear_top1``; ``linear_c``, the chosen C; ``per_class``, the accuracy of each class in
        the validation set, by its number; ``confusion``, counts of validation samples, of shape
        ``(C, C)``: a row for each true class, a column for each predicted one.

    Raises:
        ValueError: If there is only one class.
    """
    rows = _at_most(settings.max_linear_samples, len(sets.train)).to(sets.train.device)
    train, labels = sets.train[rows], sets.train_labels[rows]
    standardize = Standardizer(train, device)
    x, y = standardize(train), labels.to(device)
    c = choose_c(x, y)
    predicted = fit(x, y, c).predict(standardize(sets.val)).cpu()
    counts = confusion_matrix(sets.val_labels.cpu(), predicted)
    right, total = counts.diagonal().double(), counts.sum(1)
    return {
        "linear_top1": (right.sum() / total.sum()).item(),
        "linear_c": c,
        "per_class": {str(i): (right[i] / n).item() for i, n in enumerate(total) if n > 0},
        "confusion": counts.tolist(),
    }


def linear_top1(
    train_features: Tensor,
    train_labels: Tensor,
    val_features: Tensor,
    val_labels: Tensor,
    *,
    max_samples: int = DEFAULTS.max_linear_samples,
    device: Device = None,
) -> float:
    """Top-1 accuracy of the logistic regression of `linear`.

    Args:
        train_features: Features of shape ``(N, F)``.
        train_labels: Classes of shape ``(N,)``; -1 is unlabelled.
        val_features: Features of shape ``(M, F)``.
        val_labels: Classes of shape ``(M,)``; -1 is unlabelled.
        max_samples: Most training samples.
        device: Device that fits; by default that of the features.

    Returns:
        Accuracy in [0, 1].

    Raises:
        ValueError: If shapes do not match, a feature is not finite, or there is only one class.
    """
    sets = labelled_sets(train_features, train_labels, val_features, val_labels)
    top1: float = linear(sets, Settings(max_linear_samples=max_samples), device)["linear_top1"]
    return top1


def confusion_matrix(labels: Tensor, predicted: Tensor) -> Tensor:
    """Count pairs of true and predicted classes.

    Args:
        labels: True classes ``0..C-1`` of shape ``(N,)``.
        predicted: Predicted classes of shape ``(N,)``.

    Returns:
        Counts of shape ``(C, C)``, int64: a row for each true class.
    """
    classes = int(torch.maximum(labels.max(), predicted.max())) + 1
    pairs = labels * classes + predicted
    return torch.bincount(pairs, minlength=classes**2).view(classes, classes)


class Standardizer:
    """Shifts and scales features to mean 0 and variance 1 over a training set, and rotates them.

    A constant feature becomes 0. The axes are the principal ones of the training set: regressions
    with an L2 penalty are the same in any axes, and are fitted in far fewer steps in these.

    Args:
        features: Features of the training set, of shape ``(N, F)``.
        device: Device of the standardized features; by default their own.
    """

    def __init__(self, features: Tensor, device: Device = None) -> None:
        from sklearn.preprocessing import StandardScaler  # slow to import

        self.device = device
        self._scaler = StandardScaler()  # its statistics are float64
        for rows in features.split(ROWS):  # all at once would take three copies in float64
            self._scaler.partial_fit(_to_numpy(rows))
        scaled = (self._scale(rows) for rows in features.split(ROWS))
        covariance = sum((x.T @ x for x in scaled), torch.zeros(()))
        axes = torch.linalg.eigh(covariance.cpu().double()).eigenvectors
        self._axes = axes.to(covariance)

    def __call__(self, features: Tensor) -> Tensor:
        """Standardize features ``(N, F)``, in float32."""
        return self._scale(features) @ self._axes

    def _scale(self, features: Tensor) -> Tensor:
        scaled = torch.from_numpy(self._scaler.transform(_to_numpy(features)))
        return scaled.to(features.device if self.device is None else self.device)


def _to_numpy(features: Tensor) -> np.ndarray:
    return features.detach().cpu().float().numpy()


def _at_most(most: int, count: int) -> Tensor:
    """Rows of a set to use: all, or a seeded draw with a warning."""
    if count <= most:
        return torch.arange(count)
    warnings.warn(
        f"The logistic regression is fitted on {most} of {count} training samples, drawn at "
        "random: raise max_linear_samples for more.",
        stacklevel=3,
    )
    return torch.from_numpy(np.random.default_rng(0).permutation(count)[:most])
