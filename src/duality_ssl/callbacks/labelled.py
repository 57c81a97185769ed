"""The base of the callbacks that classify: loaders with labels, number of classes, accuracies."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from duality_ssl.callbacks.outputs import step_rows


class LabelledCallback(Callback):
    """Learns from labelled rows of the steps' outputs, and classifies those of the validation set.

    It learns from training batches if they have the labels (the data module's
    ``probe_is_pretrain``), else from the first of two validation loaders; the last one is the
    validation set. Without a number of classes it is off, with one warning.

    Args:
        entries: Names of the outputs, such as ``features``.
        num_classes: Number of classes; by default the data module's ``num_classes``.

    Raises:
        ValueError: If the number is below 1, or a label is not below it.
    """

    def __init__(self, entries: Sequence[str], num_classes: int | None = None) -> None:
        if num_classes is not None and num_classes < 1:
            raise ValueError(f"Expected `num_classes` of at least 1, but got {num_classes}.")
        self.entries = entries
        self.num_classes = self._given = num_classes
        self._accuracies: dict[str, MetricCollection] = {}
        self._warned = False
        self._checked: set[str] = set()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        known = getattr(getattr(trainer, "datamodule", None), "num_classes", None)
        self.num_classes = known if self._given is None else self._given
        self._checked.clear()
        if self.num_classes is None and stage in ("fit", "validate") and not self._warned:
            name = type(self).__name__
            rank_zero_warn(
                f"{name} is off: the data has no labels. Name a labelled set with "
                "--data.probe_source or --data.probe_root; for labelled batches of your own, pass "
                f"{name}(num_classes=...)."
            )
            self._warned = True

    @abstractmethod
    def learn(
        self, trainer: Trainer, pl_module: LightningModule, rows: dict[str, Tensor], batch_idx: int
    ) -> None:
        """Learn from the entries and ``labels`` of a batch."""

    @abstractmethod
    def scores(self, rows: dict[str, Tensor]) -> dict[str, Tensor]:
        """Compute scores ``(N, C)`` by their name in the logs; none before anything is learnt."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Learn from all views of a training batch, if it has the labels."""
        if self.num_classes is not None and not self.learns_in_validation(trainer):
            self.learn(trainer, pl_module, self._rows(outputs, "training_step"), batch_idx)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._accuracies = {}

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Classify the validation set; learn from an earlier, labelled loader."""
        if self.num_classes is None or trainer.sanity_checking:
            return
        if is_validation_set(trainer, dataloader_idx):
            rows = self._rows(outputs, "validation_step")
            for name, scores in self.scores(rows).items():
                if name not in self._accuracies:
                    self._accuracies[name] = _accuracies(self.num_classes, name).to(scores.device)
                self._accuracies[name].update(scores, rows["labels"])
        elif dataloader_idx == 0 and self.learns_in_validation(trainer):
            self.learn(trainer, pl_module, self._rows(outputs, "validation_step"), batch_idx)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for metrics in self._accuracies.values():
            # every process has the same value: sync_dist only silences Lightning's advice
            pl_module.log_dict(metrics.compute(), sync_dist=True)

    def _rows(self, outputs: Any, step: str) -> dict[str, Tensor]:
        """`step_rows` of the entries and ``labels``, which are below the number of classes."""
        found = step_rows(outputs, [*self.entries, "labels"], step)
        if step not in self._checked:  # the first batch only, since it waits for the device
            self._checked.add(step)
            highest = int(found["labels"].max())
            if highest >= (self.num_classes or 0):
                raise ValueError(
                    f"Expected labels below the number of classes, {self.num_classes}, but "
                    f"`{step}` returned {highest}: pass num_classes=... with all of them."
                )
        return found

    @staticmethod
    def learns_in_validation(trainer: Trainer) -> bool:
        """Whether the labels are in an earlier validation loader, not in the training batches."""
        return not getattr(getattr(trainer, "datamodule", None), "probe_is_pretrain", True)


def is_validation_set(trainer: Trainer, dataloader_idx: int) -> bool:
    """Whether a validation loader is the validation set: the last one is."""
    return dataloader_idx == len(trainer.num_val_batches) - 1


def _accuracies(num_classes: int, name: str) -> MetricCollection:
    """``val/{name}_top1``, and ``_top5`` with more than 5 classes; labels of -1 do not count."""
    options: dict[str, Any] = {"average": "micro", "ignore_index": -1, "validate_args": False}
    metrics: dict[str, Metric | MetricCollection] = {
        f"top{k}": MulticlassAccuracy(num_classes, top_k=k, **options)
        for k in ((1, 5) if num_classes > 5 else (1,))
    }
    return MetricCollection(metrics, prefix=f"val/{name}_", compute_groups=False)
