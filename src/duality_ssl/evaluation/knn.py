"""Weighted k nearest neighbors."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from duality_ssl.evaluation.sets import Device, LabelledSets, labelled_sets
from duality_ssl.evaluation.settings import DEFAULTS, Settings

_BLOCK = 2**24  # similarities computed at a time: 64 MiB of float32
_ROWS = 2**16  # of the bank, processed at a time


def knn(sets: LabelledSets, settings: Settings, device: Device = None) -> dict[str, Any]:
    """Accuracy of the k-NN: ``knn_top1`` of the first k, ``knn{k}_top1`` of each further one."""
    first, *others = settings.ks
    accuracies = knn_accuracies(sets, settings.ks, temperature=settings.temperature, device=device)
    return {"knn_top1": accuracies[first]} | {f"knn{k}_top1": accuracies[k] for k in others}


def knn_top1(
    train_features: Tensor,
    train_labels: Tensor,
    val_features: Tensor,
    val_labels: Tensor,
    *,
    k: int = DEFAULTS.ks[0],
    temperature: float = DEFAULTS.temperature,
    device: Device = None,
) -> float:
    """Top-1 accuracy of a weighted k-NN, the class with the most votes of `knn_votes`.

    Args:
        train_features: Features of shape ``(N, F)``.
        train_labels: Classes of shape ``(N,)``; -1 is unlabelled.
        val_features: Features of shape ``(M, F)``.
        val_labels: Classes of shape ``(M,)``; -1 is unlabelled.
        k: Neighbors that vote.
        temperature: Temperature of the votes.
        device: Device that compares features; by default that of the validation set.

    Returns:
        Accuracy in [0, 1].

    Raises:
        ValueError: If shapes do not match, a feature is not finite, or an argument is out of range.
    """
    sets = labelled_sets(train_features, train_labels, val_features, val_labels)
    return knn_accuracies(sets, [k], temperature=temperature, device=device)[k]


def knn_accuracies(
    sets: LabelledSets, ks: Sequence[int], *, temperature: float, device: Device = None
) -> dict[int, float]:
    """Compute the top-1 accuracy of the k-NN for each k, from one search of the largest."""
    classes = int(sets.train_labels.max()) + 1
    similarities, found = nearest_neighbors(
        sets.train, sets.train_labels, sets.val.to(device), k=max(ks)
    )
    accuracies = {}
    for k in ks:
        votes = count_votes(similarities[:, :k], found[:, :k], classes, temperature=temperature)
        right = votes.argmax(1).to(sets.val_labels.device) == sets.val_labels
        accuracies[k] = right.double().mean().item()
    return accuracies


def knn_votes(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    num_classes: int,
    *,
    k: int,
    temperature: float,
) -> Tensor:
    r"""Votes of the k nearest neighbors for each class, on cosine similarity.

    .. math:: v_{qc} = \sum_{i \in N_k(q),\, y_i = c} \exp((s_{qi} - \max_j s_{qj}) / T)

    Each query's votes are divided by its largest weight, which keeps their order, and keeps them
    finite at any temperature.

    Args:
        bank: Features with known classes, of shape ``(N, F)``, not necessarily normalized.
        bank_labels: Their classes in ``0..num_classes-1``, of shape ``(N,)``.
        queries: Features to classify, of shape ``(M, F)``.
        num_classes: Number C of classes.
        k: Neighbors that vote; clamped to ``N``.
        temperature: T; the lower, the more the nearest decides.

    Returns:
        Votes of shape ``(M, C)``, float32, on the device of ``queries``.

    Raises:
        ValueError: If ``k`` or ``temperature`` is not positive.

    Source: Wu et al., Unsupervised feature learning via non-parametric instance discrimination,
    CVPR 2018, section 3.4, https://arxiv.org/abs/1805.01978
    """
    similarities, classes = nearest_neighbors(bank, bank_labels, queries, k=k)
    return count_votes(similarities, classes, num_classes, temperature=temperature)


def nearest_neighbors(
    bank: Tensor, bank_labels: Tensor, queries: Tensor, *, k: int
) -> tuple[Tensor, Tensor]:
    """Find the k rows of a bank that are nearest to each query by cosine similarity.

    The bank may be on another device: it is read once, in pieces of at most 65,536 rows.
    Similarities are computed in blocks of at most 64 MiB.

    Args:
        bank: Features of shape ``(N, F)``, not necessarily normalized.
        bank_labels: Their classes, of shape ``(N,)``.
        queries: Features of shape ``(M, F)``.
        k: Neighbors of each query; clamped to ``N``.

    Returns:
        Similarities, float32, and classes of the neighbors, the nearest first, of shape ``(M, k)``
        and on the device of ``queries``.

    Raises:
        ValueError: If ``k`` is not positive.
    """
    if k < 1:
        raise ValueError(f"Expected `k` to be at least 1, but got {k}.")
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
    return nearest, classes


def count_votes(
    similarities: Tensor, classes: Tensor, num_classes: int, *, temperature: float
) -> Tensor:
    """Count the weighted votes of each query's neighbors, see `knn_votes`.

    Args:
        similarities: Of the neighbors, the nearest first, of shape ``(M, k)``.
        classes: Their classes, of shape ``(M, k)``.
        num_classes: Number C of classes.
        temperature: T of the weights.

    Returns:
        Votes of shape ``(M, C)``.

    Raises:
        ValueError: If ``temperature`` is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"Expected `temperature` to be above 0, but got {temperature}.")
    weights = ((similarities - similarities[:, :1]) / temperature).exp()
    votes = weights.new_zeros(len(weights), num_classes)
    return votes.scatter_add_(1, classes, weights)
