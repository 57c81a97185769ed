"""Offline protocols on frozen features: pure functions of tensors, no network, no trainer.

All accuracies are fractions in [0, 1], as torchmetrics logs them; tables print them in percent.
Every protocol sees the training set's features and labels first, the validation set's second, and
leaves out samples whose label is -1 (unlabelled).
"""

import warnings
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from duality_ssl.evaluation.neighbours import knn_votes
from duality_ssl.functional import rankme

RANKME_SAMPLES = 25_600
"""Most samples that an effective rank is taken over, as in the paper of RankMe."""

# rows of a set whose statistics are taken that are in hand at a time
_ROWS = 2**16
# classes that all few-label draws have together at most: 20 draws of 100 classes, 2 of 1000
_FEW_LABEL_CLASSES = 2000


@dataclass(frozen=True)
class Settings:
    """What the offline protocols leave open."""

    k: int = 5
    """Neighbours that vote in the k-NN."""
    temperature: float = 0.07
    """Temperature of the neighbours' votes."""
    max_linear_samples: int = 50_000
    """Most training samples that the logistic regression is fitted on."""
    labels_per_class: int = 5
    """Labelled samples a class in the few-label protocol."""
    few_label_draws: int = 20
    """Seeded draws that the few-label protocol averages over."""

    def __post_init__(self) -> None:
        """Refuse a number that no protocol can take, before there are features."""
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"Expected `evaluation.{name}` to be above 0, but got {value}.")


_DEFAULTS = Settings()


class _Sets(NamedTuple):
    """Finite features with the classes of all of them, of both sets."""

    train: Tensor
    train_labels: Tensor
    val: Tensor
    val_labels: Tensor


def evaluate(
    train_features: Tensor,
    train_labels: Tensor,
    val_features: Tensor,
    val_labels: Tensor,
    *,
    val_embeddings: Tensor | None = None,
    settings: Settings = _DEFAULTS,
    device: torch.device | str | None = None,
) -> dict[str, float]:
    """Run every offline protocol on one set of frozen features.

    Without labels, in training or in validation, or with one class in training, the result holds
    the two ranks only and a warning says so.

    Args:
        train_features: Features of the training set, of shape ``(N, F)``.
        train_labels: Classes ``0..C-1`` of shape ``(N,)``; -1 is unlabelled.
        val_features: Features of the validation set, of shape ``(M, F)``.
        val_labels: Classes of shape ``(M,)``; -1 is unlabelled.
        val_embeddings: Projector outputs of the validation set, of shape ``(M, D)``. Features that
            have no projector (pixels) are their own embeddings.
        settings: What the protocols leave open.
        device: Where the k-NN compares features; where they are by default.

    Returns:
        ``linear_top1``, ``knn_top1``, ``few_label_top1`` and ``few_label_std`` (the spread over the
        draws) as fractions; ``rankme``, the effective rank of the validation embeddings, and
        ``rankme_features``, that of the validation features.

    Raises:
        ValueError: If shapes do not match, or a feature is NaN or infinite.
    """
    _check(train_features, train_labels, "train")
    _check(val_features, val_labels, "val")
    embeddings = val_features if val_embeddings is None else val_embeddings
    ranks = {
        "rankme": effective_rank(embeddings),
        "rankme_features": effective_rank(val_features),
    }
    if (train_labels < 0).all() or (val_labels < 0).all():
        warnings.warn(
            "The training or the validation set has no labels: only RankMe is computed. Set a "
            "labelled set for evaluation (--data.probe_source, --data.probe_root) to get "
            "accuracies.",
            stacklevel=2,
        )
        return ranks
    sets = _labelled(train_features, train_labels, val_features, val_labels)
    if _one_class(sets.train_labels):
        warnings.warn(
            f"All {len(sets.train)} labelled samples of the training set are of one class, "
            f"{int(sets.train_labels[0])}: only RankMe is computed. Set a labelled set of more "
            "classes for evaluation (--data.probe_source, --data.probe_root) to get accuracies.",
            stacklevel=2,
        )
        return ranks
    few, spread = _few_label(sets, settings.labels_per_class, settings.few_label_draws, seed=0)
    return {
        "linear_top1": _linear(sets, settings.max_linear_samples, seed=0),
        "knn_top1": _knn(sets, settings.k, settings.temperature, device),
        "few_label_top1": few,
        "few_label_std": spread,
        **ranks,
    }


