"""Means over the training batches of an epoch that survive a resume within the epoch."""

from collections.abc import Mapping
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor

from duality_ssl.distributed import all_gather_rows, all_reduce_sum, rank, world_size


class EpochMeans:
    """Weighted means of metrics over an epoch and all processes.

    Lightning keeps those of ``self.log(..., on_epoch=True)`` in no checkpoint. A callback calls
    `to` in ``on_train_start``, `reset` in ``on_train_epoch_start`` and `log` in
    ``on_train_epoch_end``, and makes the state a part of its own.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start an epoch."""
        self._names: list[str] = []
        self._sums = torch.empty(0)

    def to(self, device: torch.device) -> None:
        """Move restored sums to the device of the metrics."""
        self._sums = self._sums.to(device)

    def add(self, metrics: Mapping[str, Tensor], weight: int = 1) -> None:
        """Count a batch.

        Args:
            metrics: Scalars; the same names in every batch and process.
            weight: Number of samples that they are means of.
        """
        values = [weight * value.detach() for value in metrics.values()]
        row = torch.stack([*values, torch.full_like(values[0], weight)])
        self._sums = self._sums + row if self._names else row
        self._names = list(metrics)

    def log(self, pl_module: LightningModule) -> None:
        """Log the means under the names that they were added by; nothing without a batch."""
        if self._names:
            *totals, weight = all_reduce_sum(self._sums)
            means = {name: total / weight for name, total in zip(self._names, totals, strict=True)}
            pl_module.log_dict(means, sync_dist=True, batch_size=1)

    def state_dict(self) -> dict[str, Any]:
        """The names, and the sums of each process; call it on every process."""
        if not self._names:
            return {}
        return {"names": self._names, "sums": all_gather_rows(self._sums[None])}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue this process's sums; with another number of processes, start again."""
        self.reset()
        if state_dict and len(state_dict["sums"]) == world_size():
            self._names, self._sums = state_dict["names"], state_dict["sums"][rank()]
