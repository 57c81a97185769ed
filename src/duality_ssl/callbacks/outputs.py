"""Collect the steps' outputs over an epoch and all processes; where files of them go."""

import os
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Trainer
from torch import Tensor

from duality_ssl.distributed import all_gather_rows, rank, world_size

# rows of one process in one message
_ROWS = 2**14


class OutputStore:
    """Rows of named entries of the steps' outputs.

    Args:
        names: Entries to keep, such as ``features`` and ``labels``.
        device: Where they are kept; None leaves them where they are.
    """

    def __init__(self, names: Sequence[str], device: str | None = None) -> None:
        self.device = device
        self._rows: dict[str, list[Tensor]] = {name: [] for name in names}

    def __len__(self) -> int:
        return sum(len(rows) for rows in next(iter(self._rows.values())))

    def add(self, outputs: Mapping[str, Any], limit: int | None = None) -> None:
        """Keep the first ``limit`` rows of one step's outputs, all by default."""
        for name, rows in self._rows.items():
            rows.append(outputs[name][:limit].detach().to(self.device))

    def gather(self, device: torch.device) -> dict[str, Tensor]:
        """Rows of all processes, in rank order, where they are kept; the store is empty after.

        Only the first process gets them, a piece at a time: a large set fits into its memory and
        need not fit into that of an accelerator.

        Args:
            device: Device that the processes communicate on.

        Returns:
            The rows by name; an empty dictionary on the other processes.
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
    """All processes' rows in rank order on the first process; no row on the others."""
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
    """Strings of all processes, in rank order; none of them may hold a null character."""
    own = np.frombuffer(b"".join(os.fsencode(string) + b"\0" for string in strings), np.uint8)
    joined = all_gather_rows(torch.from_numpy(own.copy()).to(device)).cpu().numpy().tobytes()
    return [os.fsdecode(string) for string in joined.split(b"\0")[:-1]]


def output_path(trainer: Trainer, filename: str) -> Path:
    """Where a file about the checkpoint in use goes: beside it, under a name that says which.

    What is said of ``best.ckpt`` has ``-best`` in its name (``evaluation-best.json``), and so on;
    of ``last.ckpt`` it has the plain name. Without a checkpoint the plain name is in the run's own
    folder. To be called by every process: they agree on the run's folder.
    """
    run = trainer.log_dir or trainer.default_root_dir
    if not trainer.ckpt_path:
        return Path(run) / filename
    checkpoint, plain = Path(trainer.ckpt_path), Path(filename)
    mark = "" if checkpoint.stem == "last" else f"-{checkpoint.stem}"
    return checkpoint.parent / f"{plain.stem}{mark}{plain.suffix}"
