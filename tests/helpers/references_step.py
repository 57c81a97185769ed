"""The criterion of BYOL and SimSiam again, as plain loops over float64 numbers."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

Array = Any


def regression(z1: Array, z2: Array, targets: Sequence[Array], scale: float) -> float:
    """A pair of a prediction and a target of the other view at a time."""
    z1, z2 = torch.as_tensor(z1), torch.as_tensor(z2)
    total: Any = 0.0
    for predictions, aims in ((z1, targets[1]), (z2, targets[0])):
        for p, t in zip(predictions, aims, strict=True):
            total += 2 - 2 * (p @ t) / ((p @ p) * (t @ t)) ** 0.5
    return scale * total / (2 * len(z1))


CRITERIA: dict[str, tuple[Callable[..., float], list[dict[str, Any]]]] = {
    "Regression": (regression, [{}, {"scale": 0.5}]),
}
