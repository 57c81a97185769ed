"""Where runs are done: local processes or SLURM, both through submitit."""

import json
import os
import shutil
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from duality_ssl.sweeps.job import Job, describe, refusal
from duality_ssl.sweeps.rows import Row
from duality_ssl.sweeps.runs import Command, Run

_POLL = 0.2  # seconds between two looks at the jobs
_GRACE = 60.0  # seconds that a job has to write its checkpoint
_YEAR = 365 * 24 * 60  # minutes: a local job has no limit
# parameters of submitit that are not SLURM's own
_SHARED = {
    *("name", "timeout_min", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node"),
    *("tasks_per_node", "stderr_to_stdout"),
}


class Pool:
    """Starts jobs: on SLURM where the sweep names its parameters and ``sbatch`` exists.

    Local jobs share the cores: each has ``cores // size`` threads, unless ``OMP_NUM_THREADS`` is
    set. Several of them get one GPU each in turn, a single one gets all.

    Args:
        folder: For the files of submitit.
        size: Jobs at once; by default one, on SLURM all.
        slurm: Parameters of submitit for SLURM; those of SLURM alone without their prefix.

    Raises:
        ValueError: If ``size`` is below 1, or a parameter is unknown.
    """

    def __init__(self, folder: Path, size: int | None, slurm: dict[str, Any]) -> None:
        import submitit

        if size is not None and size < 1:
            raise ValueError(f"Expected at least 1 job at once, but got {size}.")
        self.on_slurm = bool(slurm) and shutil.which("sbatch") is not None
        self.size = size or (10_000 if self.on_slurm else 1)
        self._executor: Any
        if self.on_slurm:
            self._executor = submitit.AutoExecutor(folder, cluster="slurm")
            parameters = {k if k in _SHARED else f"slurm_{k}": v for k, v in slurm.items()}
            try:
                self._executor.update_parameters(**parameters)
            except (AssertionError, NameError, ValueError) as error:
                raise ValueError(f"slurm: {str(error).splitlines()[0]}") from error
        else:
            self._executor = submitit.LocalExecutor(folder)
            threads = max(1, _cores() // self.size)
            os.environ.setdefault("OMP_NUM_THREADS", str(threads))
        self._slots: dict[str, int] = {}

    def submit(self, job: Job) -> Any:
        """Start a job; returns submitit's."""
        if self.on_slurm:
            return self._executor.submit(job)
        slot = min({*range(self.size)} - {*self._slots.values()})
        gpus = _gpus()
        visible = gpus if self.size == 1 or not gpus else [gpus[slot % len(gpus)]]
        self._executor.update_parameters(
            timeout_min=_YEAR, gpus_per_node=len(visible), visible_gpus=visible
        )
        with _without_interrupt():
            started = self._executor.submit(job)
        self._slots[started.job_id] = slot
        return started

    def ended(self, started: Any) -> bool:
        """Whether a job has ended, well or badly."""
        ended = bool(started.done())
        if ended:
            self._slots.pop(started.job_id, None)
        return ended

    def stop(self, jobs: Sequence[Any]) -> None:
        """End jobs; a fit writes a checkpoint first. Interrupted again, it ends at once."""
        if self.on_slurm:
            for started in jobs:
                started.cancel(check=False)
            return
        for grace in (_GRACE, 5.0):  # a second signal ends a fit at once
            for started in jobs:
                if not started.done():
                    os.kill(int(started.job_id), signal.SIGTERM)
            end = time.monotonic() + grace
            try:
                while time.monotonic() < end and not all(started.done() for started in jobs):
                    time.sleep(_POLL)
            except KeyboardInterrupt:
                continue


def do_runs(
    runs: Sequence[Run],
    command: Command,
    pool: Pool,
    *,
    again: bool,
    on_row: Callable[[Run, Row], None],
    on_wait: Callable[[Sequence[Run]], None],
) -> None:
    """Do runs, as many at once as the pool has jobs.

    A local process does several runs, fewer towards the end, so that no process is idle for long;
    a job of SLURM does one.

    Args:
        runs: In order.
        command: Runs the words of a command line.
        pool: Starts the jobs.
        again: Train from scratch what an older version has trained.
        on_row: Called with the row of each run as it ends.
        on_wait: Called a few times a second with the runs that are being done.

    Raises:
        KeyboardInterrupt: After the jobs were ended.
    """
    waiting, jobs = deque(runs), dict[Any, list[Run]]()
    try:
        while waiting or jobs:
            while waiting and len(jobs) < pool.size:
                share = 1 if pool.on_slurm else max(1, len(waiting) // (2 * pool.size))
                taken = [waiting.popleft() for _ in range(share)]
                for run in taken:
                    run.result.unlink(missing_ok=True)
                parent = None if pool.on_slurm else os.getpid()
                jobs[pool.submit(Job(taken, command, again, parent))] = taken
            for started, left in [*jobs.items()]:
                ended = pool.ended(started)  # asked first: what is not there then will not come
                _collect(left, on_row)
                if ended:
                    del jobs[started]
                    if left:
                        on_row(left[0], _lost(left.pop(0), started))
                        waiting.extendleft(reversed(left))
            on_wait([left[0] for left in jobs.values() if left])
            time.sleep(_POLL)
    except KeyboardInterrupt:
        pool.stop([*jobs])
        for left in jobs.values():
            _collect(left, on_row)
        raise


def _collect(left: list[Run], on_row: Callable[[Run, Row], None]) -> None:
    """Take the runs that have a result off the list."""
    for run in [run for run in left if run.result.is_file()]:
        left.remove(run)
        on_row(run, json.loads(run.result.read_text("utf-8")))
        run.result.unlink()


def _lost(run: Run, started: Any) -> Row:
    """The row of a run whose process has ended without one."""
    said = refusal(run.log) if run.log.is_file() else None
    why = said or "its process ended without a word, as one does that is killed for its memory"
    return describe(run) | {
        "error": f"{why}. See {run.log} and {started.paths.stderr}.",
        "seconds": 0,
    }


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gpus() -> list[int]:
    """Numbers of the GPUs that jobs may see."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [int(number) for number in named.split(",") if number.strip().isdigit()]
    return [*range(torch.cuda.device_count())]


@contextmanager
def _without_interrupt() -> Iterator[None]:
    """Start processes that ignore Ctrl+C, which a terminal sends to all: this one ends them."""
    former = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, former)
