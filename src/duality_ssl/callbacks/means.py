"""Means over the training batches of an epoch that survive a resume within the epoch."""

from collections.abc import Mapping

import torch
from lightning import LightningModule
from torch import Tensor

from duality_ssl.distributed import all_gather_rows, all_reduce_sum, rank, world_size

_WEIGHT = "weight"  # beside the metrics, whose names have a slash


class EpochMeans:
    """Weighted means of metrics over an epoch and all processes.

    Lightning keeps those of ``self.log(..., on_epoch=True)`` in no checkpoint.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def to(self, device: torch.device) -> None:
        """Move restored sums to the device of the metrics."""
        self._sums = {name: total.to(device) for name, total in self._sums.items()}

    def reset(self) -> None:
        """Start an epoch."""
        self._sums = {}

    def add(self, metrics: Mapping[str, Tensor], weight: float = 1) -> None:
        """Count scalar means of ``weight`` samples, the same names in every batch and process."""
        new = {name: weight * value.detach() for name, value in metrics.items()}
        new[_WEIGHT] = torch.full_like(next(iter(new.values())), weight)
        self._sums = {name: self._sums.get(name, 0) + value for name, value in new.items()}

    def log(self, pl_module: LightningModule) -> None:
        """Log the means under their names; nothing without a batch."""
        if self._sums:
            *totals, weight = all_reduce_sum(torch.stack([*self._sums.values()]))
            means = dict(zip(self._sums, [total / weight for total in totals], strict=False))
            pl_module.log_dict(means, sync_dist=True, batch_size=1)

    def state_dict(self) -> dict[str, Tensor]:
        """The sums of each process; call it on every process."""
        return {name: all_gather_rows(total[None]) for name, total in self._sums.items()}

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Continue this process's sums; with another number of processes, start again."""
        same = all(len(sums) == world_size() for sums in state_dict.values())
        self._sums = {name: sums[rank()] for name, sums in state_dict.items()} if same else {}
