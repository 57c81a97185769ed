"""Progress of a fit: a bar in a terminal, one line per epoch elsewhere, and where the time went."""

import sys
import time
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.utilities.data import extract_batch_size
from torch import Tensor

from duality_ssl.distributed import world_size


class Stopwatch:
    """Seconds of training, split at the start and the end of each batch; validation is left out."""

    def __init__(self) -> None:
        self.waited = self.stepped = 0.0
        self.images = 0
        self.start()

    @property
    def seconds(self) -> float:
        return self.waited + self.stepped

    def start(self) -> None:
        """Continue after a break."""
        self._mark = time.perf_counter()

    def batch_starts(self) -> None:
        """Count the wait for this batch."""
        self.waited += self._lap()

    def batch_ends(self, images: int = 0) -> None:
        """Count this batch; without images, the rest of the last one."""
        self.stepped += self._lap()
        self.images += images

    def _lap(self) -> float:
        before = self._mark
        self.start()
        return self._mark - before


class RunProgress(TQDMProgressBar):
    """Loss, online probe and images a second: a bar in a terminal, a line per epoch elsewhere.

    A last line has the images a second of the fit and the share of the time that it waited. Images
    are counted once (not per view) over all processes. The time is that of training, without
    validation; waiting is the time between batches, in this process: loading, transfer, and
    augmentation on the host. Put this callback last: the time of those after it counts as waiting.

    Args:
        refresh_rate: Batches between two updates of the bar, which wait for the device; 0 for the
            last line alone.
    """

    def __init__(self, refresh_rate: int = 10) -> None:
        super().__init__(refresh_rate=refresh_rate)
        self._watch = Stopwatch()
        self._before_epoch = (0, 0.0)
        self._loss: Tensor | None = None
        self._loss_sum: Tensor | float = 0.0
        self._batches = 0

    def state_dict(self) -> dict[str, Any]:
        return {"loss_sum": self._loss_sum, "batches": self._batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._loss_sum, self._batches = state_dict["loss_sum"], state_dict["batches"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Show no bar in a file or a pipe."""
        super().setup(trainer, pl_module, stage)
        if not sys.stdout.isatty():
            self.disable()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the bar, perhaps in the middle of an epoch."""
        super().on_train_start(trainer, pl_module)
        self._watch, self._before_epoch = Stopwatch(), (0, 0.0)
        self.train_progress_bar.total = trainer.num_training_batches
        self.train_progress_bar.set_description(_epoch(trainer))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_epoch_start(trainer, pl_module)
        self.train_progress_bar.set_description(_epoch(trainer))  # Lightning counts from 0
        self._loss_sum, self._batches = 0.0, 0
        self._watch.start()
        self._before_epoch = (self._watch.images, self._watch.seconds)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._watch.batch_starts()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._loss = outputs["loss"].detach()
        self._loss_sum = self._loss_sum + self._loss
        self._batches += 1
        self._watch.batch_ends(extract_batch_size(batch) * world_size())
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_start(trainer, pl_module)
        self._stop()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restart the clock after a validation within training."""
        super().on_validation_end(trainer, pl_module)
        self._watch.start()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the epoch's line where there is no bar."""
        self._stop()
        super().on_train_epoch_end(trainer, pl_module)
        if trainer.is_global_zero and self.refresh_rate and self.is_disabled:
            metrics = self.get_metrics(trainer, pl_module)
            if self._batches:
                metrics["loss"] = f"{float(self._loss_sum) / self._batches:.4g}"
            speed = f"{metrics.pop('images/s')} images/s"
            figures = [f"{name} {value}" for name, value in metrics.items()]
            print("  ".join([_epoch(trainer), *figures, speed]), flush=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        images, seconds = self._watch.images, self._watch.seconds
        if images and trainer.is_global_zero:
            waited = f"{self._watch.waited / seconds:.0%} of the time waiting for data"
            rate = f"{images / seconds:,.0f} images/s, {waited}."
            print(f"Trained on {images:,} images in {seconds:.1f} s: {rate}", flush=True)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """What the bar shows: the last loss, the last probe top-1, images a second."""
        metrics = {} if self._loss is None else {"loss": f"{self._loss.item():.4g}"}
        if (top1 := trainer.callback_metrics.get("val/probe_top1")) is not None:
            metrics["probe top-1"] = f"{top1.item():.1%}"
        images, seconds = self._before_epoch
        trained = self._watch.images - images
        rate = trained / (self._watch.seconds - seconds) if trained else 0.0
        return {**metrics, "images/s": f"{rate:,.0f}"}

    def _stop(self) -> None:
        if self._loss is not None:
            self._loss.item()  # wait for the device, which is behind the host
        self._watch.batch_ends()


def _epoch(trainer: Trainer) -> str:
    limited = trainer.max_epochs is not None and trainer.max_epochs > 0
    return f"epoch {trainer.current_epoch + 1}" + (f"/{trainer.max_epochs}" if limited else "")
