"""Ends a fit on a scheduler's signal: with a checkpoint, and an exit code to requeue on."""

import os
import signal
import subprocess
import threading
import time
from types import FrameType
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.plugins.environments import LightningEnvironment, SLURMEnvironment
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from duality_ssl._internals.lightning import cluster_environment, restore_at_teardown
from duality_ssl.distributed import all_reduce_sum, rank, world_size
from duality_ssl.runs.checkpoint import LastCheckpoint

EXIT_CODE = 75
"""EX_TEMPFAIL of sysexits.h: run the same command again to resume."""

_SIGNALS = [number for number in signal.Signals if number.name in ("SIGTERM", "SIGUSR1")]
# two signals within this are one: a launcher forwards what the scheduler has sent to all processes
_ECHO_SECONDS = 1.0
_RECEIVED = "finishing the step and writing a checkpoint; another signal ends the process at once."


class Preemption(Callback):
    """On SIGTERM or SIGUSR1 finishes the running step, writes ``last.ckpt`` and exits with code 75.

    A signal during set-up ends the fit at once; one during validation waits for its end. A second
    signal, a second or more after the first, ends the process at once. Several processes stop at
    the same step if one gets the signal. Under SLURM with ``auto_requeue``, SIGUSR1 requeues the
    job. This replaces Lightning's own handler, which writes in the middle of a step.

    Args:
        every_n_steps: Optimizer steps between two times that several processes ask each other.

    Raises:
        ValueError: If that is below 1.
    """

    def __init__(self, every_n_steps: int = 10) -> None:
        if every_n_steps < 1:
            raise ValueError(f"Expected `every_n_steps` of at least 1, but got {every_n_steps}.")
        self.every_n_steps = every_n_steps
        self._starting: Trainer | None = None  # until training starts
        self._received: dict[int, float] = {}
        self._former: dict[int, Any] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._starting, self._received = trainer, {}
        if stage == "fit" and threading.current_thread() is threading.main_thread():
            self._former = {number: signal.getsignal(number) for number in _SIGNALS}
            self._listen(trainer)

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._listen(trainer)  # again: Lightning has set its own handlers since

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._listen(trainer)
        self._starting = None

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop_if_signalled(trainer)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        step, rest = divmod(batch_idx, trainer.accumulate_grad_batches)
        if step and not rest and (world_size() == 1 or step % self.every_n_steps == 0):
            self._stop_if_signalled(trainer)

    def teardown(self, *args: Any, **kwargs: Any) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former = {}

    on_exception = teardown

    def _listen(self, trainer: Trainer) -> None:
        for number in self._former:
            signal.signal(number, self._receive)
        restore_at_teardown(trainer, self._former)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._starting is not None:
            if (launcher := self._starting.strategy.launcher) is not None:
                launcher.kill(number)  # its other processes would wait for this one
            raise SystemExit(EXIT_CODE)
        now = time.monotonic()
        if self._received and now - min(self._received.values()) > _ECHO_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif not self._received and rank() == 0:
            # unbuffered: the handler may have interrupted a print
            os.write(2, f"{signal.Signals(number).name}: {_RECEIVED}\n".encode())
        self._received.setdefault(number, now)

    def _stop_if_signalled(self, trainer: Trainer) -> None:
        """Write the state and exit if any process got a signal; call it on all at one step."""
        received = {number for number in _SIGNALS if number in self._received}
        if world_size() > 1:
            flags = torch.tensor([float(n in received) for n in _SIGNALS])
            total = all_reduce_sum(flags.to(trainer.strategy.root_device)).tolist()
            received = {number for number, count in zip(_SIGNALS, total, strict=True) if count}
        if not received:
            return
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, LastCheckpoint):
                callback.save(trainer)
        for logger in trainer.loggers:
            logger.save()
        names = " and ".join(sorted(number.name for number in received))
        rank_zero_info(
            f"{names}: stopped at step {trainer.global_step} with exit code {EXIT_CODE}. "
            "The same command with --ckpt_path last resumes from the last checkpoint."
        )
        environment = cluster_environment(trainer)
        if "SIGUSR1" in names and trainer.is_global_zero:
            _requeue(environment)
        # a launcher may kill the others once one has ended
        trainer.strategy.barrier("Preemption")
        # Lightning kills all if a process that it has started ends with another code than 0
        child = isinstance(environment, LightningEnvironment) and trainer.local_rank > 0
        raise SystemExit(0 if child else EXIT_CODE)


def _requeue(environment: Any) -> None:
    """Have SLURM requeue the job, if Lightning is configured to."""
    if not isinstance(environment, SLURMEnvironment) or not environment.auto_requeue:
        return
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array else os.environ.get("SLURM_JOB_ID", "")
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        rank_zero_warn(f"SLURM does not requeue job {job}: {error}. Submit it again.")
