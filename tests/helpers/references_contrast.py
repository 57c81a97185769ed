"""NSCL, SupCon and MoCo v3 as loops over samples; see :mod:`helpers.references`."""

from collections.abc import Sequence
from typing import Any

from helpers.references import CONTRASTS, Array, like, logsumexp, normalized, unit_rows
from torch import Tensor

SIMILARITIES = {"cosine": lambda p: p, "squared": lambda p: p * p, "absolute": abs}


def nscl(
    z1: Array,
    z2: Array,
    labels: Tensor,
    temperature: float,
    similarity: str = "cosine",
    normalization: str = "embeddings",
) -> Any:
    views, classes = [normalized(z, normalization) for z in (z1, z2)], labels.tolist()
    n, value, loss = len(z1), SIMILARITIES[similarity], 0.0
    for view in (0, 1):
        for i in range(n):
            u = views[view][i]
            others = [v[j] for v in views for j in range(n) if classes[j] != classes[i]]
            loss += logsumexp([value(u @ other) / temperature for other in others])
            loss -= value(u @ views[1 - view][i]) / temperature
    return loss / (2 * n)


def supcon(z1: Array, z2: Array, labels: Tensor, temperature: float) -> Any:
    rows = [*unit_rows(z1), *unit_rows(z2)]
    classes, loss = 2 * labels.tolist(), 0.0
    for i, u in enumerate(rows):
        others = [j for j in range(len(rows)) if j != i]
        positives = [j for j in others if classes[j] == classes[i]]
        loss += logsumexp([u @ rows[j] / temperature for j in others])
        loss -= sum(u @ rows[j] / temperature for j in positives) / len(positives)
    return loss / len(rows)


def mocov3(z1: Array, z2: Array, targets: Sequence[Tensor], temperature: float) -> Any:
    loss = 0.0
    for z, target in ((z1, targets[1]), (z2, targets[0])):
        queries, keys = unit_rows(z), unit_rows(like(target, z))
        for i, q in enumerate(queries):
            logits = [q @ k / temperature for k in keys]
            loss += 2 * temperature * (logsumexp(logits) - logits[i]) / len(queries)
    return loss


CRITERIA = {
    "NSCL": (nscl, CONTRASTS),
    "SupCon": (supcon, [{}, {"temperature": 0.5}]),
    "MoCoV3": (mocov3, [{}, {"temperature": 0.2}]),
}
