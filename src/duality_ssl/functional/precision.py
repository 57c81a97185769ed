"""Float32 at least, outside autocast; and what rounding leaves of a constant."""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

_P = ParamSpec("_P")
_R = TypeVar("_R")

SHORTEST = 1e-12
"""A shorter vector has no direction: it normalises to zero, with zero gradient."""
_ROUNDING = 16.0


def full_precision(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Run a function of tensors outside autocast, in float32 or, for float64, in float64.

    Example:
        >>> @full_precision
        ... def square(z: Tensor) -> Tensor:
        ...     return z * z
        >>> square(torch.tensor([300.0], dtype=torch.float16))  # 90,000 is infinite in float16
        tensor([90000.])
    """

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:  # `torch.compile` fails on `_P.args` here
        tensors = (value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        with torch.autocast(next(tensors).device.type, enabled=False):
            promoted = {name: _promote(value) for name, value in kwargs.items()}
            return function(*map(_promote, args), **promoted)

    return wrapper


def _promote(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64:
        return value.float()
    if type(value) is tuple:  # the targets of a criterion, not a group
        return tuple(map(_promote, value))
    return value


def to_double(z: Tensor) -> Tensor:
    """Convert to float64, which autocast leaves alone; on the CPU if the device is MPS."""
    return (z.cpu() if z.device.type == "mps" else z).double()  # MPS has no float64


def rounding_noise(mean: Tensor) -> Tensor:
    """Bound what centring leaves of a constant: about ``eps * |mean|``, which is no spread."""
    return _ROUNDING * torch.finfo(mean.dtype).eps * mean.abs() + SHORTEST
