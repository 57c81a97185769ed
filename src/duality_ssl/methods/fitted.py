"""How a method is prepared for a fit, optimized, and moved step by step."""

from typing import Any, Self

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn

from duality_ssl._internals.lightning import has_sync_batchnorm, silence_evaluation_modes
from duality_ssl.criteria import Criterion
from duality_ssl.methods import optimization
from duality_ssl.methods.checks import check_fit
from duality_ssl.methods.saved import SavedMethod
from duality_ssl.methods.strategy import check_strategy
from duality_ssl.networks.batch_norm import synchronize_batch_norm
from duality_ssl.networks.stages import hold_frozen, layer_scales
from duality_ssl.optim import fuse


class FittedMethod(SavedMethod):
    """The optimizer, the schedule and the preparation of a method."""

    criterion: Criterion
    predictor: nn.Module | None
    optimizer: OptimizerCallable
    scheduler: LRSchedulerCallable | None
    base_lr: float
    weight_decay: float
    warmup_epochs: float
    final_lr_fraction: float
    predictor_schedule: bool
    frozen_stages: int
    layer_decay: float
    channels_last: bool
    compiled: bool
    _total_steps: float

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Scale the learning rate to the global batch; warm up, then follow a cosine per step."""
        batch = optimization.global_batch(self.trainer)
        lr = self.base_lr * batch / 256
        rank_zero_info(
            f"Learning rate {lr:g} = base_lr {self.base_lr:g} x global batch {batch} / 256."
        )
        optimizer = self.build_optimizer(lr)
        optimization.warn_of_replaced(optimizer, lr=lr, weight_decay=self.weight_decay)
        fuse(optimizer)
        if self.scheduler is None or self.teacher is not None:
            self._total_steps = optimization.total_steps(self.trainer)
        if self.scheduler is not None:
            return {"optimizer": optimizer, "lr_scheduler": self.scheduler(optimizer)}
        total = self._total_steps
        warmup = optimization.warmup_steps(self.trainer, self.warmup_epochs, total)
        cosine = optimization.warmup_cosine(optimizer, warmup, total, self.final_lr_fraction)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cosine, "interval": "step"}}

    def build_optimizer(self, lr: float) -> torch.optim.Optimizer:
        """Build the optimizer; raise ``ValueError`` if it refuses the values of its options."""
        constant = None if self.predictor_schedule else self.predictor
        scales = layer_scales(self.backbone, self.layer_decay)
        groups = optimization.parameter_groups(self, self.weight_decay, constant, scales)
        try:
            return self.optimizer([{**group, "lr": lr * group.get("scale", 1)} for group in groups])
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"The optimizer refuses its options: {error}. Correct those of --model.optimizer."
            ) from error

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Take a step, one for all accumulated batches, and then move the teacher."""
        super().optimizer_step(*args, **kwargs)
        if self.teacher is not None:
            networks = self.backbone, self.projector
            self.teacher.update(*networks, self.global_step, self._total_steps)

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all modules but those of frozen stages, which stay in evaluation."""
        super().train(mode)
        if self.frozen_stages:
            hold_frozen(self.backbone, *([] if self.teacher is None else [self.teacher.backbone]))
        return self

    def setup(self, stage: str) -> None:
        """Refuse a strategy or images that do not fit; prepare the network."""
        check_strategy(self.trainer.strategy)
        data = getattr(self.trainer, "datamodule", None)
        channels = getattr(data, "channels", self.in_channels)
        self.check_images(channels, getattr(data, "image_size", None))
        if self.channels_last:
            # a convolution's output takes the layout of its weight
            self.backbone.to(memory_format=torch.channels_last)
            if self.teacher is not None:
                self.teacher.backbone.to(memory_format=torch.channels_last)
        if stage != "fit":
            return
        check_fit(self.criterion, self.backbone, self.trainer, teacher=self.teacher is not None)
        if self.frozen_stages:
            silence_evaluation_modes()
        if has_sync_batchnorm(self.trainer):
            synchronize_batch_norm(self, self.trainer.strategy.root_device)
        if self.compiled:
            teacher = [] if self.teacher is None else [*self.teacher.children()]
            networks = self.backbone, self.projector, self.predictor, *teacher, self.criterion
            for module in networks:
                if module is not None:
                    module.compile()  # in place: the names in the state dict stay
        if self.trainer.ckpt_path is None:
            self.load_pretrained()

    def on_train_start(self) -> None:
        """Log at least once an epoch, however short the epoch."""
        batches = self.trainer.num_training_batches
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        self.trainer.log_every_n_steps = int(min(every, batches))  # type: ignore[attr-defined]
