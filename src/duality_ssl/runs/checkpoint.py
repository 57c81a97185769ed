"""Checkpoints of a run: the last two, and the one with the best online probe."""

from pathlib import Path
from typing import Any, Literal
from weakref import proxy

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from duality_ssl.distributed import all_reduce_sum
from duality_ssl.runs.exact_resume import KEY, complete, restore


def is_damaged(module: nn.Module) -> bool:
    """Whether a weight or a running statistic is NaN or infinite on any process; ask on all."""
    state = [x for x in module.state_dict().values() if isinstance(x, Tensor)]
    bad = [~x.isfinite().all() for x in state if x.is_floating_point()]
    return bool(all_reduce_sum(torch.stack(bad).sum()) > 0)


class _RunCheckpoint(ModelCheckpoint):
    """A checkpoint of one name in the run's folder; only a fit writes it, with finite weights."""

    _warned_of_damage = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":  # other commands have no folder
            super().setup(trainer, pl_module, stage)

    def refuses(self, trainer: Trainer) -> bool:
        """Whether the weights are damaged and the former file has to stay; warns once."""
        damaged = is_damaged(trainer.lightning_module)
        if damaged and not self._warned_of_damage:
            self._warned_of_damage = True
            rank_zero_warn(
                f"{self.filename}.ckpt is not written at step {trainer.global_step}, and the "
                "previous one is kept: weights are NaN or infinite. Try a lower --model.base_lr."
            )
        return damaged


class LastCheckpoint(_RunCheckpoint):
    """Keeps ``last.ckpt``, the newest state whatever its metrics, and the one before it.

    It writes before the first batch of an epoch, between two optimizer steps and at the end of the
    run: by then the last step is validated and logged. With this callback every checkpoint of a
    fit has what `duality_ssl.runs.exact_resume` adds.

    Args:
        every_n_epochs: Epochs between two checkpoints; the end of the run is always written.
        every_n_steps: Optimizer steps between two checkpoints within an epoch; none by default.

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
            filename="last", every_n_epochs=every_n_epochs, save_on_train_epoch_end=False
        )
        self.every_n_steps = every_n_steps
        self._saved_step = 0
        self._validated_batch: int | None = None
        self._kept: dict[str, Any] = {}

    @property
    def state_key(self) -> str:
        """The same at any interval, so that a resumed run can have another one."""
        return type(self).__qualname__

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "validated_batch": self._validated_batch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._validated_batch = state_dict.get("validated_batch")

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        validated = self._validated_batch == trainer.fit_loop.total_batch_idx - 1
        complete(checkpoint, trainer, validated)

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._kept = checkpoint.get(KEY, {})  # until training starts

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        restore(self._kept, trainer)
        self._kept = {}

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch % (self.every_n_epochs or 1) == 0 or self._is_due(trainer):
            self.save(trainer)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # this is the first batch after the step, so no gradients are being accumulated
        if batch_idx and self._is_due(trainer):
            self.save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:  # its metrics are logged after this: write nothing yet
            self._validated_batch = trainer.fit_loop.total_batch_idx

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        """Write the checkpoint, unless this step's exists; call it on all, between two steps."""
        step = trainer.global_step
        if trainer.fast_dev_run or step == self._saved_step or self.refuses(trainer):  # type: ignore[attr-defined]
            return
        self._saved_step = step
        last = Path(self.format_checkpoint_name({}))
        new, previous = last.with_name("next.ckpt"), last.with_name("previous.ckpt")
        self.best_model_path = str(last)  # which loggers may upload
        trainer.save_checkpoint(new, weights_only=False)
        if trainer.is_global_zero:
            # a kill between two renames leaves the newest state under one name or another
            if new.exists():
                if last.exists():
                    last.replace(previous)
                new.replace(last)
            for logger in trainer.loggers:
                logger.after_save_checkpoint(proxy(self))
        trainer.strategy.barrier("LastCheckpoint")

    def _is_due(self, trainer: Trainer) -> bool:
        return self.every_n_steps is not None and trainer.global_step % self.every_n_steps == 0


class BestCheckpoint(_RunCheckpoint):
    """Keeps ``best.ckpt``, the state with the best validation metric.

    Args:
        monitor: Metric of the validation that ranks the states.
        mode: Whether its ``max`` or its ``min`` is the best.
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

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        path = self.format_checkpoint_name({})
        if state_dict["best_model_score"] is not None and Path(path).exists():
            self.current_score = state_dict["current_score"]
            self.best_model_score = self.kth_value = state_dict["best_model_score"]
            # this file and not the one of the state: what is no longer the best is deleted
            self.best_model_path = self.kth_best_model_path = path
            self.best_k_models = {path: self.kth_value}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        score = trainer.callback_metrics.get(self.monitor or "")
        if score is not None:
            if self.check_monitor_top_k(trainer, score) and not self.refuses(trainer):
                super().on_validation_end(trainer, pl_module)
        elif not self._warned:
            self._warned = True
            known = ", ".join(name for name in trainer.callback_metrics if name.startswith("val/"))
            rank_zero_warn(
                f"BestCheckpoint is off: nothing logs {self.monitor}. The validation logs "
                f"{known or 'nothing'}; last.ckpt is kept all the same."
            )
