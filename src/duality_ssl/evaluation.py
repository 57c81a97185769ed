"""Offline protocols on frozen features: pure functions of tensors, no network, no trainer.

All accuracies are fractions in [0, 1], as torchmetrics logs them; tables print them in percent.
Every protocol sees the training set's features and labels first, the validation set's second, and
leaves out samples whose label is -1 (unlabelled).
"""

import warnings

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn.functional import normalize

from duality_ssl.functional import rankme

# one block of similarities in float32: 64 MiB
_BLOCK = 2**24


def evaluate(
    train_features: Tensor,
    train_labels: Tensor,
    val_features: Tensor,
    val_labels: Tensor,
    *,
    val_embeddings: Tensor | None = None,
    k: int = 5,
    temperature: float = 0.07,
    max_linear_samples: int = 50_000,
    max_rankme_samples: int = 25_600,
    labels_per_class: int = 5,
    few_label_draws: int = 20,
) -> dict[str, float]:
    """Run every offline protocol on one set of frozen features.

    Without labels, in training or in validation, the result holds the two ranks only and a warning
    says so.

    Args:
        train_features: Features of the training set, of shape ``(N, F)``.
        train_labels: Classes ``0..C-1`` of shape ``(N,)``; -1 is unlabelled.
        val_features: Features of the validation set, of shape ``(M, F)``.
        val_labels: Classes of shape ``(M,)``; -1 is unlabelled.
        val_embeddings: Projector outputs of the validation set, of shape ``(M, D)``. Features that
            have no projector (pixels) are their own embeddings.
        k: Neighbours that vote in the k-NN.
        temperature: Temperature of the neighbours' votes.
        max_linear_samples: Most training samples the logistic regression is fitted on.
        max_rankme_samples: Most samples an effective rank is taken over (the paper of RankMe).
        labels_per_class: Labelled samples a class in the few-label protocol.
        few_label_draws: Seeded draws the few-label protocol averages over.

    Returns:
        ``linear_top1``, ``knn_top1``, ``few_label_top1`` and ``few_label_std`` (the spread over the
        draws) as fractions; ``rankme``, the effective rank of the validation embeddings, and
        ``rankme_features``, that of the validation features.

    Raises:
        ValueError: If shapes do not match, a feature is NaN or infinite, or there is one class.
    """
    _check(train_features, train_labels, "train")
    _check(val_features, val_labels, "val")
    embeddings = val_features if val_embeddings is None else val_embeddings
    ranks = {
        "rankme": effective_rank(embeddings, max_rankme_samples),
        "rankme_features": effective_rank(val_features, max_rankme_samples),
    }
    if (train_labels < 0).all() or (val_labels < 0).all():
        warnings.warn(
            "The training or the validation set has no labels: only RankMe is computed. Set a "
            "labelled set for evaluation to get accuracies.",
            stacklevel=2,
        )
        return ranks
    sets = (train_features, train_labels, val_features, val_labels)
    few, spread = few_label_top1(*sets, per_class=labels_per_class, draws=few_label_draws)
    return {
        "linear_top1": linear_top1(*sets, max_samples=max_linear_samples),
        "knn_top1": knn_top1(*sets, k=k, temperature=temperature),
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
    max_samples: int = 50_000,
    seed: int = 0,
) -> float:
    """Top-1 accuracy of a logistic regression on standardised features.

    Multinomial, L2 penalty with C = 1, L-BFGS; each feature has mean 0 and variance 1 over the
    training set (a constant one stays 0). More than ``max_samples`` training samples are cut to a
    random ``max_samples`` of them, with a warning.

    Args:
        train_features: Features of shape ``(N, F)``.
        train_labels: Classes of shape ``(N,)``.
        val_features: Features of shape ``(M, F)``.
        val_labels: Classes of shape ``(M,)``.
        max_samples: Most training samples.
        seed: Seed of the cut.

    Returns:
        Accuracy in [0, 1].

    Raises:
        ValueError: If shapes do not match, a feature is not finite, or there is one class.
    """
    train, labels, val, val_labels_ = _labelled(
        train_features, train_labels, val_features, val_labels
    )
    if len(train) > max_samples:
        warnings.warn(
            f"The logistic regression is fitted on {max_samples} of {len(train)} training samples, "
            "drawn at random: raise max_linear_samples for more.",
            stacklevel=2,
        )
        kept = np.random.default_rng(seed).permutation(len(train))[:max_samples]
        train, labels = train[kept], labels[kept]
    train, val = _standardise(train, val)
    return _fit_and_score(train, labels, val, val_labels_)


