"""Full precision, and products on the smaller side with a backward pass by hand.

By hand, since autograd knows neither that a Gram matrix is symmetric, so that half of its backward
is wasted, nor that the gradient of the fourth norms fits into the same pass.

Results have the memory layout of their inputs (``empty_like``), so that a transposed view costs
what the matrix costs, and what is not a product is done in pieces that stay in a cache.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.autograd import Function

_P = ParamSpec("_P")
_R = TypeVar("_R")

_CACHED = 2**18  # elements of a piece: 1 MiB in float32, a core's share of most caches


def _promote(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64:
        return value.float()
    return value


def full_precision(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Run ``function`` outside autocast, its tensors in float32 or, if they are, in float64.

    Args:
        function: Takes at least one tensor.

    Returns:
        The function, with the signature that it had.
    """

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:  # `torch.compile` fails on `_P.args` here
        tensors = (value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        with torch.autocast(next(tensors).device.type, enabled=False):
            promoted = {name: _promote(value) for name, value in kwargs.items()}
            return function(*map(_promote, args), **promoted)

    return wrapper


def first_derivative(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Run a backward pass outside autocast, and refuse one that is to be differentiated again.

    ``once_differentiable`` refuses only where the incoming gradient has a history: that of a plain
    sum is a constant, and its second derivative would pass as zero.
    """

    @functools.wraps(backward)
    def wrapper(ctx: Any, *grads: Tensor) -> Any:
        if torch.is_grad_enabled():
            raise NotImplementedError(
                "Expected a first derivative, but got `create_graph=True`: the products of "
                "`duality_ssl.functional` have no second derivative."
            )
        with torch.autocast(grads[0].device.type, enabled=False):
            return backward(ctx, *grads)

    return wrapper


def pieces(z: Tensor, dim: int) -> Iterator[slice]:
    """Slices along ``dim`` that fit a cache; one slice where launches cost more than memory."""
    length = z.shape[dim]
    step = max(1, _CACHED * length // z.numel()) if z.device.type == "cpu" else length
    return (slice(start, start + step) for start in range(0, length, step))


class _OffDiagonalGram(Function):
    """``z -> (sum_{i != j} (z_i . z_j)^2, the squared norms of the rows)``."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> tuple[Tensor, Tensor]:
        if len(z) <= z.shape[1]:
            gram = z @ z.T
            norms = gram.diagonal().clone()
            gram.fill_diagonal_(0)
            value = gram.square().sum()
        else:  # theorem 3.3; the diagonal of the other side is the fourth-norm sum of the columns
            gram, norms = z.T @ z, z.square().sum(dim=1)
            value = gram.square().sum() - norms.square().sum()
        ctx.save_for_backward(z, gram, norms)
        return value, norms.clone()

    @staticmethod
    @first_derivative
    def backward(ctx: Any, grad_value: Tensor, grad_norms: Tensor) -> Tensor:
        z, gram, norms = ctx.saved_tensors
        if len(z) <= z.shape[1]:
            return (4 * grad_value * gram + (2 * grad_norms).diag()) @ z
        weights = 2 * grad_norms - 4 * grad_value * norms
        return torch.addcmul(z @ (4 * grad_value * gram), weights[:, None], z)


@full_precision
def sample_gram(z: Tensor) -> tuple[Tensor, Tensor]:
    """Return :math:`L_c` of shape ``()`` and the rows' squared norms ``(N,)``, by one product."""
    result: tuple[Tensor, Tensor] = _OffDiagonalGram.apply(z)
    return result


def dimension_gram(z: Tensor) -> tuple[Tensor, Tensor]:
    """Return :math:`L_{nc}` of shape ``()`` and the columns' squared norms ``(D,)``, likewise."""
    return sample_gram(z.T)
