"""Weighted k nearest neighbours."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from duality_ssl.evaluation.sets import labelled_sets
from duality_ssl.evaluation.settings import DEFAULTS

_BLOCK = 2**24  # similarities computed at a time: 64 MiB of float32
_ROWS = 2**16  # of the bank, processed at a time


def knn_top1(
    train_features: Tensor,
    train_labels: Tensor,
    val_features: Tensor,
    val_labels: Tensor,
    *,
    k: int = DEFAULTS.k,
    temperature: float = DEFAULTS.temperature,
    device: torch.device | str | None = None,
) -> float:
    """Top-1 accuracy of a weighted k-NN, the class with the most votes of `knn_votes`.

    Args:
        train_features: Features of shape ``(N, F)``.
        train_labels: Classes of shape ``(N,)``; -1 is unlabelled.
        val_features: Features of shape ``(M, F)``.
        val_labels: Classes of shape ``(M,)``; -1 is unlabelled.
        k: Neighbours that vote.
        temperature: Temperature of the votes.
        device: Device that compares features; by default that of the validation set.

    Returns:
        Accuracy in [0, 1].

    Raises:
        ValueError: If shapes do not match, a feature is not finite, or an argument is out of range.
    """
    sets = labelled_sets(train_features, train_labels, val_features, val_labels)
    classes = int(sets.train_labels.max()) + 1
    val = sets.val.to(device)
    votes = knn_votes(sets.train, sets.train_labels, val, classes, k=k, temperature=temperature)
    predicted = votes.argmax(1).to(sets.val_labels.device)
    return (predicted == sets.val_labels).double().mean().item()


def knn_votes(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    num_classes: int,
    *,
    k: int,
    temperature: float,
) -> Tensor:
    r"""Votes of the k nearest neighbours for each class, on cosine similarity.

    .. math:: v_{qc} = \sum_{i \in N_k(q),\, y_i = c} \exp((s_{qi} - \max_j s_{qj}) / T)

    Each query's votes are divided by its largest weight, which keeps their order, and keeps them
    finite at any temperature. The bank may be on another device: it is read once, in pieces of at
    most 65,536 rows. Similarities are computed in blocks of at most 64 MiB.

    Args:
        bank: Features with known classes, of shape ``(N, F)``, not necessarily normalized.
        bank_labels: Their classes in ``0..num_classes-1``, of shape ``(N,)``.
        queries: Features to classify, of shape ``(M, F)``.
        num_classes: Number C of classes.
        k: Neighbours that vote; clamped to ``N``.
        temperature: T; the lower, the more the nearest decides.

    Returns:
        Votes of shape ``(M, C)``, float32, on the device of ``queries``.

    Raises:
        ValueError: If ``k`` or ``temperature`` is not positive.

    Source: Wu et al., Unsupervised feature learning via non-parametric instance discrimination,
    CVPR 2018, section 3.4, https://arxiv.org/abs/1805.01978
    """
    if k < 1 or not temperature > 0:
        raise ValueError(
            f"Expected `k` >= 1 and `temperature` > 0, but got k={k} and temperature={temperature}."
        )
    k = min(k, len(bank))
    queries = normalize(queries.float(), dim=1)
    # the nearest so far; every -inf is replaced, since all pieces together have at least k rows
    nearest = queries.new_full((len(queries), k), -torch.inf)
    classes = torch.zeros_like(nearest, dtype=torch.long)
    for piece, labels in zip(bank.split(_ROWS), bank_labels.split(_ROWS), strict=True):
        rows, of = normalize(piece.to(queries), dim=1), labels.to(queries.device)
        step = max(1, _BLOCK // len(rows))
        for block in (slice(i, i + step) for i in range(0, len(queries), step)):
            similarities, at = (queries[block] @ rows.T).topk(min(k, len(rows)), dim=1)
            nearest[block], best = torch.cat([nearest[block], similarities], 1).topk(k, dim=1)
            classes[block] = torch.cat([classes[block], of[at]], 1).gather(1, best)
    weights = ((nearest - nearest[:, :1]) / temperature).exp()
    return queries.new_zeros(len(queries), num_classes).scatter_add_(1, classes, weights)