def few_label_top1(
    train_features: Tensor,
    train_labels: Tensor,
    val_features: Tensor,
    val_labels: Tensor,
    *,
    per_class: int = 5,
    draws: int = 20,
    seed: int = 0,
) -> tuple[float, float]:
    """Top-1 accuracy of the logistic regression with a few labels a class, over seeded draws.

    Features are standardised with the statistics of the whole training set, which need no label;
    draw i takes ``per_class`` samples of each class (all, where there are fewer) with the generator
    ``default_rng(seed + i)``, so draws are the same for every network.

    Args:
        train_features: Features of shape ``(N, F)``.
        train_labels: Classes of shape ``(N,)``.
        val_features: Features of shape ``(M, F)``.
        val_labels: Classes of shape ``(M,)``.
        per_class: Labelled samples a class.
        draws: Number of draws.
        seed: Seed of the first draw.

    Returns:
        Mean accuracy in [0, 1] and its sample standard deviation over the draws.

    Raises:
        ValueError: If shapes do not match, a feature is not finite, there is one class, or
            ``per_class`` or ``draws`` is below 1.
    """
    if per_class < 1 or draws < 1:
        raise ValueError(
            f"Expected `per_class` and `draws` to be at least 1, but got {per_class} and {draws}."
        )
    train, labels, val, val_labels_ = _labelled(
        train_features, train_labels, val_features, val_labels
    )
    train, val = _standardise(train, val)
    members = [np.flatnonzero(labels == c) for c in np.unique(labels)]
    scores = []
    for draw in range(draws):
        generator = np.random.default_rng(seed + draw)
        chosen = np.concatenate([generator.permutation(indices)[:per_class] for indices in members])
        scores.append(_fit_and_score(train[chosen], labels[chosen], val, val_labels_))
    return float(np.mean(scores)), float(np.std(scores, ddof=1)) if draws > 1 else 0.0


def knn_top1(
    train_features: Tensor,
    train_labels: Tensor,
    val_features: Tensor,
    val_labels: Tensor,
    *,
    k: int = 5,
    temperature: float = 0.07,
) -> float:
    """Top-1 accuracy of the weighted k-NN of :func:`knn_votes`.

    Args:
        train_features: Features of shape ``(N, F)``.
        train_labels: Classes of shape ``(N,)``.
        val_features: Features of shape ``(M, F)``.
        val_labels: Classes of shape ``(M,)``.
        k: Neighbours that vote.
        temperature: Temperature of the votes.

    Returns:
        Accuracy in [0, 1].

    Raises:
        ValueError: If shapes do not match, a feature is not finite, or an argument is out of range.
    """
    _check(train_features, train_labels, "train")
    _check(val_features, val_labels, "val")
    in_train, in_val = train_labels >= 0, val_labels >= 0
    bank, bank_labels = train_features[in_train], train_labels[in_train]
    queries, targets = val_features[in_val], val_labels[in_val]
    if not len(bank) or not len(queries):
        raise ValueError(_no_labels(len(bank), len(queries)))
    num_classes = int(bank_labels.max()) + 1
    votes = knn_votes(bank, bank_labels, queries, num_classes, k=k, temperature=temperature)
    return (votes.argmax(1) == targets).double().mean().item()


