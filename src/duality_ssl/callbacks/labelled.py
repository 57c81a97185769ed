"""What the callbacks that need labels share: the classes, the loaders' roles, the accuracies."""

from collections.abc import Sequence
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy

from duality_ssl.callbacks.outputs import step_rows


class LabelledCallback(Callback):
    """A callback that is off, with one warning, where the number of classes is not known.

    It is given, or the data module says it (``num_classes``, None without labels), and whether the
    pretraining batches carry the labels (``probe_is_pretrain``). The last validation loader is the
    validation set; an earlier one is the labelled set to learn from instead.

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
        """Read the number of classes; warn once where it is not known."""
        datamodule = getattr(trainer, "datamodule", None)
        said = getattr(datamodule, "num_classes", None)
        self.num_classes = said if self._given is None else self._given
        self._checked.clear()
        if self.num_classes is None and stage in ("fit", "validate") and not self._warned:
            name = type(self).__name__
            rank_zero_warn(
                f"{name} is off: the data has no labels, or does not say of how many classes. In "
                f"Python, pass {name}(num_classes=...) for labelled batches; on the command line, "
                "name a labelled set with --data.probe_source or --data.probe_root."
            )
            self._warned = True

    def labelled(self, outputs: Any, names: Sequence[str], step: str) -> dict[str, Tensor]:
        """`step_rows` of these entries and ``labels``, which are below the number of classes."""
        found = step_rows(outputs, [*names, "labels"], step)
        if step not in self._checked:  # the first batch alone, as it waits for the device
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
        """Whether an earlier validation loader, not the training batches, has the labels."""
        return not getattr(getattr(trainer, "datamodule", None), "probe_is_pretrain", True)


def is_validation_set(trainer: Trainer, dataloader_idx: int) -> bool:
    """Whether a validation loader is the validation set: the last one is."""
    return dataloader_idx == len(trainer.num_val_batches) - 1


class Accuracies:
    """Top-1, and top-5 where there are more than 5 classes, over samples and processes.

    Samples of label -1 do not count.

    Args:
        num_classes: Number of classes.
        device: Device of the scores to come.
    """

    def __init__(self, num_classes: int, device: torch.device) -> None:
        ks = (1, 5) if num_classes > 5 else (1,)
        self._metrics = {
            f"top{k}": MulticlassAccuracy(
                num_classes, top_k=k, average="micro", ignore_index=-1, validate_args=False
            ).to(device)
            for k in ks
        }

    def update(self, scores: Tensor, labels: Tensor) -> None:
        """Count one batch: scores ``(N, C)`` and labels ``(N,)``."""
        for metric in self._metrics.values():
            metric.update(scores, labels)

    def log(self, pl_module: LightningModule, name: str) -> None:
        """Log ``{name}_top1`` (and ``{name}_top5``) over all processes."""
        for key, metric in self._metrics.items():
            # every process has the same value: sync_dist only tells Lightning that this is known
            pl_module.log(f"{name}_{key}", metric.compute(), sync_dist=True)
