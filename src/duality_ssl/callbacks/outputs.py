"""Read and collect the outputs of steps; paths of the files written from them."""

import os
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Trainer
from torch import Tensor

from duality_ssl.batches import describe
from duality_ssl.distributed import all_gather_rows, rank, world_size

_ROWS = 2**14  # of one process sent at a time


def views(outputs: Any, name: str, step: str) -> list[Tensor]:
    """Read an entry of a step's outputs: the rows ``(N, F)`` of each view, detached."""
    entry = outputs.get(name) if isinstance(outputs, Mapping) else None
    parts = list(entry) if isinstance(entry, tuple | list) else [entry]
    rows = [part.detach() for part in parts if isinstance(part, Tensor) and part.ndim == 2]
    if not rows or len(rows) < len(parts) or len({len(part) for part in rows}) > 1:
        got = describe(entry) if entry is not None else f"no {name!r}"
        raise ValueError(
            f"Expected `{step}` to return a dict with {name!r}, a tensor (N, F) or a tuple of one "
            f"a view, but got {got}: return {{..., {name!r}: {name}.detach()}}."
        )
    return rows


def step_rows(outputs: Any, names: Sequence[str], step: str) -> dict[str, Tensor]:
    """Read entries of a step's outputs, one view after the other; ``labels`` once for each view."""
    parts = {name: views(outputs, name, step) for name in names if name != "labels"}
    found = {name: torch.cat(each) if each[1:] else each[0] for name, each in parts.items()}
    if "labels" in names:
        first = next(iter(parts.values()))
        labels = outputs.get("labels")
        if not isinstance(labels, Tensor) or labels.shape != (len(first[0]),):
            got = "no 'labels'" if labels is None else describe(labels)
            raise ValueError(
                f"Expected `{step}` to return a dict with 'labels', a tensor (N,) of the classes "
                f"of its N = {len(first[0])} samples (-1 for unlabelled ones), but got {got}."
            )
        found["labels"] = labels.long().repeat(len(first))
    return found


class OutputStore:
    """Rows of entries of the steps' outputs, on ``device`` or their own; some are optional."""

    def __init__(
        self, names: Sequence[str], optional: Sequence[str] = (), device: str | None = None
    ) -> None:
        self.optional = optional
        self.device = device
        self._rows: dict[str, list[Tensor]] = {name: [] for name in names}

    def __len__(self) -> int:
        return sum(len(rows) for rows in next(iter(self._rows.values()), ()))

    def add(self, outputs: Any, step: str, limit: int | None = None) -> None:
        """Keep the first ``limit`` rows of a step's outputs, by default all."""
        for name in self.optional:
            if isinstance(outputs, Mapping) and name in outputs:
                self._rows.setdefault(name, [])
        for name, entry in step_rows(outputs, list(self._rows), step).items():
            self._rows[name].append(entry[:limit].to(self.device))

    def gather(self, device: torch.device) -> dict[str, Tensor]:
        """Gather the rows of all processes on the first one, in rank order; empty the store.

        They are sent through ``device``, in pieces that fit. The other processes get no rows.
        """
        gathered = {}
        for name, rows in self._rows.items():
            if not rows:
                raise ValueError(
                    f"Expected `{name}` of at least one batch on every process, but got none. "
                    "Use fewer processes or more data."
                )
            local = torch.cat(rows)
            rows.clear()
            gathered[name] = local if world_size() == 1 else _gather_to_first(local, device)
        return gathered if rank() == 0 else {}


def _gather_to_first(local: Tensor, device: torch.device) -> Tensor:
    """Gather all processes' rows in rank order on the first process; no row on the others."""
    counts = all_gather_rows(torch.tensor([len(local)], device=device)).tolist()
    gathered = local.new_empty(sum(counts) if rank() == 0 else 0, *local.shape[1:])
    starts = list(accumulate(counts[:-1], initial=0))
    for start in range(0, max(counts), _ROWS):
        piece = all_gather_rows(local[start : start + _ROWS].to(device))
        if rank() == 0:
            sizes = [min(max(count - start, 0), _ROWS) for count in counts]
            for first, part in zip(starts, piece.split(sizes), strict=True):
                gathered[first + start : first + start + len(part)] = part
    return gathered


def gather_strings(strings: Sequence[str], device: torch.device) -> list[str]:
    """Gather the strings of all processes in rank order; they must not hold a null character."""
    own = np.frombuffer(b"".join(os.fsencode(string) + b"\0" for string in strings), np.uint8)
    joined = all_gather_rows(torch.from_numpy(own.copy()).to(device)).cpu().numpy().tobytes()
    return [os.fsdecode(string) for string in joined.split(b"\0")[:-1]]


def weights_file(trainer: Trainer) -> Path | None:
    """The checkpoint in use, or the file of a `duality_ssl.methods.FrozenBackbone`."""
    path = trainer.ckpt_path or getattr(trainer.lightning_module, "weights", None)
    return Path(path) if isinstance(path, str | Path) else None


def output_path(trainer: Trainer, filename: str) -> Path:
    """Path of a file about the weights in use, beside them.

    ``evaluation-best.json`` is about ``best.ckpt``, ``evaluation.json`` about ``last.ckpt``.
    Without weights it is in the run's folder, which all processes agree on: call it on all.
    """
    run = trainer.log_dir or trainer.default_root_dir
    weights, plain = weights_file(trainer), Path(filename)
    if weights is None:
        return Path(run) / filename
    mark = "" if trainer.ckpt_path and weights.stem == "last" else f"-{weights.stem}"
    return weights.parent / f"{plain.stem}{mark}{plain.suffix}"
