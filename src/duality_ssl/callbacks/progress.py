"""Progress of a run: a bar in a terminal, one line an epoch elsewhere; where the time went."""

import sys
import time
from collections.abc import Mapping
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.utilities.data import extract_batch_size
from torch import Tensor

from duality_ssl.distributed import world_size


class Stopwatch:
    """Time of training alone, and the part of it in which no batch was at hand.

    The clock stands still during validation. What lies between the end of one batch and the start
    of the next is the wait for data: loading, moving it, and augmenting where the host does that.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.waited = 0.0
        self.images = 0
        self._since: float | None = None
        self._idle_since: float | None = None

    @property
    def images_per_second(self) -> float:
        """Images over the seconds of training so far; 0 before the first batch."""
        seconds = self.seconds + (0 if self._since is None else time.perf_counter() - self._since)
        return self.images / seconds if self.images else 0.0

    def start(self) -> None:
        """Go on; no batch is at hand."""
        self._since = self._idle_since = time.perf_counter()

    def batch_starts(self) -> None:
        """Count the wait for this batch."""
        if self._idle_since is not None:
            self.waited += time.perf_counter() - self._idle_since

    def batch_ends(self, images: int) -> None:
        """Count the batch's images; the wait for the next begins."""
        self.images += images
        self._idle_since = time.perf_counter()

    def stop(self) -> None:
        """Stand still until the next :meth:`start`."""
        if self._since is not None:
            self.seconds += time.perf_counter() - self._since
        self._since = self._idle_since = None