def knn_votes(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    num_classes: int,
    *,
    k: int = 20,
    temperature: float = 0.07,
) -> Tensor:
    r"""Votes of the k nearest neighbours for each class, on cosine similarity.

    .. math:: v_{qc} = \sum_{i \in N_k(q),\, y_i = c} \exp((s_{qi} - \max_j s_{qj}) / T)

    Each query's votes are divided by its largest weight, which leaves their order and keeps them
    finite at any temperature. Similarities are computed in blocks of at most 64 MiB.

    Args:
        bank: Features with known classes, of shape ``(N, F)``, not necessarily normalised.
        bank_labels: Their classes in ``0..num_classes-1``, of shape ``(N,)``.
        queries: Features to classify, of shape ``(M, F)``.
        num_classes: Number C of classes.
        k: Neighbours that vote; clamped to ``N``.
        temperature: T; the lower, the more the nearest decides.

    Returns:
        Votes of shape ``(M, C)``, float32, on the device of ``queries``.

    Raises:
        ValueError: If ``k`` or ``temperature`` is not positive, or the bank is empty.

    Source: Wu et al., Unsupervised feature learning via non-parametric instance discrimination,
    CVPR 2018, section 3.4, https://arxiv.org/abs/1805.01978
    """
    if k < 1 or not temperature > 0:
        raise ValueError(
            f"Expected `k` >= 1 and `temperature` > 0, but got k={k} and temperature={temperature}."
        )
    if not len(bank):
        raise ValueError("Expected a bank of at least one feature, but got an empty one.")
    k = min(k, len(bank))
    bank, queries = normalize(bank.float(), dim=1), normalize(queries.float(), dim=1)
    blocks = []
    for block in queries.split(max(1, _BLOCK // len(bank))):
        similarities, neighbours = (block @ bank.T).topk(k, dim=1)
        weights = ((similarities - similarities[:, :1]) / temperature).exp()
        votes = weights.new_zeros(len(block), num_classes)
        blocks.append(votes.scatter_add_(1, bank_labels[neighbours], weights))
    return torch.cat(blocks) if blocks else queries.new_zeros(0, num_classes)


def effective_rank(features: Tensor, max_samples: int = 25_600) -> float:
    """RankMe of at most ``max_samples`` rows, spread evenly over the set.

    Args:
        features: Features or embeddings of shape ``(N, F)``.
        max_samples: Most rows; 25,600 in the paper of RankMe.

    Returns:
        Effective rank in ``[1, min(N, F)]``.
    """
    if len(features) > max_samples:
        rows = torch.linspace(0, len(features) - 1, max_samples, dtype=torch.float64).round().long()
        features = features[rows.to(features.device)]
    return rankme(features.float()).item()


def _fit_and_score(train: np.ndarray, labels: np.ndarray, val: np.ndarray, y: np.ndarray) -> float:
    model = LogisticRegression(C=1.0, max_iter=1000)
    with warnings.catch_warnings():
        # at 1000 iterations the accuracy has long settled; the loss's last digits have not
        warnings.simplefilter("ignore", ConvergenceWarning)
        return float(model.fit(train, labels).score(val, y))


def _standardise(train: np.ndarray, val: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean, std = train.mean(axis=0, dtype=np.float64), train.std(axis=0, dtype=np.float64)
    # a constant feature has a std of rounding errors, not always of 0
    std[std <= 1e-6 * np.abs(mean) + 1e-12] = np.inf
    scale, shift = std.astype(np.float32), mean.astype(np.float32)
    return (train - shift) / scale, (val - shift) / scale


def _labelled(
    train_features: Tensor, train_labels: Tensor, val_features: Tensor, val_labels: Tensor
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Check the sets, drop the unlabelled samples, and go to NumPy."""
    _check(train_features, train_labels, "train")
    _check(val_features, val_labels, "val")
    in_train, in_val = train_labels >= 0, val_labels >= 0
    y, y_val = train_labels[in_train].cpu().numpy(), val_labels[in_val].cpu().numpy()
    if not len(y) or not len(y_val):
        raise ValueError(_no_labels(len(y), len(y_val)))
    if len(np.unique(y)) < 2:
        raise ValueError(
            f"Expected at least 2 classes in the training set, but all {len(y)} labels are {y[0]}."
        )
    x = train_features[in_train].detach().float().cpu().numpy()
    return x, y, val_features[in_val].detach().float().cpu().numpy(), y_val


def _no_labels(train: int, val: int) -> str:
    return (
        f"Expected labelled samples in both sets, but got {train} in training and {val} in "
        "validation (a label of -1 is no label)."
    )


def _check(features: Tensor, labels: Tensor, name: str) -> None:
    if features.ndim != 2 or labels.shape != features.shape[:1]:
        raise ValueError(
            f"Expected `{name}_features` of shape (N, F) and `{name}_labels` of shape (N,), but got"
            f" {tuple(features.shape)} and {tuple(labels.shape)}."
        )
    if not features.isfinite().all():
        raise ValueError(
            f"Expected finite `{name}_features`, but some are NaN or infinite: the network has "
            "diverged. Evaluate an earlier checkpoint."
        )
