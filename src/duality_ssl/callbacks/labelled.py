"""Shared by the callbacks that need labels: number of classes, roles of the loaders, accuracies."""

from collections.abc import Sequence
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from duality_ssl.callbacks.outputs import step_rows


class LabelledCallback(Callback):
    """A callback that is off, with one warning, if the number of classes is not known.

    The number is an argument, or the data module's ``num_classes`` (None without labels). The data
    module's ``probe_is_pretrain`` says whether pretraining batches have the labels. The last
    validation loader is the validation set; an earlier one is a labelled set to learn from instead.

    Args:
        num_classes: Number of classes; by default that of the data module.

    Raises:
        ValueError: If it is below 1, or a label is not below it.
    """

    def __init__(self, num_classes: int | None = None) -> None:
        if num_classes is not None and num_classes < 1:
            raise ValueError(f"Expected `num_classes` of at least 1, but got {num_classes}.")
        self.num_classes = num_classes
        self._given = num_classes
        self._warned = False
        self._checked: set[str] = set()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Read the number of classes; warn once if it is not known."""
        datamodule = getattr(trainer, "datamodule", None)
        known = getattr(datamodule, "num_classes", None)
        self.num_classes = known if self._given is None else self._given
        self._checked.clear()
        if self.num_classes is None and stage in ("fit", "validate") and not self._warned:
            name = type(self).__name__
            rank_zero_warn(
                f"{name} is off: the data has no labels, or no known number of classes. In Python, "
                f"pass {name}(num_classes=...) for labelled batches; on the command line, name a "
                "labelled set with --data.probe_source or --data.probe_root."
            )
            self._warned = True

    def labelled(self, outputs: Any, names: Sequence[str], step: str) -> dict[str, Tensor]:
        """`step_rows` of these entries and ``labels``, which are below the number of classes."""
        found = step_rows(outputs, [*names, "labels"], step)
        if step not in self._checked:  # the first batch only, since it waits for the device
            self._checked.add(step)
            highest = int(found["labels"].max())
            if highest >= (self.num_classes or 0):
                raise ValueError(
                    f"Expected labels below the number of classes, {self.num_classes}, but "
                    f"`{step}` returned {highest}: pass {type(self).__name__}(num_classes=...) "
                    "with all of them."
                )
        return found

    @staticmethod
    def learns_in_validation(trainer: Trainer) -> bool:
        """Whether the labels are in an earlier validation loader, not in the training batches."""
        return not getattr(getattr(trainer, "datamodule", None), "probe_is_pretrain", True)


def is_validation_set(trainer: Trainer, dataloader_idx: int) -> bool:
    """Whether a validation loader is the validation set: the last one is."""
    return dataloader_idx == len(trainer.num_val_batches) - 1


def accuracies(num_classes: int, prefix: str, device: torch.device) -> MetricCollection:
    """Top-1 accuracy, and top-5 with more than 5 classes, over samples and processes.

    Samples of label -1 do not count.

    Args:
        num_classes: Number of classes.
        prefix: Of the names in the logs, ``{prefix}top1`` and ``{prefix}top5``.
        device: Device of the scores.
    """
    metrics: dict[str, Metric | MetricCollection] = {
        f"top{k}": MulticlassAccuracy(
            num_classes, top_k=k, average="micro", ignore_index=-1, validate_args=False
        )
        for k in (1, 5)
        if k == 1 or num_classes > k
    }
    return MetricCollection(metrics, prefix=prefix, compute_groups=False).to(device)
