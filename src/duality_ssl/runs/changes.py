"""What a fit runs with, in its checkpoints, and a word where a fit goes on with something else."""

import os
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn

# entry of a checkpoint
_KEY = "ran_with"
_TRAINER = ("accumulate_grad_batches", "gradient_clip_val", "max_epochs", "max_steps", "precision")
_OF_THE_OPTIMISER = {"model.base_lr", "model.weight_decay"}
_KEPT = " (without effect: the checkpoint's optimiser goes on with its own)"
_DATA = ("source", "batch_size", "image_size", "subset", "labels", "seed")


class ChangedValues(Callback):
    """Warns once of every value that has changed since the checkpoint that a fit goes on from.

    With the same values a fit that goes on ends as one that was never interrupted; each of these,
    changed, makes it another: the method's arguments, the data's, the number of images, batches
    and processes, the kind of device, the seed, and what of the trainer has a part in a step. It is
    allowed: a longer run, or another machine, wants it.
    """

    def __init__(self) -> None:
        self._before: dict[str, Any] = {}

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Put the values into the checkpoint."""
        checkpoint[_KEY] = _values(trainer, pl_module)

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take the former values, if a fit is to go on."""
        if trainer.state.fn == TrainerFn.FITTING:
            self._before = checkpoint.get(_KEY, {})

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare: the loaders are there now."""
        before, now = self._before, _values(trainer, pl_module)
        changed = [
            f"{name} {before[name]} -> {now[name]}" + _KEPT * (name in _OF_THE_OPTIMISER)
            for name in now
            if name in before and before[name] != now[name]
        ]
        if changed:
            rank_zero_warn(
                f"The run goes on with other values than before: {', '.join(changed)}. That is "
                "allowed; it will not end as it would have without them."
            )


def _values(trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
    loader: Any = trainer.train_dataloader
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    values = {
        "processes": trainer.world_size,
        "device": trainer.strategy.root_device.type,
        "seed_everything": os.environ.get("PL_GLOBAL_SEED"),
        "batches of an epoch": trainer.num_training_batches,
        "images": len(loader.dataset) if hasattr(loader, "dataset") else None,
        **{f"trainer.{name}": getattr(trainer, name) for name in _TRAINER},
        **{f"data.{name}": getattr(data, name, None) for name in _DATA},
        **{f"data.view{i}": view for i, view in enumerate(getattr(data, "views", ()), 1)},
        **{f"model.{name}": value for name, value in pl_module.hparams.items() if name[0] != "_"},
    }
    # a checkpoint holds nothing that would have to be unpickled
    return {name: _plain(value) for name, value in values.items()}


def _plain(value: Any) -> Any:
    return value if isinstance(value, int | float | str | None) else str(value)
