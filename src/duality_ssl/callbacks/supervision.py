"""How far contrast without labels is from contrast with labels, for every method."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from duality_ssl.callbacks.means import EpochMonitor
from duality_ssl.callbacks.outputs import step_rows, views
from duality_ssl.distributed import process_group
from duality_ssl.functional import supervision_gap, supervision_gap_bound


class SupervisionGap(EpochMonitor):
    r"""Logs how far DCL is above NSCL on the embeddings, and theorem 1's bound on it.

    On the embeddings of the first two views that the criterion saw (all processes) and their
    labels, whatever the criterion; averaged over an epoch: ``supervision/gap``,
    :func:`~duality_ssl.functional.supervision_gap`, and ``supervision/bound``,
    :func:`~duality_ssl.functional.supervision_gap_bound`. Samples without label (-1) are left out,
    and batches that then have one class.

    Args:
        temperature: :math:`\tau` of both losses, positive: that of the run's criterion for its own
            gap.
        every_n_steps: Batches between two measurements within an epoch; the first is measured.
        max_samples: Most rows of each view that are looked at.

    Raises:
        ValueError: If ``temperature`` is not positive, ``every_n_steps`` is below 1 or
            ``max_samples`` below 2.

    Source: Luthra et al., NeurIPS 2025, theorem 1, https://arxiv.org/abs/2506.04411
    """

    def __init__(
        self, temperature: float = 0.1, every_n_steps: int = 50, max_samples: int = 1024
    ) -> None:
        super().__init__(every_n_steps, max_samples)
        if not temperature > 0:
            raise ValueError(f"Expected `temperature` to be positive, but got {temperature}.")
        self.temperature = temperature

    @torch.no_grad()
    def measure(self, outputs: Any) -> Iterator[dict[str, Tensor]]:
        z1, z2, *_ = views(outputs, "embeddings", "training_step")
        labels = step_rows(outputs, ["embeddings", "labels"], "training_step")["labels"]
        gathered = map(process_group().all_gather, (z1, z2, labels[: len(z1)]))
        z1, z2, labels = (each[: self.max_samples] for each in gathered)
        z1, z2, labels = (each[labels >= 0] for each in (z1, z2, labels))
        if (labels != labels[:1]).any():
            gap = supervision_gap(z1, z2, labels, self.temperature)
            bound = supervision_gap_bound(labels, self.temperature)
            yield {"supervision/gap": gap, "supervision/bound": bound.to(gap)}
