"""Criteria on codes and prototypes again, as float64 loops, one sample at a time.

Every function works on tensors, so that autograd differentiates it, and takes arrays, too.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from duality_ssl.functional import random_codes


def numbers(*arrays: Any) -> list[Tensor]:
    return [torch.as_tensor(array) for array in arrays]


def log_softmax(scores: Tensor) -> Tensor:
    top = scores.max().detach()
    return scores - top - sum((score - top).exp() for score in scores).log()


def log_softmaxes(rows: Sequence[Tensor]) -> list[Tensor]:
    """As above, for scores that are too many for a loop."""
    return [row - row.logsumexp(dim=0) for row in rows]


def mean(values: Sequence[Any]) -> Any:
    return sum(values) / len(values)


def cross_entropy(p: Sequence[Tensor], log_q: Sequence[Tensor]) -> Any:
    """A mean over samples."""
    return -mean([a @ b for a, b in zip(p, log_q, strict=True)])


def cplearn(
    z1: Any,
    z2: Any,
    dimensions: int,
    num_codes: int,
    invariance: float,
    temperature: float | None,
    seed: int,
) -> Any:
    codes = random_codes(dimensions, num_codes, seed).double()
    if temperature is None:
        temperature = dimensions / (8 * math.log((1 - 1e-8 * (num_codes - 1)) / 1e-8))
    logs = [
        [log_softmax(torch.stack([h @ code for code in codes.T]) / temperature) for h in z]
        for z in numbers(z1, z2)
    ]
    loss: Any = 0.0
    for log_p, log_q in (logs, logs[::-1]):
        for j in range(num_codes):
            log_m = torch.stack([row[j] for row in log_p]).logsumexp(dim=0) - math.log(len(log_p))
            loss = loss + log_m.exp() * (log_m + math.log(num_codes)) / 2
        loss = loss + invariance * cross_entropy([row.exp() for row in log_p], log_q) / 2
    return loss


def sinkhorn(scores: Tensor, iterations: int) -> Tensor:
    """The authors' form, without logarithms: a column of weights a sample, a row a prototype."""
    q = scores.exp().T
    q = q / q.sum()
    prototypes, samples = q.shape
    for _ in range(iterations):
        for k in range(prototypes):
            q[k] = q[k] / q[k].sum() / prototypes
        for i in range(samples):
            q[:, i] = q[:, i] / q[:, i].sum() / samples
    return q.T * samples


def swapped_prediction(codes: Sequence[Any], logits: Sequence[Any]) -> Any:
    """One pair of views after the other."""
    pairs = [(w, v) for w in range(len(codes)) for v in range(len(logits)) if v != w]
    return mean([cross_entropy(codes[w], log_softmaxes(logits[v])) for w, v in pairs])


def swav(
    z1: Any,
    z2: Any,
    *small: Any,
    prototypes: Tensor,
    temperature: float,
    epsilon: float,
    iterations: int,
    queued: Tensor | None = None,
) -> Any:
    """With embeddings of earlier batches, ``(2, queue, D)``, if any."""
    units = [c / c.norm() for c in prototypes.double()]

    def scores(z: Tensor) -> Tensor:
        return torch.stack([torch.stack([row @ c / row.norm() for c in units]) for row in z])

    views = [scores(z) for z in numbers(z1, z2, *small)]
    balanced = [s.detach() for s in views[:2]]
    if queued is not None and queued.numel():
        balanced = [
            torch.cat([s, scores(z)]).detach() for s, z in zip(balanced, queued, strict=True)
        ]
    codes = [sinkhorn(s / epsilon, iterations) for s in balanced]
    return swapped_prediction([q[: len(z1)] for q in codes], [s / temperature for s in views])


def dino(
    z1: Any,
    z2: Any,
    *small: Any,
    targets: Sequence[Tensor],
    center: Tensor,
    temperature: float,
    teacher_temperature: float,
    initial_teacher_temperature: float = 0.04,
    teacher_warmup_steps: int = 0,
    step: int = 0,
) -> Any:
    done = min(1.0, step / teacher_warmup_steps) if teacher_warmup_steps else 1.0
    tau = (1 - done) * initial_teacher_temperature + done * teacher_temperature
    codes = [[row.exp() for row in log_softmaxes((t - center) / tau)] for t in targets]
    return swapped_prediction(codes, [z / temperature for z in numbers(z1, z2, *small)])


CRITERIA: dict[str, tuple[Callable[..., Any], list[dict[str, Any]]]] = {
    "CPLearn": (cplearn, [{}, {"num_codes": 9, "invariance": 2, "temperature": 2}]),
    "SwAV": (
        swav,
        [
            {},
            {"num_prototypes": 7, "temperature": 0.5, "epsilon": 0.2, "iterations": 5},
        ],
    ),
    "DINO": (
        dino,
        [
            {},
            {"temperature": 0.5, "teacher_temperature": 0.07, "teacher_warmup_steps": 12},
        ],
    ),
}
