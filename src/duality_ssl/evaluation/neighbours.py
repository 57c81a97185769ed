"""Weighted k nearest neighbours, for the online and the offline accuracy alike."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

# one block of similarities in float32: 64 MiB
_BLOCK = 2**24
# rows of the bank that are in hand at a time
_ROWS = 2**16


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

    Each query's votes are divided by its largest weight, which leaves their order and keeps them
    finite at any temperature. The bank is read once, in pieces of at most 65,536 rows, which may
    come from another device; similarities exist in blocks of at most 64 MiB.

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
    queries = normalize(queries.float(), dim=1)
    # the nearest so far; -inf is replaced, for all pieces together have k rows
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
