"""What one process does: fit and test a few runs, one after the other, so that torch loads once."""

import json
import os
import platform
import re
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from duality_ssl.data import create_source
from duality_ssl.files import write_atomically
from duality_ssl.sweeps.rows import Row, read_run
from duality_ssl.sweeps.runs import Command, Run

INTERRUPTED = 75  # exit code of a fit that ends on a signal, see `runs.preemption`
_REFUSALS = (1, 2, 3)  # exit codes of a command that has said why
_REFUSED = "duality-ssl: error: "


class Job:
    """Runs to be done in one process, which writes the row of each to its ``result``.

    submitit pickles it. A requeued job leaves out what has a result, and resumes the run that was
    interrupted.

    Args:
        runs: In order.
        command: Runs the words of a command line.
        again: Train from scratch what an older version has trained.
        parent: Process without which no further run is begun, if it is on this machine.
    """

    def __init__(
        self, runs: Sequence[Run], command: Command, again: bool = False, parent: int | None = None
    ) -> None:
        self.runs = runs
        self.command = command
        self.again = again
        self.parent = parent

    def __call__(self) -> None:
        """Do the runs; a failed one leaves the rest."""
        signal.signal(signal.SIGTERM, _exit)  # in a fit its own handler takes this place
        # of the processes of a job on several GPUs: SLURM starts them, elsewhere Lightning does
        first = {os.environ.get(name, "0") for name in ("SLURM_PROCID", "LOCAL_RANK")} == {"0"}
        for run in self.runs:
            if self.parent and not _lives(self.parent):
                return
            if not run.result.is_file():
                row = execute(run, self.command, self.again)
                if first:
                    _write(run.result, row)

    def checkpoint(self) -> Any:
        """What submitit requeues when SLURM ends the job."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _write(path: Path, row: Row) -> None:
    content = json.dumps(row, ensure_ascii=False).encode()
    write_atomically(path, lambda file: file.write(content))


def execute(run: Run, command: Command, again: bool = False) -> Row:
    """Fit and test a run; its output goes to its log.

    Returns:
        Its row; with an ``error`` and no scores if it failed.

    Raises:
        SystemExit: If a signal ends the process.
    """
    started = time.monotonic()
    row = describe(run)
    with output_to(run.log):
        try:
            if run.fits:
                _call(command, run.fit_words(again))
            _call(command, run.test_words())
            row |= {"parameters": count_parameters(run), **read_run(run.folder)}
        except Exception as error:
            traceback.print_exc()
            row["error"] = " ".join(f"{type(error).__name__}: {error}".split())[:400]
        except SystemExit as done:
            if done.code not in _REFUSALS:
                raise
            row["error"] = refusal(run.log) or f"It ended with code {done.code}"
    return row | {"seconds": round(time.monotonic() - started, 1)}


def describe(run: Run) -> Row:
    """The part of a row that is known before the run."""
    import torch

    import duality_ssl

    return run.label() | {
        "version": duality_ssl.__version__,
        "torch": torch.__version__.partition("+")[0],
        "machine": _machine(),
    }


def count_parameters(run: Run) -> dict[str, int]:
    """Parameters of the backbone and of the projector, counted without memory for them."""
    import pkgutil

    import torch

    model, data = run.config["model"], run.config["data"]
    arguments = {
        name: value
        for name, value in model["init_args"].items()
        if name not in ("optimizer", "scheduler", "pretrained")
    }
    if arguments.get("in_channels", 3) is None:
        arguments["in_channels"] = create_source(data["source"], data["root"]).channels
    with torch.device("meta"):
        method: Any = pkgutil.resolve_name(model["class_path"])(**arguments)
    return {
        part: sum(each.numel() for each in getattr(method, part).parameters())
        for part in ("backbone", "projector")
    }


def _call(command: Command, words: Sequence[str]) -> None:
    sys.stdout.write(f"$ duality-ssl {shlex.join(words)}\n")
    try:
        command(words)
    except SystemExit as done:
        if done.code:  # 0 where nothing was left to do
            raise


def refusal(log: Path) -> str | None:
    """The sentence that the command ended with, if it did."""
    lines = [line for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
    refused = lines and lines[-1].startswith(_REFUSED)
    return lines[-1].removeprefix(_REFUSED) if refused else None


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def _exit(number: int, frame: object) -> None:
    raise SystemExit(INTERRUPTED)


@contextmanager
def output_to(path: Path) -> Iterator[None]:
    """Append all that the process prints to a file, also what libraries in C print."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = [os.dup(number) for number in (1, 2)]
    with path.open("a", buffering=1, encoding="utf-8", errors="backslashreplace") as file:
        try:
            for number in (1, 2):
                os.dup2(file.fileno(), number)
            with redirect_stdout(file), redirect_stderr(file):
                yield
        finally:
            for number, descriptor in zip((1, 2), kept, strict=True):
                os.dup2(descriptor, number)
                os.close(descriptor)


def _machine() -> str:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{torch.get_num_threads()} threads, {processor()}"


def processor() -> str:
    """Return the name of the processor as the system reports it."""
    found = None
    if (cpuinfo := Path("/proc/cpuinfo")).is_file():
        found = re.search(r"model name\s*: (.+)", cpuinfo.read_text())
    return found[1].strip() if found else platform.processor() or platform.machine()
