"""Logistic regression with a few labels a class."""

import warnings

import numpy as np
import torch
from torch import Tensor

from duality_ssl.evaluation.linear import fit_and_score, fit_scaler, to_numpy
from duality_ssl.evaluation.sets import labelled_sets
from duality_ssl.evaluation.settings import DEFAULTS

# classes of all draws together, at most: 20 draws of 100 classes, 2 of 1000
_MOST_CLASSES = 2000


def few_label_top1(
    train_features: Tensor,
    train_labels: Tensor,
    val_features: Tensor,
    val_labels: Tensor,
    *,
    per_class: int = DEFAULTS.labels_per_class,
    draws: int = DEFAULTS.few_label_draws,
    seed: int = 0,
) -> tuple[float, float]:
    """Top-1 accuracy of the logistic regression with a few labels a class, over seeded draws.

    Features are standardized with the statistics of the whole training set, which need no label;
    draw i takes ``per_class`` samples of each class (all of a smaller class) with the generator
    ``default_rng(seed + i)``, so draws are the same for every network. With more than 100 classes
    fewer draws are taken, so that all together have at most 2000 classes (2 draws of 1000), with a
    warning: a draw of so many classes varies little and costs much.

    Args:
        train_features: Features of shape ``(N, F)``.
        train_labels: Classes of shape ``(N,)``; -1 is unlabelled.
        val_features: Features of shape ``(M, F)``.
        val_labels: Classes of shape ``(M,)``; -1 is unlabelled.
        per_class: Labelled samples a class.
        draws: Number of draws.
        seed: Seed of the first draw.

    Returns:
        Mean accuracy in [0, 1] and its sample standard deviation over the draws.

    Raises:
        ValueError: If shapes do not match, a feature is not finite, there is only one class, or
            ``per_class`` or ``draws`` is below 1.
    """
    if per_class < 1 or draws < 1:
        raise ValueError(
            f"Expected `per_class` and `draws` to be at least 1, but got {per_class} and {draws}."
        )
    sets = labelled_sets(train_features, train_labels, val_features, val_labels)
    labels, expected = to_numpy(sets.train_labels), to_numpy(sets.val_labels)
    members = [np.flatnonzero(labels == c) for c in np.unique(labels)]
    most = max(1, _MOST_CLASSES // len(members))
    if draws > most:
        warnings.warn(
            f"The few-label protocol takes {most} of {draws} draws, since each has "
            f"{len(members)} classes.",
            stacklevel=2,
        )
    scaler = fit_scaler(sets.train)
    val = scaler.transform(to_numpy(sets.val))
    scores = []
    for draw in range(min(draws, most)):
        generator = np.random.default_rng(seed + draw)
        chosen = np.concatenate([generator.permutation(indices)[:per_class] for indices in members])
        rows = sets.train[torch.from_numpy(chosen).to(sets.train.device)]
        scores.append(
            fit_and_score(scaler.transform(to_numpy(rows)), labels[chosen], val, expected)
        )
    return float(np.mean(scores)), float(np.std(scores, ddof=1)) if len(scores) > 1 else 0.0
