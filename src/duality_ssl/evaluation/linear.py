"""Logistic regression on standardized features."""

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from duality_ssl.evaluation.sets import ROWS, labelled_sets
from duality_ssl.evaluation.settings import DEFAULTS


def linear_top1(
    train_features: Tensor,
    train_labels: Tensor,
    val_features: Tensor,
    val_labels: Tensor,
    *,
    max_samples: int = DEFAULTS.max_linear_samples,
    seed: int = 0,
) -> float:
    """Top-1 accuracy of a logistic regression on standardized features.

    Multinomial, L2 penalty with C = 1, L-BFGS; each feature has mean 0 and variance 1 over the
    training samples it is fitted on (a constant one stays 0). A random ``max_samples`` of a larger
    training set are used, with a warning.

    Args:
        train_features: Features of shape ``(N, F)``.
        train_labels: Classes of shape ``(N,)``; -1 is unlabelled.
        val_features: Features of shape ``(M, F)``.
        val_labels: Classes of shape ``(M,)``; -1 is unlabelled.
        max_samples: Most training samples.
        seed: Seed of the random choice.

    Returns:
        Accuracy in [0, 1].

    Raises:
        ValueError: If shapes do not match, a feature is not finite, or there is only one class.
    """
    sets = labelled_sets(train_features, train_labels, val_features, val_labels)
    train, labels = sets.train, sets.train_labels
    if len(train) > max_samples:
        warnings.warn(
            f"The logistic regression is fitted on {max_samples} of {len(train)} training samples, "
            "drawn at random: raise max_linear_samples for more.",
            stacklevel=2,
        )
        drawn = np.random.default_rng(seed).permutation(len(train))[:max_samples]
        kept = torch.from_numpy(drawn).to(train.device)
        train, labels = train[kept], labels[kept]
    scaler = fit_scaler(train)
    return fit_and_score(
        scaler.transform(to_numpy(train)),
        to_numpy(labels),
        scaler.transform(to_numpy(sets.val)),
        to_numpy(sets.val_labels),
    )


def fit_scaler(features: Tensor) -> Any:
    """Fit scikit-learn's ``StandardScaler``, whose statistics are float64."""
    from sklearn.preprocessing import StandardScaler  # slow to import

    scaler = StandardScaler()
    for rows in features.split(ROWS):  # all at once would take three copies in float64
        scaler.partial_fit(to_numpy(rows))
    return scaler


def fit_and_score(
    train: np.ndarray, train_labels: np.ndarray, val: np.ndarray, val_labels: np.ndarray
) -> float:
    """Accuracy on standardized features."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=1.0, max_iter=1000)
    with warnings.catch_warnings():
        # after 1000 iterations the accuracy has long settled; the loss's last digits have not
        warnings.simplefilter("ignore", ConvergenceWarning)
        return float(model.fit(train, train_labels).score(val, val_labels))


def to_numpy(values: Tensor) -> np.ndarray:
    """Features in float32, or labels, on the host."""
    values = values.detach().cpu()
    return (values.float() if values.is_floating_point() else values).numpy()
