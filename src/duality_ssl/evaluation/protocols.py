"""All offline protocols on one set of frozen features.

All accuracies are fractions in [0, 1], as torchmetrics logs them; tables print them in percent.
Every protocol takes features and labels of the training set, then those of the validation set, and
leaves out samples of label -1 (unlabelled).
"""

import warnings

import torch
from torch import Tensor

from duality_ssl.evaluation.few_label import few_label_top1
from duality_ssl.evaluation.knn import knn_top1
from duality_ssl.evaluation.linear import linear_top1
from duality_ssl.evaluation.sets import check_set, labelled_sets
from duality_ssl.evaluation.settings import DEFAULTS, Settings
from duality_ssl.functional import rankme

RANKME_SAMPLES = 25_600
"""Most samples that an effective rank is computed from, as in the paper of RankMe."""


def evaluate(
    train_features: Tensor,
    train_labels: Tensor,
    val_features: Tensor,
    val_labels: Tensor,
    *,
    val_embeddings: Tensor | None = None,
    settings: Settings = DEFAULTS,
    device: torch.device | str | None = None,
) -> dict[str, float]:
    """Run every offline protocol on one set of frozen features.

    If the training or the validation set has no labels, or the training set only one class, the
    result holds the two ranks only, with a warning.

    Args:
        train_features: Features of the training set, of shape ``(N, F)``.
        train_labels: Classes ``0..C-1`` of shape ``(N,)``; -1 is unlabelled.
        val_features: Features of the validation set, of shape ``(M, F)``.
        val_labels: Classes of shape ``(M,)``; -1 is unlabelled.
        val_embeddings: Projector outputs of the validation set, of shape ``(M, D)``; by default the
            features, for those without a projector (pixels).
        settings: Options of the protocols.
        device: Device of the k-NN; by default that of the validation set.

    Returns:
        ``linear_top1``, ``knn_top1``, ``few_label_top1`` and ``few_label_std`` (the spread over the
        draws) as fractions; ``rankme``, the effective rank of the validation embeddings, and
        ``rankme_features``, that of the validation features.

    Raises:
        ValueError: If shapes do not match, or a feature is NaN or infinite.
    """
    check_set(train_features, train_labels, "train")
    check_set(val_features, val_labels, "val")
    ranks = {
        "rankme": effective_rank(val_features if val_embeddings is None else val_embeddings),
        "rankme_features": effective_rank(val_features),
    }
    if (train_labels < 0).all() or (val_labels < 0).all():
        return _only(ranks, "The training or the validation set has no labels", "labelled set")
    sets = labelled_sets(train_features, train_labels, val_features, val_labels)
    first = int(sets.train_labels[0])
    if (sets.train_labels == first).all():
        why = f"All {len(sets.train)} labelled training samples are of one class, {first}"
        return _only(ranks, why, "labelled set of more classes")
    few, spread = few_label_top1(
        *sets, per_class=settings.labels_per_class, draws=settings.few_label_draws
    )
    return {
        "linear_top1": linear_top1(*sets, max_samples=settings.max_linear_samples),
        "knn_top1": knn_top1(*sets, k=settings.k, temperature=settings.temperature, device=device),
        "few_label_top1": few,
        "few_label_std": spread,
        **ranks,
    }


def effective_rank(features: Tensor, max_samples: int = RANKME_SAMPLES) -> float:
    """RankMe of at most ``max_samples`` rows, spread evenly over the set.

    Args:
        features: Features or embeddings of shape ``(N, F)``.
        max_samples: Most rows.

    Returns:
        Effective rank in ``[1, min(N, F)]``.

    Reference: Garrido et al., RankMe, ICML 2023, https://arxiv.org/abs/2210.02885
    """
    if len(features) > max_samples:
        rows = torch.linspace(0, len(features) - 1, max_samples, dtype=torch.float64).round().long()
        features = features[rows.to(features.device)]
    return rankme(features.float()).item()


def _only(ranks: dict[str, float], why: str, needed: str) -> dict[str, float]:
    warnings.warn(
        f"{why}: only RankMe is computed. Set a {needed} for evaluation (--data.probe_source, "
        "--data.probe_root) to get accuracies.",
        stacklevel=3,
    )
    return ranks
