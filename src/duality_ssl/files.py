"""Atomic writes: a file is complete or not there, whatever interrupts the write."""

import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO

_TEMPORARY = ".tmp"


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a temporary file beside ``path``, force it to the disk, and rename it.

    An error leaves the old file unchanged; so does a kill, with a temporary file that
    `remove_temporary` deletes.

    Args:
        path: The file; its folder is created if it is missing.
        write: Writes the content into an open binary file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(_TEMPORARY, f".{path.name}.", path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp lets only the owner read; set the mode of a plain open
        umask = os.umask(0)
        os.umask(umask)
        Path(name).chmod(0o666 & ~umask)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def remove_temporary(folder: Path) -> None:
    """Delete the temporary files of a killed process."""
    for path in folder.glob(f".*{_TEMPORARY}"):
        path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Force the new name to the disk, if the file system can."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