class RunSummary(Callback):
    """Says at the end of a fit how many images a second it saw, and what it waited for.

    Images are those of all processes, each counted once (not each view), over the time of training
    alone; validation does not count. The shares of that time, in this process:

    - waiting for data: no batch was at hand;
    - augment: the host augmented (on a GPU it only asks for it: a profile says what it took);
    - step: the rest, callbacks included;
    - decode, for folders: reading files, decoding and cropping. With workers that is done meanwhile
      and is the share of *their* time; without any it is part of the waiting.

    Without an `SSLDataModule` augmenting counts as waiting. Put it last among the callbacks: what
    comes after it is taken for waiting.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._epoch = Stopwatch()
        self._run = Stopwatch()
        self._loss: Tensor | None = None
        self._before: dict[str, float] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the run's figures."""
        super().on_train_start(trainer, pl_module)
        self._run, self._before = Stopwatch(), _host_seconds(trainer)
        self._start()  # the middle of an epoch that is resumed is no start of one

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the epoch's figures."""
        super().on_train_epoch_start(trainer, pl_module)
        self._epoch = Stopwatch()
        self._start()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Count the wait for the batch."""
        for watch in (self._epoch, self._run):
            watch.batch_starts()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Mapping[str, Any],  # type: ignore[override]
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Count the batch."""
        self._loss = outputs["loss"].detach()
        images = extract_batch_size(batch) * world_size()
        for watch in (self._epoch, self._run):
            watch.batch_ends(images)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        super().on_validation_start(trainer, pl_module)
        self._stop()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the clock go on, after a validation within training."""
        super().on_validation_end(trainer, pl_module)
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._start()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self._stop()
        super().on_train_epoch_end(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the run's line."""
        self._stop()
        super().on_train_end(trainer, pl_module)
        if self._run.images and trainer.is_global_zero:
            self.print(
                f"Trained on {self._run.images:,} images in {self._run.seconds:.1f} s: "
                f"{self._run.images_per_second:,.0f} images/s, {self._shares(trainer)}."
            )

    def _shares(self, trainer: Trainer) -> str:
        spent = {name: s - self._before[name] for name, s in _host_seconds(trainer).items()}
        augment = spent.get("augment", 0.0)
        wait = max(0.0, self._run.waited - augment)
        parts = {"augment": augment, "step": self._run.seconds - wait - augment} if spent else {}
        said = [f"{name} {x / self._run.seconds:.0%}" for name, x in parts.items()]
        if spent.get("decode"):
            workers: int = getattr(trainer, "datamodule", None).num_workers  # type: ignore[union-attr]
            share = spent["decode"] / (self._run.seconds * max(1, workers))
            whose = f" of {workers} worker{'s' * (workers > 1)}" if workers else ""
            said.insert(0, f"decode {share:.0%}{whose}")
        inside = f" ({', '.join(said)})" if said else ""
        return f"{wait / self._run.seconds:.0%} of the time waiting for data{inside}"

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print a line that survives the bar and reaches a pipe at once."""
        print(*args, **{"flush": True, **kwargs})

    def _start(self) -> None:
        for watch in (self._epoch, self._run):
            watch.start()

    def _stop(self) -> None:
        if self._loss is not None:
            # training is over when the device has done the last step, not when it was asked to
            self._loss.item()
        for watch in (self._epoch, self._run):
            watch.stop()


def _host_seconds(trainer: Trainer) -> dict[str, float]:
    """What the data module has measured so far, where it measures."""
    return dict(getattr(getattr(trainer, "datamodule", None), "host_seconds", {}))


class RunProgress(RunSummary, RichProgressBar):
    """Loss, online probe and images a second: a bar in a terminal, a line an epoch elsewhere.

    The end of the run says what `RunSummary` says.

    Args:
        refresh_rate: Updates of the bar a second; 0 for no bar.
        leave: Keep the bar of every epoch on the screen.
    """

    def __init__(self, refresh_rate: int = 4, leave: bool = False) -> None:
        super().__init__(refresh_rate=refresh_rate, leave=leave)
        self._loss_sum: Tensor | None = None
        self._batches = 0
        self._next_update = 0.0

    @property
    def state_key(self) -> str:
        """That of the summary, which takes this one's place where no bar is wanted."""
        return RunSummary.__qualname__

    def state_dict(self) -> dict[str, Any]:
        """What the epoch's line is about so far."""
        return {"loss_sum": self._loss_sum, "batches": self._batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the epoch's line."""
        self._loss_sum, self._batches = state_dict["loss_sum"], state_dict["batches"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """No bar where nobody watches: in a file, in a pipe, on other processes."""
        super().setup(trainer, pl_module, stage)
        if not sys.stdout.isatty():
            self.disable()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the epoch's figures."""
        self._loss_sum, self._batches = None, 0
        super().on_train_epoch_start(trainer, pl_module)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Mapping[str, Any],  # type: ignore[override]
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Count the batch; draw the bar a few times a second, for drawing waits for the device."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        loss = outputs["loss"].detach()
        self._loss_sum = loss if self._loss_sum is None else self._loss_sum + loss
        self._batches += 1
        now = time.perf_counter()
        if self.is_enabled and (now >= self._next_update or trainer.is_last_batch):
            self._next_update = now + 1 / self.refresh_rate
            RichProgressBar.on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the epoch's line where there is no bar."""
        super().on_train_epoch_end(trainer, pl_module)
        if trainer.is_global_zero and self.is_disabled:
            self.print(self._line(trainer))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the bar down before the run's line."""
        self._stop_progress()
        super().on_train_end(trainer, pl_module)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """What the bar shows: the last loss, the last probe top-1, images a second."""
        metrics = {} if self._loss is None else {"loss": f"{self._loss.item():.4g}"}
        metrics |= _probe(trainer)
        metrics["images/s"] = f"{self._epoch.images_per_second:,.0f}"
        return metrics

    def _get_train_description(self, current_epoch: int) -> str:
        # counted from 1, as in the lines; Lightning's own counts from 0
        return f"epoch {current_epoch + 1}{_of(self.trainer)}"

    def _line(self, trainer: Trainer) -> str:
        parts = [self._get_train_description(trainer.current_epoch)]
        if self._loss_sum is not None:
            parts.append(f"loss {self._loss_sum.item() / self._batches:.4g}")
        parts += [f"{name} {value}" for name, value in _probe(trainer).items()]
        return "  ".join([*parts, f"{self._epoch.images_per_second:,.0f} images/s"])


def _of(trainer: Trainer) -> str:
    """The number of epochs, where the run has one."""
    return f"/{trainer.max_epochs}" if (trainer.max_epochs or -1) > 0 else ""


def _probe(trainer: Trainer) -> dict[str, str]:
    """Top-1 accuracy of the online probe at the last validation, where there is one."""
    top1 = trainer.callback_metrics.get("val/probe_top1")
    return {} if top1 is None else {"probe top-1": f"{top1.item():.1%}"}