def linear_top1(
    train_features: Tensor,
    train_labels: Tensor,
    val_features: Tensor,
    val_labels: Tensor,
    *,
    max_samples: int = _DEFAULTS.max_linear_samples,
    seed: int = 0,
) -> float:
    """Top-1 accuracy of a logistic regression on standardised features.

    Multinomial, L2 penalty with C = 1, L-BFGS; each feature has mean 0 and variance 1 over the
    training samples it is fitted on (a constant one stays 0). More than ``max_samples`` training
    samples are cut to a random ``max_samples`` of them, with a warning.

    Args:
        train_features: Features of shape ``(N, F)``.
        train_labels: Classes of shape ``(N,)``; -1 is unlabelled.
        val_features: Features of shape ``(M, F)``.
        val_labels: Classes of shape ``(M,)``; -1 is unlabelled.
        max_samples: Most training samples.
        seed: Seed of the cut.

    Returns:
        Accuracy in [0, 1].

    Raises:
        ValueError: If shapes do not match, a feature is not finite, or there is one class.
    """
    sets = _checked(train_features, train_labels, val_features, val_labels)
    return _linear(sets, max_samples, seed)


def few_label_top1(
    train_features: Tensor,
    train_labels: Tensor,
    val_features: Tensor,
    val_labels: Tensor,
    *,
    per_class: int = _DEFAULTS.labels_per_class,
    draws: int = _DEFAULTS.few_label_draws,
    seed: int = 0,
) -> tuple[float, float]:
    """Top-1 accuracy of the logistic regression with a few labels a class, over seeded draws.

    Features are standardised with the statistics of the whole training set, which need no label;
    draw i takes ``per_class`` samples of each class (all, where there are fewer) with the generator
    ``default_rng(seed + i)``, so draws are the same for every network. Of more than 100 classes
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
        ValueError: If shapes do not match, a feature is not finite, there is one class, or
            ``per_class`` or ``draws`` is below 1.
    """
    sets = _checked(train_features, train_labels, val_features, val_labels)
    return _few_label(sets, per_class, draws, seed)


def knn_top1(
    train_features: Tensor,
    train_labels: Tensor,
    val_features: Tensor,
    val_labels: Tensor,
    *,
    k: int = _DEFAULTS.k,
    temperature: float = _DEFAULTS.temperature,
    device: torch.device | str | None = None,
) -> float:
    """Top-1 accuracy of the weighted k-NN of :func:`~duality_ssl.evaluation.neighbours.knn_votes`.

    Args:
        train_features: Features of shape ``(N, F)``.
        train_labels: Classes of shape ``(N,)``; -1 is unlabelled.
        val_features: Features of shape ``(M, F)``.
        val_labels: Classes of shape ``(M,)``; -1 is unlabelled.
        k: Neighbours that vote.
        temperature: Temperature of the votes.
        device: Where features are compared; where they are by default.

    Returns:
        Accuracy in [0, 1].

    Raises:
        ValueError: If shapes do not match, a feature is not finite, or an argument is out of range.
    """
    sets = _checked(train_features, train_labels, val_features, val_labels)
    return _knn(sets, k, temperature, device)


def effective_rank(features: Tensor, max_samples: int = RANKME_SAMPLES) -> float:
    """RankMe of at most ``max_samples`` rows, spread evenly over the set.

    Args:
        features: Features or embeddings of shape ``(N, F)``.
        max_samples: Most rows.

    Returns:
        Effective rank in ``[1, min(N, F)]``.
    """
    if len(features) > max_samples:
        rows = torch.linspace(0, len(features) - 1, max_samples, dtype=torch.float64).round().long()
        features = features[rows.to(features.device)]
    return rankme(features.float()).item()


def _linear(sets: _Sets, max_samples: int, seed: int) -> float:
    _at_least_two_classes(sets.train_labels)
    train, labels = sets.train, sets.train_labels
    if len(train) > max_samples:
        warnings.warn(
            f"The logistic regression is fitted on {max_samples} of {len(train)} training samples, "
            "drawn at random: raise max_linear_samples for more.",
            stacklevel=3,
        )
        drawn = np.random.default_rng(seed).permutation(len(train))[:max_samples]
        kept = torch.from_numpy(drawn).to(train.device)
        train, labels = train[kept], labels[kept]
    shift, scale = _statistics(train)
    return _fit_and_score(
        _standardise(train, shift, scale),
        labels.cpu().numpy(),
        _standardise(sets.val, shift, scale),
        sets.val_labels.cpu().numpy(),
    )


