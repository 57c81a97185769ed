"""What the callbacks that need labels share: the classes, the loaders' roles, the accuracies."""

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy


class LabelledCallback(Callback):
    """A callback that is off, with one warning, where the data has no labels to learn from.

    The data module says how many classes there are (``num_classes``, None without labels) and
    whether the pretraining batches carry those labels (``probe_is_pretrain``). The last validation
    loader is the validation set; an earlier one is the labelled set to learn from instead.
    """

    def __init__(self) -> None:
        self.num_classes: int | None = None
        self._warned = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Read the number of classes; warn once where there are none."""
        datamodule = getattr(trainer, "datamodule", None)
        self.num_classes = getattr(datamodule, "num_classes", None)
        if self.num_classes is None and stage in ("fit", "validate") and not self._warned:
            rank_zero_warn(
                f"{type(self).__name__} is off: the data has no labels. Name a labelled set "
                "with --data.probe_source or --data.probe_root to turn it on."
            )
            self._warned = True

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
