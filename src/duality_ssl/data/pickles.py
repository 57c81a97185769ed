"""CIFAR's pickles: read by an unpickler that knows numbers, strings, lists, dicts, byte arrays."""

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np


def read_pickle(path: Path) -> dict[Any, Any]:
    """Read a dict of arrays of bytes, lists and strings from a pickle; no code in it is run.

    Raises:
        ValueError: If the file is corrupt, or asks for anything but such arrays.
    """
    try:
        content = _ArrayUnpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    except Exception as error:  # a corrupt pickle raises whatever it happens upon
        reason = str(error) or type(error).__name__
        raise ValueError(
            f"Cannot read `{path}`: {reason}. Fetch the file again from a source you trust."
        ) from None
    if not isinstance(content, dict):
        raise ValueError(f"Expected a dict in `{path}`, but got {type(content).__name__}.")
    return {key: v.array if isinstance(v, _Array) else v for key, v in content.items()}


class _Array:
    """Stands in for an array of bytes while it is unpickled: numpy's own classes take no part.

    A pickle may set the state of what it builds. That of a `numpy.dtype` says whether the bytes of
    an array are pointers, and numpy believes it.
    """

    def __init__(self) -> None:
        self.array = np.empty(0, dtype=np.uint8)

    def __setstate__(self, state: tuple[int, tuple[int, ...], object, bool, bytes | str]) -> None:
        _, shape, _, fortran, raw = state
        self.fill(raw, shape, "F" if fortran else "C")

    def fill(self, raw: bytes | str, shape: tuple[int, ...], order: Literal["C", "F"]) -> "_Array":
        """Take the bytes, which in a pickle of Python 2 are a string."""
        own = bytearray(raw.encode("latin1") if isinstance(raw, str) else raw)
        self.array = np.frombuffer(own, dtype=np.uint8).reshape(shape, order=order)
        return self


class _Byte:
    """Stands in for the dtype of bytes; it has no other state."""

    def __setstate__(self, state: object) -> None:
        pass


class _ArrayUnpickler(pickle._Unpickler):
    """Calls nothing but the stand-ins below.

    The unpickler that is written in Python: for a file of ten bytes with a large number in it the
    one written in C asks for gigabytes. Each stand-in is made anew, for a pickle may set attributes
    of what it is given.
    """

    def find_class(self, module: str, name: str) -> Any:
        stand_ins: dict[str, Callable[..., object] | None] = {
            "_codecs.encode": lambda text, codec="latin1": _encode(text, codec),
            "numpy.ndarray": None,  # it is handed on to `_reconstruct`, and never called
            "numpy.dtype": lambda name, *_: _byte(name),
            "numpy.core.multiarray._reconstruct": lambda *_: _Array(),
            "numpy.core.numeric._frombuffer": lambda raw, _, *layout: _Array().fill(raw, *layout),
        }
        # files of numpy 1 and 2 name the same functions in two places
        wanted = f"{module.replace('numpy._core', 'numpy.core')}.{name}"
        if wanted not in stand_ins:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no array")
        return stand_ins[wanted]


def _encode(text: str, codec: str) -> bytes:
    if codec != "latin1":  # which Python 3 writes for bytes
        raise pickle.UnpicklingError(f"the codec {codec!r} is not allowed")
    return text.encode("latin1")


def _byte(name: str) -> _Byte:
    if name != "u1":
        raise pickle.UnpicklingError(f"it holds an array of {name!r}, not of bytes ('u1')")
    return _Byte()
