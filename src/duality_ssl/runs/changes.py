"""The circumstances of a fit, kept in its checkpoints: a resume under others is warned of."""

from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn

_KEY = "ran_with"  # entry of a checkpoint


class ChangedValues(Callback):
    """Warns once if a fit resumes with other images, processes or another kind of device.

    No option says what these are. The resumed run ends otherwise than one that never stopped.
    """

    def __init__(self) -> None:
        self._before: dict[str, Any] = {}

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Put the values into the checkpoint."""
        checkpoint[_KEY] = _values(trainer)

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take the values of a fit that is resumed."""
        if trainer.state.fn == TrainerFn.FITTING:
            self._before = checkpoint.get(_KEY, {})

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare, now that the loaders exist."""
        before, now = self._before, _values(trainer)
        names = [name for name in now if name in before and before[name] != now[name]]
        if names:
            changed = ", ".join(f"{name} {before[name]} -> {now[name]}" for name in names)
            rank_zero_warn(
                f"The run resumes under other circumstances: {changed}. It will not end as it "
                "would have without the interruption."
            )


def _values(trainer: Trainer) -> dict[str, Any]:
    dataset: Any = getattr(trainer.train_dataloader, "dataset", None)
    return {
        "processes": trainer.world_size,
        "device": trainer.strategy.root_device.type,
        "images": len(dataset) if hasattr(dataset, "__len__") else None,
    }
