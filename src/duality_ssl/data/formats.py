"""Readers of the on-disk formats of small image sets; each names the file it could not read."""

import gzip
import math
import zlib
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from duality_ssl.data.pickles import read_pickle


def describe(path: Path) -> str:
    """What is at a path, for an error's "but found ..."."""
    if not path.exists():
        return f"`{path}` does not exist"
    if not path.is_dir():
        return f"`{path}` is a file, not a folder"
    names = sorted(entry.name + "/" * entry.is_dir() for entry in path.iterdir())
    if not names:
        return f"`{path}` is empty"
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"`{path}` holds {', '.join(names[:5])}{more}"


def find_folder(root: Path, candidates: tuple[str, ...], files: tuple[str, ...], what: str) -> Path:
    """First of ``root / candidate`` that holds all ``files`` (each may be gzipped).

    Raises:
        FileNotFoundError: If none does; says what was expected and what is there.
    """
    for candidate in candidates:
        folder = root / candidate
        if all((folder / f).is_file() or (folder / f"{f}.gz").is_file() for f in files):
            return folder
    partial = next((root / c for c in candidates if c != "." and (root / c).is_dir()), root)
    raise FileNotFoundError(
        f"Expected {what} under `{root}` ({', '.join(files)} in {candidates[0]}/), "
        f"but {describe(partial)}."
    )


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes (MNIST's format), plain or gzipped.

    The bytes are read, and unzipped, straight into the array: at no time is there a second copy.

    Args:
        path: The file without ``.gz``; the gzipped one is read when only that is there.

    Returns:
        Array with the dimensions that the header gives.

    Raises:
        ValueError: If the file is corrupt or truncated.
    """
    zipped = path.with_name(path.name + ".gz")
    source = path if path.is_file() else zipped
    try:
        with source.open("rb") if source == path else gzip.open(source) as file:
            return _read_idx(cast(BinaryIO, file), source)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"Cannot read `{source}`: {error}. Fetch the file again.") from None


def _read_idx(file: BinaryIO, source: Path) -> NDArray[np.uint8]:
    start = file.read(4)
    rank = start[3] if len(start) == 4 else 0
    header = file.read(4 * rank)
    if start[:3] != b"\0\0\x08" or not 0 < rank < 5 or len(header) < 4 * rank:
        raise ValueError(
            f"Expected an IDX file of bytes in `{source}`, but its header is another. Fetch the "
            "file again."
        )
    shape = tuple(np.frombuffer(header, dtype=">u4").tolist())
    found = "far fewer"
    # before memory is asked for: a corrupt header may promise any number of bytes
    if math.prod(shape) <= _DEFLATE * source.stat().st_size:
        data = np.empty(shape, dtype=np.uint8)
        body, got = data.reshape(-1).data, 0
        while count := file.readinto(body[got : got + _PIECE]):  # type: ignore[attr-defined]
            got += count
        if got == len(body) and not file.read(1):
            return data
        found = "fewer" if got < len(body) else "more"
    raise ValueError(
        f"Expected {shape} bytes in `{source}`, but got {found}: the file is truncated or corrupt. "
        "Fetch it again."
    )


_PIECE = 1 << 16  # bytes read at a time: what is unzipped is held twice meanwhile
_DEFLATE = 1032  # zlib's largest ratio


def read_cifar_batch(path: Path, label_key: str) -> tuple[Tensor, Tensor]:
    """Read one batch file of CIFAR's python version.

    Args:
        path: The file, a pickled dict with ``data`` of shape ``(n, 3072)``.
        label_key: ``labels`` (CIFAR-10) or ``fine_labels`` (CIFAR-100).

    Returns:
        Images ``(n, 3, 32, 32)`` of ``uint8`` and labels ``(n,)``.

    Raises:
        ValueError: If the file cannot be read or holds something else.
    """
    content = read_pickle(path)
    data, labels = content.get("data"), content.get(label_key)
    if (
        not isinstance(data, np.ndarray)
        or data.dtype != np.uint8
        or data.shape[1:] != (3072,)
        or not isinstance(labels, list)
        or len(labels) != len(data)
        or not all(isinstance(label, int) for label in labels)
    ):
        raise ValueError(
            f"Expected `data` of shape (n, 3072) and as many `{label_key}` in `{path}`, but it "
            f"holds {sorted(map(str, content))}."
        )
    return torch.from_numpy(data.reshape(-1, 3, 32, 32)), torch.tensor(labels, dtype=torch.long)


def read_stl10_images(path: Path) -> Tensor:
    """Map one of STL-10's binary image files into memory.

    The file has channels first and columns before rows. It is mapped, not copied: the unlabelled
    images are 2.8 GB, which all processes of a machine then share.

    Returns:
        Images ``(n, 3, 96, 96)`` of ``uint8``, not contiguous.

    Raises:
        ValueError: If the file is empty or no whole number of images.
    """
    size = path.stat().st_size
    if size == 0 or size % (3 * 96 * 96):
        raise ValueError(
            f"Expected `{path}` to be a whole number of 27648-byte images, but it has {size} "
            "bytes: it is truncated or corrupt. Fetch it again."
        )
    flat = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
    return flat.view(-1, 3, 96, 96).transpose(2, 3)
