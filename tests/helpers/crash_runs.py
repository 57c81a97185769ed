"""Processes that run the command and kill themselves at a chosen moment."""

import importlib
import io
import multiprocessing
import os
import signal
from collections.abc import Callable
from itertools import count
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from helpers.forkserver import CONTEXT


class Kill(NamedTuple):
    """Where a process sends itself SIGKILL."""

    function: str
    """Dotted path of a module's function, or of a method of a class in it."""
    call: int
    """Which of its calls, counted from 1."""
    when: Literal["before", "after", "half way"]
    """Half way is for `torch.save`: half of the file is written."""


def start(folder: Path, words: list[str], kill: Kill | None = None) -> BaseProcess:
    """Run ``duality-ssl`` with these arguments in a folder, in a new process."""
    process = CONTEXT.Process(target=_run, args=(folder, words, kill))
    process.start()
    return process


def end(process: BaseProcess, seconds: float | None = None) -> int:
    """Wait for a process, kill it after so many seconds, and return its exit code."""
    process.join(300 if seconds is None else seconds)
    if process.is_alive():
        process.kill()
        process.join()
        assert seconds is not None, "The run hangs."
    assert process.exitcode is not None
    return process.exitcode


def _run(folder: Path, words: list[str], kill: Kill | None) -> None:
    from duality_ssl.cli import main

    # as in a fresh interpreter: forked loader workers notice the death of their parent
    multiprocessing.set_start_method("fork", force=True)
    os.chdir(folder)
    log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    torch.set_num_threads(1)
    if kill is not None:
        _aim(kill)
    main(words)


def _aim(kill: Kill) -> None:
    owner, name = _find(kill.function)
    function, calls = getattr(owner, name), count(1)

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def aimed(*args: Any, **kwargs: Any) -> Any:
        if next(calls) != kill.call:
            return function(*args, **kwargs)
        if kill.when == "half way":
            _write_half(function, *args)
        elif kill.when == "after":
            function(*args, **kwargs)
        return die()

    setattr(owner, name, aimed)


def _write_half(save: Callable[..., None], content: Any, file: Any) -> None:
    whole = io.BytesIO()
    save(content, whole)
    file.write(whole.getvalue()[: whole.tell() // 2])
    file.flush()


def _find(path: str) -> tuple[Any, str]:
    """The module or class that has a function, and the function's name in it."""
    *module, cls, name = path.split(".")
    try:
        return importlib.import_module(".".join([*module, cls])), name
    except ModuleNotFoundError:
        return getattr(importlib.import_module(".".join(module)), cls), name
