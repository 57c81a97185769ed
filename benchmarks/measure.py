"""The harness of the benchmarks: alternating times, peak memory, the machine, JSON lines."""

import argparse
import contextlib
import gc
import importlib.metadata
import json
import os
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler says when it starts and stops

import torch
from render import FIGURES, read, table
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from duality_ssl.sweeps.job import processor

LIBRARIES = ("torch", "torchvision", "lightning", "lightly", "kornia", "timm", "lightning-bolts")
# A contender that takes longer than SLOW seconds is run FEW times and warmed up once.
SLOW, FEW = 1.0, 3


class Medians(dict[str, float]):
    """Median seconds by name; ``spread`` is half their interquartile range over the median."""

    spread: dict[str, float]


def alternate(
    contenders: Mapping[str, Callable[[], object]], repeats: int = 7, warmup: int = 2
) -> Medians:
    """Time the contenders in turn, round after round, in this process.

    In turn, so that a slow second of the machine is everybody's; the garbage collector is off in
    the meantime, and CUDA is waited for before each reading of the clock.

    Args:
        contenders: What to run, by name.
        repeats: Rounds that count. Whoever's median is over a second after 3 rounds is done then.
        warmup: Rounds before that; whoever takes over a second is warmed up once.

    Returns:
        The median seconds of each.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(-warmup, repeats):
        for name, run in contenders.items():
            taken = times[name]
            if taken and statistics.median(taken) > SLOW and (turn < 0 or len(taken) >= FEW):
                continue
            if turn == 0:
                taken.clear()
            taken.append(_seconds(run))
    medians = Medians((name, statistics.median(taken)) for name, taken in times.items())
    medians.spread = {name: _spread(taken) for name, taken in times.items()}
    return medians


def _spread(taken: list[float]) -> float:
    if len(taken) < 2:
        return 0.0
    low, median, high = statistics.quantiles(taken, n=4, method="inclusive")
    return (high - low) / 2 / median


def _seconds(run: Callable[[], object]) -> float:
    gc.collect()
    gc.disable()
    try:
        _synchronize()
        started = time.perf_counter()
        run()
        _synchronize()
        return time.perf_counter() - started
    finally:
        gc.enable()


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_memory(run: Callable[[], object]) -> int:
    """Measure what the allocator of torch held at the peak of ``run`` beyond what it held before.

    On a CPU that is the running total of the allocations and releases that the profiler sees:
    every tensor, temporaries inside of operators and the backward pass too, to the byte; not the
    buffers that BLAS keeps for itself. A release of what was there before does not count.

    Args:
        run: What to run once; what it returns counts, as it is held until the end.

    Returns:
        Bytes, of the GPU if any of it was used.
    """
    gc.collect()
    before = 0
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as seen:
        run()
    if torch.cuda.is_available() and (peak := torch.cuda.max_memory_allocated() - before):
        return peak
    events = [
        event
        for event in seen.profiler.kineto_results.events()
        if event.name() == "[memory]" and event.device_type() == DeviceType.CPU
    ]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def machine() -> dict[str, str]:
    """Say what measured: processor, GPU, threads, and the versions of what is installed."""
    versions = []
    for library in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{library} {importlib.metadata.version(library)}")
    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    threads = str(torch.get_num_threads())
    return {"processor": processor(), **gpu, "threads": threads, "versions": ", ".join(versions)}


def save(name: str, rows: Iterable[dict[str, Any]], out: Path) -> Path:
    """Write ``rows``, each with the machine, to ``out/name.jsonl``, and print their table.

    Args:
        name: The benchmark's, and its table's.
        rows: Flat, rounded here; what a row says itself of the machine (as its threads) stays.
        out: The folder, made if need be.

    Returns:
        The file.
    """
    rows = [{**machine(), **{key: _rounded(row[key]) for key in row}} for row in rows]
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(table(name, rows))
    return path


def save_some(
    name: str, rows: Iterable[dict[str, Any]], only: Sequence[str], order: Iterable[str], out: Path
) -> Path:
    """Save rows in the place of the older ones of the same cases; the others' stay.

    Args:
        name: The benchmark's, and its table's.
        rows: As in :func:`save`; ``"what"`` is the case.
        only: The cases that were measured.
        order: All cases, as they are to stand.
        out: The folder.

    Returns:
        The file.
    """
    places = {case: place for place, case in enumerate(order)}
    kept = [row for row in read(name, out) if row["what"] not in only]
    return save(name, sorted([*kept, *rows], key=lambda row: places[row["what"]]), out)


def _rounded(value: Any) -> Any:
    """Keep four digits of what was measured: more is noise."""
    return float(f"{value:.4g}") if isinstance(value, float) else value


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Return the options that all benchmarks have; ``doc`` is the script's docstring."""
    options = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--smoke", action="store_true", help="tiny sizes, one repeat: does it run")
    options.add_argument("--out", type=Path, default=FIGURES, help="folder of the JSON lines")
    options.add_argument("--repeats", type=int, default=7, help="rounds of each timing, 5 or more")
    return options
