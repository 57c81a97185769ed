"""Checkpoints that a full disk or a kill cannot damage."""

import errno
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from duality_ssl._internals.lightning import PathLike
from duality_ssl.files import write_atomically

_REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "Make room on the disk"),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "Make the folder writable"),
}


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint whole or not at all, and lets training go on where it cannot.

    A checkpoint is on the disk before it takes its name: a kill, or a loss of power, leaves either
    the old one or the new one. A write that fails, on a full disk say, leaves the old one and no
    rest of the new one, and is warned of once; the next checkpoint is tried all the same.

    Every fit of the command line has it; in Python, ``Trainer(plugins=[AtomicCheckpointIO()])``. A
    path that is a URL is left to Lightning.
    """

    failed = False
    """Whether the checkpoint that was due last could not be written."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: PathLike, storage_options: Any | None = None
    ) -> None:
        """Write the checkpoint, or warn that this is not possible."""
        if "://" in str(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        try:
            write_atomically(Path(path), lambda file: torch.save(checkpoint, file))
        except (OSError, RuntimeError) as error:
            cause = _os_error(error)
            if cause is None:
                raise
            self._report(cause, Path(path))
            return
        if self.failed:
            rank_zero_info(f"Checkpoints are written to {Path(path).parent} again.")
        self.failed = False

    def _report(self, error: OSError, path: Path) -> None:
        if not self.failed:
            rank_zero_warn(
                f"No checkpoint can be written to {path.parent}: {error.strerror or error}. "
                "Training goes on, and the checkpoints that are there stay as they are. "
                f"{_REMEDIES.get(error.errno or 0, 'See to the disk')}: the next one is tried "
                "again when it is due."
            )
        self.failed = True


def _os_error(error: BaseException | None) -> OSError | None:
    """The error of the operating system in the chain of causes: torch.save raises its own."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error
