"""Where a kernel stands in for the formula, and where the formula is taken after all."""

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.autograd import Function

from duality_ssl._internals.torch import are_transforms_active

_F = TypeVar("_F", bound=Callable[..., Tensor])

SMALLEST = 2**16
"""Entries of the matrix, or of its products, below which the formula takes no longer."""
_CACHED = 2**18
"""Entries of a piece: 1 MiB in float32, a core's share of most caches."""


def accelerated(
    forward: Callable[..., tuple[Tensor, Sequence[Tensor]]],
    backward: Callable[..., Tensor],
    on: Callable[..., bool] = lambda x, *arguments: True,
) -> Callable[[_F], _F]:
    """Let a kernel stand in for a function of one tensor.

    The function itself runs on small matrices, under the transforms of ``torch.func``, and for a
    second derivative (``create_graph=True``): the kernel has a first one only.

    Args:
        forward: ``(x, *arguments) -> (result, what the backward pass needs beside x)``.
        backward: ``(gradient, x, saved, *arguments) -> gradient in x``.
        on: Whether the kernel takes these arguments.
    """

    def decorate(plain: _F) -> _F:
        class Kernel(Function):
            @staticmethod
            def forward(ctx: Any, x: Tensor, *arguments: Any) -> Tensor:
                result, saved = forward(x, *arguments)
                ctx.save_for_backward(x, *saved)
                ctx.arguments = arguments
                return result

            @staticmethod
            def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
                x, *saved = ctx.saved_tensors
                if torch.is_grad_enabled():
                    value = plain(x, *ctx.arguments)
                    (result,) = torch.autograd.grad(value, x, grad, create_graph=True)
                else:
                    with torch.autocast(grad.device.type, enabled=False):
                        result = backward(grad, x, saved, *ctx.arguments)
                return result, *(None for _ in ctx.arguments)

        parameters = list(inspect.signature(plain).parameters.values())

        @functools.wraps(plain)
        def wrapper(*args: Any, **kwargs: Any) -> Tensor:
            rest = {p.name: p.default for p in parameters[len(args) :]}
            x, *arguments = *args, *(rest | kwargs).values()  # one too many for an unknown name
            small = max(x.numel(), len(x) ** 2) < SMALLEST
            if small or are_transforms_active() or not on(x, *arguments):
                return plain(x, *arguments)
            result: Tensor = Kernel.apply(x, *arguments)
            return result

        return cast(_F, wrapper)

    return decorate


def pieces(x: Tensor, dim: int) -> Iterator[slice]:
    """Slices along ``dim`` that fit a cache; one slice where launches cost more than memory."""
    length = x.shape[dim]
    step = max(1, _CACHED * length // x.numel()) if x.device.type == "cpu" else length
    return (slice(start, start + step) for start in range(0, length, step))