def _few_label(sets: _Sets, per_class: int, draws: int, seed: int) -> tuple[float, float]:
    if per_class < 1 or draws < 1:
        raise ValueError(
            f"Expected `per_class` and `draws` to be at least 1, but got {per_class} and {draws}."
        )
    _at_least_two_classes(sets.train_labels)
    labels = sets.train_labels.cpu().numpy()
    members = [np.flatnonzero(labels == c) for c in np.unique(labels)]
    most = max(1, _FEW_LABEL_CLASSES // len(members))
    if draws > most:
        warnings.warn(
            f"The few-label protocol takes {most} of {draws} draws, for each is of "
            f"{len(members)} classes.",
            stacklevel=3,
        )
    shift, scale = _statistics(sets.train)
    val, val_labels = _standardise(sets.val, shift, scale), sets.val_labels.cpu().numpy()
    scores = []
    for draw in range(min(draws, most)):
        generator = np.random.default_rng(seed + draw)
        chosen = np.concatenate([generator.permutation(indices)[:per_class] for indices in members])
        rows = sets.train[torch.from_numpy(chosen).to(sets.train.device)]
        train = _standardise(rows, shift, scale)
        scores.append(_fit_and_score(train, labels[chosen], val, val_labels))
    return float(np.mean(scores)), float(np.std(scores, ddof=1)) if len(scores) > 1 else 0.0


def _knn(sets: _Sets, k: int, temperature: float, device: torch.device | str | None) -> float:
    votes = knn_votes(
        sets.train,
        sets.train_labels,
        sets.val.to(device),
        int(sets.train_labels.max()) + 1,
        k=k,
        temperature=temperature,
    )
    predicted = votes.argmax(1).to(sets.val_labels.device)
    return (predicted == sets.val_labels).double().mean().item()


def _fit_and_score(train: np.ndarray, labels: np.ndarray, val: np.ndarray, y: np.ndarray) -> float:
    from sklearn.exceptions import ConvergenceWarning  # heavy, and the rest does without it
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=1.0, max_iter=1000)
    with warnings.catch_warnings():
        # at 1000 iterations the accuracy has long settled; the loss's last digits have not
        warnings.simplefilter("ignore", ConvergenceWarning)
        return float(model.fit(train, labels).score(val, y))


def _statistics(features: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each feature, in float64 a piece at a time."""
    pieces = features.detach().split(_ROWS)
    mean = torch.stack([rows.double().sum(0) for rows in pieces]).sum(0) / len(features)
    squares = torch.stack([(rows.double() - mean).square().sum(0) for rows in pieces]).sum(0)
    std = (squares / len(features)).sqrt()
    # a constant feature has a std of rounding errors, not always of 0
    std[std <= 1e-6 * mean.abs() + 1e-12] = torch.inf
    return mean.float().cpu().numpy(), std.float().cpu().numpy()


def _standardise(features: Tensor, shift: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return (features.detach().float().cpu().numpy() - shift) / scale


def _checked(
    train_features: Tensor, train_labels: Tensor, val_features: Tensor, val_labels: Tensor
) -> _Sets:
    """The labelled samples of both sets, if all is as it should be."""
    _check(train_features, train_labels, "train")
    _check(val_features, val_labels, "val")
    return _labelled(train_features, train_labels, val_features, val_labels)


def _labelled(
    train_features: Tensor, train_labels: Tensor, val_features: Tensor, val_labels: Tensor
) -> _Sets:
    """Leave out the unlabelled samples; a set that has none is not copied."""
    parts: list[Tensor] = []
    for features, labels in ((train_features, train_labels), (val_features, val_labels)):
        known = labels >= 0
        parts += (features, labels) if known.all() else (features[known], labels[known])
    sets = _Sets(*parts)
    if not len(sets.train) or not len(sets.val):
        raise ValueError(
            f"Expected labelled samples in both sets, but got {len(sets.train)} in training and "
            f"{len(sets.val)} in validation (a label of -1 is no label)."
        )
    return sets


def _at_least_two_classes(labels: Tensor) -> None:
    if _one_class(labels):
        raise ValueError(
            f"Expected at least 2 classes in the training set, but all {len(labels)} labels are "
            f"{labels[0].item()}."
        )


def _one_class(labels: Tensor) -> bool:
    return bool((labels == labels[0]).all())


def _check(features: Tensor, labels: Tensor, name: str) -> None:
    if features.ndim != 2 or labels.shape != features.shape[:1]:
        raise ValueError(
            f"Expected `{name}_features` of shape (N, F) and `{name}_labels` of shape (N,), but got"
            f" {tuple(features.shape)} and {tuple(labels.shape)}."
        )
    if not all(rows.isfinite().all() for rows in features.split(_ROWS)):
        raise ValueError(
            f"Expected finite `{name}_features`, but some are NaN or infinite: the network has "
            "diverged. Evaluate an earlier checkpoint."
        )
