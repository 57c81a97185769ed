"""Full precision, and products on the smaller side with a backward pass by hand.

By hand, since autograd knows neither that a Gram matrix is symmetric, so that half of its backward
is wasted, nor that the gradient of the fourth norms fits into the same pass.
"""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.autograd import Function

_P = ParamSpec("_P")
_R = TypeVar("_R")


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


def _first_derivative(backward: Callable[..., Any]) -> Callable[..., Any]:
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
    @_first_derivative
    def backward(ctx: Any, grad_value: Tensor, grad_norms: Tensor) -> Tensor:
        z, gram, norms = ctx.saved_tensors
        if len(z) <= z.shape[1]:
            return (4 * grad_value * gram + (2 * grad_norms).diag()) @ z
        weights = 2 * grad_norms - 4 * grad_value * norms
        return torch.addcmul(z @ (4 * grad_value * gram), weights[:, None], z)


class _OffDiagonalCross(Function):
    """``a, b -> (sum_{i != j} (a_i . b_j)^2, the products a_i . b_i)``."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        if len(a) <= a.shape[1]:
            cross = a @ b.T
            products = cross.diagonal().clone()
            cross.fill_diagonal_(0)
            value = cross.square().sum()
            ctx.save_for_backward(a, b, cross)
        else:  # ||a b^T||_F^2 = <a^T a, b^T b>
            products = (a * b).sum(dim=1)
            gram_a, gram_b = a.T @ a, b.T @ b
            value = (gram_a * gram_b).sum() - products.square().sum()
            ctx.save_for_backward(a, b, gram_a, gram_b, products)
        return value, products.clone()

    @staticmethod
    @_first_derivative
    def backward(ctx: Any, grad_value: Tensor, grad_products: Tensor) -> tuple[Tensor, Tensor]:
        a, b, *saved = ctx.saved_tensors
        if len(a) <= a.shape[1]:
            weights = 2 * grad_value * saved[0] + grad_products.diag()
            return weights @ b, weights.T @ a
        gram_a, gram_b, products = saved
        on_products = (grad_products - 2 * grad_value * products)[:, None]
        grad_a = torch.addcmul(a @ (2 * grad_value * gram_b), on_products, b)
        grad_b = torch.addcmul(b @ (2 * grad_value * gram_a), on_products, a)
        return grad_a, grad_b


class _SelfProduct(Function):
    """``z -> z z^T``, with one product in the backward pass, ``(G + G^T) z``, instead of two."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return z @ z.T

    @staticmethod
    @_first_derivative
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors
        return (grad + grad.T) @ z


class _Product(Function):
    """``a, b -> a b^T``; autograd's own backward pass would obey an autocast that is on by then."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return a @ b.T

    @staticmethod
    @_first_derivative
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        a, b = ctx.saved_tensors
        return grad @ b, grad.T @ a


class _HalfLogDet(Function):
    """``z -> logdet(I + scale z^T z) / 2`` and, as gradient, ``scale (I + scale z z^T)^-1 z``."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, scale: float) -> Tensor:
        matrix = (z @ z.T if len(z) <= z.shape[1] else z.T @ z).mul_(scale)
        matrix.diagonal().add_(1)
        # `cholesky` would synchronise with the device to raise: a failure is a NaN instead.
        factor, info = torch.linalg.cholesky_ex(matrix)
        factor.diagonal().masked_fill_(info != 0, torch.nan)
        ctx.save_for_backward(z, factor)
        ctx.scale = scale
        return factor.diagonal().log().sum()

    @staticmethod
    @_first_derivative
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        z, factor = ctx.saved_tensors
        inverse = grad * ctx.scale * torch.cholesky_inverse(factor)
        return (inverse @ z if len(z) <= z.shape[1] else z @ inverse), None


@full_precision
def sample_gram(z: Tensor) -> tuple[Tensor, Tensor]:
    """Return :math:`L_c` of shape ``()`` and the rows' squared norms ``(N,)``, by one product."""
    result: tuple[Tensor, Tensor] = _OffDiagonalGram.apply(z)
    return result


def dimension_gram(z: Tensor) -> tuple[Tensor, Tensor]:
    """Return :math:`L_{nc}` of shape ``()`` and the columns' squared norms ``(D,)``, likewise."""
    return sample_gram(z.T)


@full_precision
def cross_gram(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    r"""Products of two matrices' rows: of each row with its partner, and squared with the others.

    Args:
        a: Shape ``(N, D)``; the transposed embeddings for a cross-correlation of dimensions.
        b: Shape ``(N, D)``.

    Returns:
        The scalar :math:`\sum_{i \ne j} (a_i \cdot b_j)^2`, computed on the smaller side with
        :math:`\|a b^\top\|_F^2 = \langle a^\top a, b^\top b\rangle`, and the products
        :math:`a_i \cdot b_i` of shape ``(N,)``.
    """
    result: tuple[Tensor, Tensor] = _OffDiagonalCross.apply(a, b)
    return result


def self_product(z: Tensor) -> Tensor:
    """Return :math:`z z^T`, a matrix of the caller's own that may be masked in place."""
    result: Tensor = _SelfProduct.apply(z)
    return result


def product(a: Tensor, b: Tensor) -> Tensor:
    """Return :math:`a b^T`, a matrix of the caller's own that may be masked in place."""
    result: Tensor = _Product.apply(a, b)
    return result


def half_log_det(z: Tensor, scale: float) -> Tensor:
    """Return the scalar :math:`logdet(I + scale z^T z) / 2`, NaN if its factorisation fails."""
    result: Tensor = _HalfLogDet.apply(z, scale)
    return result
