"""Vectors that are normalised where they are used, and the gradient back through that."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from duality_ssl.distributed import ALONE, Processes
from duality_ssl.functional._products import first_derivative, pieces


class Vectors(NamedTuple):
    """The rows of ``factor * (x - shift)``, computed by the piece."""

    x: Tensor
    """Shape ``(K, M)``."""
    shift: Tensor | None
    """What is subtracted: shape ``(K, 1)`` for the vectors' means, ``(1, M)`` for their mean."""
    factor: Tensor
    """Shape ``(K, 1)``."""
    curvature: Tensor
    """Shape ``(K, 1)``; ``1 / length^2`` where the factor gave the vector that length, else 0."""

    def piece(self, at: tuple[slice, slice]) -> Tensor:
        """The normalised entries at an index of two slices, a tensor of the caller's own."""
        return shifted(self.x, self.shift, at) * self.factor[at[0]]

    def gradient(self, grad: Tensor, a: Tensor, along: Tensor, at: tuple[slice, slice]) -> Tensor:
        """Turn the gradient in a piece into that in ``x``, in place and but for the shift.

        Args:
            grad: Gradient in the piece.
            a: The piece.
            along: Product of the whole gradient with each of the piece's vectors, shape ``(k, 1)``.
            at: Where the piece is.
        """
        grad.addcmul_(a, along * self.curvature[at[0]], value=-1)
        return grad.mul_(self.factor[at[0]])


def shifted(x: Tensor, shift: Tensor | None, at: tuple[slice, slice]) -> Tensor:
    """A piece of ``x`` less its part of the shift."""
    return x[at] if shift is None else x[at] - shift.expand_as(x)[at]


def as_they_are(x: Tensor) -> Vectors:
    """Vectors with nothing done to them."""
    return Vectors(x, None, x.new_ones(len(x), 1), x.new_zeros(len(x), 1))


def of_length(
    x: Tensor,
    length: float,
    shift: Tensor | None,
    shortest: Tensor | float,
    otherwise: float = 0.0,
    processes: Processes = ALONE,
) -> Vectors:
    """Vectors less their shift, brought to one length.

    A vector of norm ``shortest`` or less has the factor ``otherwise``: 0 makes both the vector and
    its gradient zero, where an epsilon in the denominator would divide the gradient by epsilon.
    ``processes`` are those that have the other entries of the vectors.
    """
    norms = x.new_zeros(len(x), 1)
    along = 0 if x.is_contiguous() else 1  # memory is read in its own order
    for piece in pieces(x, along):
        at = (slice(None), piece) if along else (piece, slice(None))
        norms[at[0]] += shifted(x, shift, at).square().sum(dim=1, keepdim=True)
    norms = processes.sum(norms).sqrt_()
    longer = norms > shortest  # a boolean over a number would be float32
    return Vectors(
        x, shift, torch.where(longer, length / norms, otherwise), longer.to(x) / length**2
    )


class Normalize(Function):
    """``Vectors -> the matrix of them``; a shift is a mean of ``x`` and differentiated as such."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, shift: Tensor | None, factor: Tensor, curvature: Tensor
    ) -> Tensor:
        vectors, result = Vectors(x, shift, factor, curvature), torch.empty_like(x)
        for rows in pieces(x, 0):
            at = (rows, slice(None))
            result[at] = vectors.piece(at)
        ctx.save_for_backward(result, *vectors)
        return result

    @staticmethod
    @first_derivative
    def backward(ctx: Any, grad_result: Tensor) -> tuple[Tensor | None, ...]:
        result, *saved = ctx.saved_tensors
        vectors = Vectors(*saved)
        grad = torch.empty_like(result)
        for rows in pieces(grad, 0):
            at = (rows, slice(None))
            along = (grad_result[at] * result[at]).sum(dim=1, keepdim=True)
            grad[at] = vectors.gradient(grad_result[at].clone(), result[at], along, at)
        if vectors.shift is not None:
            dim = 1 if vectors.shift.shape == vectors.factor.shape else 0
            grad -= grad.mean(dim=dim, keepdim=True)
        return grad, None, None, None
