"""Checkpoints of a run: the last two, and the one whose online probe was best."""

from pathlib import Path
from typing import Any, Literal

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from duality_ssl.distributed import all_reduce_sum
from duality_ssl.runs.exact_resume import KEY, complete, restore


def is_damaged(module: nn.Module) -> bool:
    """Whether a weight or a running statistic is NaN or infinite on any process.

    No step heals that: what is NaN stays NaN. To be called by every process; it waits for the
    device.
    """
    state = [x for x in module.state_dict().values() if isinstance(x, Tensor)]
    bad = [~x.isfinite().all() for x in state if x.is_floating_point()]
    return bool(all_reduce_sum(torch.stack(bad).sum()) > 0)


class _RunCheckpoint(ModelCheckpoint):
    """A checkpoint of one name in the run's folder, of finite weights, and of nothing but a fit."""

    _goes_on = False
    _refused = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the run's folder; another command than fit writes no checkpoint and has none."""
        if stage == "fit":
            super().setup(trainer, pl_module, stage)

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """See whether the fit goes on in the folder that the checkpoint is in."""
        if self.dirpath is not None and trainer.ckpt_path is not None:
            folder = Path(trainer.ckpt_path).parent
            self._goes_on = folder.resolve() == Path(self.dirpath).resolve()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the scores of a resumed fit, wherever its folder has been moved to."""
        if not self._goes_on:
            return
        state = {**state_dict, "dirpath": self.dirpath}
        for name in ("best_model_path", "kth_best_model_path", "last_model_path"):
            state[name] = self._here(state[name])
        scores = state["best_k_models"].items()
        state["best_k_models"] = {self._here(path): score for path, score in scores}
        super().load_state_dict(state)
        self.current_score = state["current_score"]

    def _here(self, path: str) -> str:
        # its one name, whatever name the file may say: what is no longer the best gets deleted
        return self.format_checkpoint_name({}) if path else ""

    def _save_topk_checkpoint(
        self, trainer: Trainer, monitor_candidates: dict[str, Tensor]
    ) -> None:
        """Never put weights that are not finite in the place of the last good ones."""
        if not is_damaged(trainer.lightning_module):
            super()._save_topk_checkpoint(trainer, monitor_candidates)
        elif not self._refused:
            self._refused = True
            rank_zero_warn(
                f"{self.filename}.ckpt is not written at step {trainer.global_step}, and the one "
                "of before is kept: weights are NaN or infinite. Try a lower --model.base_lr."
            )


class LastCheckpoint(_RunCheckpoint):
    """Keeps ``last.ckpt``, the newest state whatever its metrics, and the one before it.

    A checkpoint is taken where nothing is half done: before the first batch of an epoch, between
    two optimiser steps, at the end of the run. By then the step before is validated and logged, and
    all callbacks are through with it. The last checkpoint becomes ``previous.ckpt`` when the new
    one is whole, so that there is another should the disk damage it.

    Every checkpoint of the fit, whoever takes it, has all that a fit needs to go on as if it had
    never been killed: the module `resume` says what that is.

    Args:
        every_n_epochs: Epochs between two checkpoints; the end of the run is always kept.
        every_n_steps: Optimiser steps between two checkpoints, for epochs that are long; none by
            default.

    Raises:
        ValueError: If a number is below 1.
    """

    def __init__(self, every_n_epochs: int = 1, every_n_steps: int | None = None) -> None:
        if every_n_epochs < 1 or (every_n_steps is not None and every_n_steps < 1):
            raise ValueError(
                "Expected `every_n_epochs` and `every_n_steps` of at least 1, but got "
                f"{every_n_epochs} and {every_n_steps}."
            )
        super().__init__(
            filename="last",
            every_n_epochs=every_n_epochs,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )
        self.every_n_steps = every_n_steps
        self._kept: dict[str, Any] = {}

    @property
    def state_key(self) -> str:
        """The same at any interval: a run may go on with another one."""
        return type(self).__qualname__

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add what Lightning leaves out."""
        complete(checkpoint, trainer)

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep what Lightning leaves alone until training starts."""
        super().on_load_checkpoint(trainer, pl_module, checkpoint)
        self._kept = checkpoint.get(KEY, {})

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore what Lightning has just emptied."""
        super().on_train_start(trainer, pl_module)
        restore(self._kept, trainer)
        self._kept = {}

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the state after an epoch, if that is due."""
        if trainer.current_epoch % self._every_n_epochs == 0 or self._is_due(trainer):
            self.save(trainer)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keep the state after a step, if that is due: the new batch has changed nothing yet."""
        # this is the first batch after the step: no gradients are being accumulated
        if batch_idx and self._is_due(trainer):
            self.save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait for the epoch's metrics to be logged."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the end of the run."""
        self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        """Write the checkpoint, unless this step's is there.

        To be called by all processes, before the first batch of an epoch or at the start of a batch
        between two optimiser steps.
        """
        if not self._should_skip_saving_checkpoint(trainer):
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))

    def _is_due(self, trainer: Trainer) -> bool:
        return self.every_n_steps is not None and trainer.global_step % self.every_n_steps == 0

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        last = Path(filepath)
        new, previous = last.with_name("next.ckpt"), last.with_name("previous.ckpt")
        super()._save_checkpoint(trainer, str(new))
        # each rename is whole or not done at all: whatever a kill leaves has the newest state
        if trainer.is_global_zero and new.exists():
            if last.exists():
                last.replace(previous)
            new.replace(last)
        self._last_checkpoint_saved = filepath
        trainer.strategy.barrier("LastCheckpoint")


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
