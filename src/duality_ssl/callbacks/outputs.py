"""Collect the steps' outputs over an epoch and all processes, and write files from them."""

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import torch
from lightning import Trainer
from torch import Tensor

from duality_ssl.distributed import all_gather_rows


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

        Args:
            device: Device that the processes communicate on.
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
            gathered[name] = all_gather_rows(local.to(device)).to(local.device)
        return gathered


def output_folder(trainer: Trainer) -> Path:
    """The folder of the checkpoint in use, or the run's own where there is no checkpoint.

    To be called by every process: they agree on the run's folder.
    """
    run = trainer.log_dir or trainer.default_root_dir
    return Path(trainer.ckpt_path).parent if trainer.ckpt_path else Path(run)


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file whole or not at all: beside it first, then in its place.

    Args:
        path: The file; its folder is made where there is none.
        write: Writes the content into an open binary file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
        # mkstemp's file is its owner's alone; give it what a plain open would have
        umask = os.umask(0)
        os.umask(umask)
        Path(name).chmod(0o666 & ~umask)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
