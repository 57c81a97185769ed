"""Labelled features of a training and a validation set: checked, and drawn from."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

Device = torch.device | str | None

ROWS = 2**16  # of a large set, processed at a time


class LabelledSets(NamedTuple):
    """Finite features and classes of the labelled samples of both sets."""

    train: Tensor
    train_labels: Tensor
    val: Tensor
    val_labels: Tensor


def labelled_sets(
    train_features: Tensor, train_labels: Tensor, val_features: Tensor, val_labels: Tensor
) -> LabelledSets:
    """Check both sets and leave out their unlabelled samples, of label -1.

    Raises:
        ValueError: If shapes do not match, a feature is not finite, or a set has no labels.
    """
    parts: list[Tensor] = []
    for name, features, labels in (
        ("train", train_features, train_labels),
        ("val", val_features, val_labels),
    ):
        check_set(features, labels, name)
        known = labels >= 0
        parts += (features, labels) if known.all() else (features[known], labels[known])
    sets = LabelledSets(*parts)
    if not len(sets.train) or not len(sets.val):
        raise ValueError(
            f"Expected labelled samples in both sets, but got {len(sets.train)} in training and "
            f"{len(sets.val)} in validation (a label of -1 is no label)."
        )
    return sets


def check_set(features: Tensor, labels: Tensor, name: str) -> None:
    """Raise ``ValueError`` unless features ``(N, F)`` are finite and labels are ``(N,)``."""
    if features.ndim != 2 or labels.shape != features.shape[:1]:
        raise ValueError(
            f"Expected `{name}_features` of shape (N, F) and `{name}_labels` of shape (N,), but got"
            f" {tuple(features.shape)} and {tuple(labels.shape)}."
        )
    if not all(rows.isfinite().all() for rows in features.split(ROWS)):
        raise ValueError(
            f"Expected finite `{name}_features`, but some are NaN or infinite: the network has "
            "diverged. Evaluate an earlier checkpoint."
        )


def draw_rows(labels: Tensor, per_class: int | float, seed: int, *, keep: int = 0) -> Tensor:
    """Draw samples of each class: the same ones for the same labels and seed.

    A draw of more samples holds those of a draw of fewer.

    Args:
        labels: Classes of shape ``(N,)``.
        per_class: Samples a class, or, as a float, their fraction of each class, rounded, and at
            least one.
        seed: Seed of the draw.
        keep: Samples of each class that are never drawn.

    Returns:
        Rows of the drawn samples, on the device of ``labels``, one class after the other.

    Raises:
        ValueError: If ``per_class`` is not a count above 0 or a fraction in (0, 1).
    """
    if not (0 < per_class < 1 if isinstance(per_class, float) else per_class >= 1):
        raise ValueError(
            f"Expected `per_class` to be a count, at least 1, or a fraction in (0, 1), but got "
            f"{per_class}."
        )
    known = labels.cpu().numpy()
    generator = np.random.default_rng(seed)
    drawn = []
    for c in np.unique(known):
        members = generator.permutation(np.flatnonzero(known == c))
        count = max(1, round(per_class * len(members))) if per_class < 1 else int(per_class)
        drawn.append(members[: min(count, len(members) - keep)])
    return torch.from_numpy(np.concatenate(drawn)).to(labels.device)
