"""Logistic regression with a few labels."""

import warnings
from typing import Any

import numpy as np
from torch import Tensor

from duality_ssl.evaluation.linear import Standardizer
from duality_ssl.evaluation.logistic import fit
from duality_ssl.evaluation.sets import Device, LabelledSets, draw_rows, labelled_sets
from duality_ssl.evaluation.settings import DEFAULTS, Settings

LOW_SHOT: dict[str, int | float] = {
    "labels1": 1,
    "labels10": 10,
    "percent1": 0.01,
    "percent10": 0.1,
}
"""Labels of `low_shot` by the name of their result: a count a class, or a fraction of each."""

# classes of all draws together, at most: 20 draws of 100 classes, 2 of 1000
_MOST_CLASSES = 2000


def few_label(sets: LabelledSets, settings: Settings, device: Device = None) -> dict[str, Any]:
    """Accuracy with ``labels_per_class`` labels: ``few_label_top1`` and ``few_label_std``."""
    mean, std = few_label_top1(
        *sets, per_class=settings.labels_per_class, draws=settings.few_label_draws, device=device
    )
    return {"few_label_top1": mean, "few_label_std": std}


def low_shot(sets: LabelledSets, settings: Settings, device: Device = None) -> dict[str, Any]:
    """Accuracy at each of `LOW_SHOT`: ``labels1_top1``, ``labels1_std`` and so on."""
    results: dict[str, Any] = {}
    for name, labels in LOW_SHOT.items():
        mean, std = few_label_top1(
            *sets, per_class=labels, draws=settings.few_label_draws, device=device
        )
        results |= {f"{name}_top1": mean, f"{name}_std": std}
    return results


def few_label_top1(
    train_features: Tensor,
    train_labels: Tensor,
    val_features: Tensor,
    val_labels: Tensor,
    *,
    per_class: int | float = DEFAULTS.labels_per_class,
    draws: int = DEFAULTS.few_label_draws,
    seed: int = 0,
    device: Device = None,
) -> tuple[float, float]:
    """Top-1 accuracy of the logistic regression with a few labels, over seeded draws.

    C is 1, since a few labels leave none to choose it with. Features are standardized with the
    statistics of the whole training set, which need no label. Draw i takes ``per_class`` samples of
    each class with the generator ``default_rng(seed + i)``, so draws are the same for every
    network. With more than 100 classes fewer draws are taken, so that all together have at most
    2000 classes (2 draws of 1000), with a warning: a draw of so many classes varies little and
    costs much.

    Args:
        train_features: Features of shape ``(N, F)``.
        train_labels: Classes of shape ``(N,)``; -1 is unlabelled.
        val_features: Features of shape ``(M, F)``.
        val_labels: Classes of shape ``(M,)``; -1 is unlabelled.
        per_class: Labelled samples a class (all of a smaller class), or, as a float, their
            fraction of each class, rounded, and at least one.
        draws: Number of draws.
        seed: Seed of the first draw.
        device: Device that fits; by default that of the features.

    Returns:
        Mean accuracy in [0, 1] and its sample standard deviation over the draws.

    Raises:
        ValueError: If shapes do not match, a feature is not finite, there is only one class,
            ``per_class`` is not a count above 0 or a fraction in (0, 1), or ``draws`` is below 1.
    """
    if draws < 1:
        raise ValueError(f"Expected `draws` to be at least 1, but got {draws}.")
    sets = labelled_sets(train_features, train_labels, val_features, val_labels)
    classes = len(sets.train_labels.unique())
    most = max(1, _MOST_CLASSES // classes)
    if draws > most:
        warnings.warn(
            f"The few-label protocol takes {most} of {draws} draws, since each has {classes} "
            "classes.",
            stacklevel=2,
        )
    standardize = Standardizer(sets.train, device)
    val, expected = standardize(sets.val), sets.val_labels.to(device)
    scores = []
    for draw in range(min(draws, most)):
        rows = draw_rows(sets.train_labels, per_class, seed + draw)
        x, y = standardize(sets.train[rows]), sets.train_labels[rows].to(device)
        right = fit(x, y).predict(val) == expected.to(val.device)
        scores.append(right.double().mean().item())
    return float(np.mean(scores)), float(np.std(scores, ddof=1)) if len(scores) > 1 else 0.0
