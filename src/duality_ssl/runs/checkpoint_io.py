"""Checkpoints that survive a full disk or a kill in the middle of a write."""

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_warn

from duality_ssl.files import write_atomically


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint completely or not at all, and lets training continue if it cannot.

    A kill leaves the old checkpoint or the new one. So does a write that fails, on a full disk for
    example, with one warning; the next checkpoint is tried again. Paths are local, no URLs.

    The command line always uses it; in Python, ``Trainer(plugins=[AtomicCheckpointIO()])``.
    """

    failed = False
    """Whether the latest checkpoint could not be written."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        path = Path(path)
        try:
            write_atomically(path, lambda file: torch.save(checkpoint, file))
        except (OSError, RuntimeError) as error:
            cause = _os_error(error)
            if cause is None:
                raise
            if not self.failed:
                rank_zero_warn(
                    f"No checkpoint can be written to {path.parent}: {cause.strerror or cause}. "
                    "Check the disk and who may write to it. Training continues, and the next "
                    "checkpoint is tried again."
                )
            self.failed = True
        else:
            self.failed = False


def _os_error(error: BaseException | None) -> OSError | None:
    """The operating system's error among the causes of the one that torch.save raises."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error
