"""Checkpoints of a run: the last, and the one whose online probe was best."""

from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint


class RunCheckpoint(ModelCheckpoint):
    """Keeps ``last.ckpt`` and, where the data has labels, ``best.ckpt`` by the monitored metric.

    Args:
        monitor: Metric of the validation that says which checkpoint is best.
        mode: Whether the best is the ``max`` or the ``min`` of it.
        every_n_epochs: Epochs between two checkpoints.
    """

    def __init__(
        self, monitor: str = "val/probe_top1", mode: str = "max", every_n_epochs: int = 1
    ) -> None:
        super().__init__(
            filename="best",
            monitor=monitor,
            mode=mode,
            save_last=True,
            every_n_epochs=every_n_epochs,
            enable_version_counter=False,
        )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Keep the last one only where no label says which is best."""
        if stage != "fit":
            return
        super().setup(trainer, pl_module, stage)
        datamodule = getattr(trainer, "datamodule", None)
        if getattr(datamodule, "num_classes", None) is None and "probe" in (self.monitor or ""):
            self.monitor, self.save_top_k = None, 0

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the scores of a resumed fit; another command saves nothing."""
        if self.dirpath is not None:
            super().load_state_dict(state_dict)
