"""Checkpoints of a run: the last, and the one whose online probe was best."""

from typing import Any, Literal

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_warn


class _RunCheckpoint(ModelCheckpoint):
    """A checkpoint of one name in the run's folder, and of nothing but a fit."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the run's folder; another command than fit writes no checkpoint and has none."""
        if stage == "fit":
            super().setup(trainer, pl_module, stage)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the scores of a resumed fit."""
        if self.dirpath is not None and self.dirpath == state_dict["dirpath"]:
            super().load_state_dict(state_dict)


class LastCheckpoint(_RunCheckpoint):
    """Keeps ``last.ckpt``, the state after the last epoch, whatever its metrics.

    Args:
        every_n_epochs: Epochs between two checkpoints; the end of the run is always kept.
    """

    def __init__(self, every_n_epochs: int = 1) -> None:
        super().__init__(
            filename="last",
            every_n_epochs=every_n_epochs,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the epoch if it is due or the run's last."""
        super().on_train_epoch_end(trainer, pl_module)
        if trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs:
            self.on_train_end(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the end of a run that stopped within an epoch."""
        if self._last_global_step_saved != trainer.global_step:
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))


class BestCheckpoint(_RunCheckpoint):
    """Keeps ``best.ckpt``, the state with the best validation metric.

    Args:
        monitor: Metric of the validation that says which state is best.
        mode: Whether the best is the ``max`` or the ``min`` of it.
    """

    def __init__(
        self, monitor: str = "val/probe_top1", mode: Literal["max", "min"] = "max"
    ) -> None:
        super().__init__(
            filename="best",
            monitor=monitor,
            mode=mode,
            save_on_train_epoch_end=False,
            enable_version_counter=False,
        )
        self._warned = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the state if it is the best so far; say once if nothing tells."""
        if self.monitor in trainer.callback_metrics:
            super().on_validation_end(trainer, pl_module)
        elif not (self._warned or trainer.sanity_checking):
            self._warned = True
            known = ", ".join(name for name in trainer.callback_metrics if name.startswith("val/"))
            rank_zero_warn(
                f"BestCheckpoint is off: nothing logs {self.monitor}. The validation logs "
                f"{known or 'nothing'}; last.ckpt is kept all the same."
            )
