"""Means over the training batches of an epoch that survive a resume within the epoch."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
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


class EpochMonitor(Callback, ABC):
    """Logs the mean over an epoch of what :meth:`measure` finds in its batches.

    Args:
        every_n_steps: Batches between two measurements within an epoch; the first is measured.
        max_samples: Most rows of each view that are looked at.

    Raises:
        ValueError: If ``every_n_steps`` is below 1 or ``max_samples`` below 2.
    """

    def __init__(self, every_n_steps: int = 50, max_samples: int = 1024) -> None:
        if every_n_steps < 1 or max_samples < 2:
            raise ValueError(
                "Expected `every_n_steps` >= 1 and `max_samples` >= 2, but got "
                f"{every_n_steps} and {max_samples}."
            )
        self.every_n_steps = every_n_steps
        self.max_samples = max_samples
        self._means = EpochMeans()

    @abstractmethod
    def measure(self, outputs: Any) -> Iterable[Mapping[str, Tensor]]:
        """Yield metrics of the outputs of a training step, each time under the same names."""

    def state_dict(self) -> dict[str, Any]:
        return self._means.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._means.load_state_dict(state_dict)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._means.to(pl_module.device)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._means.reset()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._means.log(pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx % self.every_n_steps == 0:
            for metrics in self.measure(outputs):
                self._means.add(metrics)
