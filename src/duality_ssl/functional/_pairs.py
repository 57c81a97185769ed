"""Products of two views' vectors on the smaller side, normalised on the way, in one pass each way.

A criterion compares K vectors of M entries, the rows of ``x``: samples for ``x = z``, dimensions
for ``x = z.T``. Each function here goes through two such matrices in pieces along the longer axis,
so that what is done to an entry is done while it is in a cache, and adds up the small matrices of
which value and gradient are made: ``K x K`` if ``K <= M``, ``M x M`` if not. Normalised vectors are
never stored, and their gradients leave in one matrix a view.

Subtracting a vector's mean needs no backward pass: a product of centred vectors has centred
gradients already.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from duality_ssl.functional._products import first_derivative, pieces
from duality_ssl.functional._vectors import Vectors


def _own(x: Tensor) -> bool:
    """Whether the vectors' own side, ``K x K``, is the smaller one."""
    return len(x) <= x.shape[1]


def _pieces(x: Tensor) -> Iterator[tuple[slice, slice]]:
    if _own(x):
        return ((slice(None), entries) for entries in pieces(x, 1))
    return ((vectors, slice(None)) for vectors in pieces(x, 0))


def _add_gram(gram: Tensor, a: Tensor, own: bool) -> None:
    gram.addmm_(a, a.T) if own else gram.addmm_(a.T, a)


def _square(x: Tensor) -> Tensor:
    return x.new_zeros((min(x.shape),) * 2)


def _product(a: Tensor, b: Tensor, like: Tensor) -> Tensor:
    """``a @ b`` in the memory layout of ``like``: dimensions are rows of a transposed view."""
    return a @ b if like.is_contiguous() else (b.T @ a.T).T


class OffDiagonalCross(Function):
    """``a, b -> (sum_{i != j} (a_i . b_j)^2, the products a_i . b_i)`` of two views' vectors."""

    @staticmethod
    def forward(
        ctx: Any, x1: Tensor, x2: Tensor, *normalization: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        view1 = Vectors(x1, *normalization[:3])  # type: ignore[arg-type]
        view2 = Vectors(x2, *normalization[3:])  # type: ignore[arg-type]
        own, grams = _own(x1), [_square(x1)] if _own(x1) else [_square(x1), _square(x1)]
        products = x1.new_empty(len(x1))
        for at in _pieces(x1):
            a, b = view1.piece(at), view2.piece(at)
            if own:
                grams[0].addmm_(a, b.T)
            else:  # ||a b^T||_F^2 = <a^T a, b^T b>
                _add_gram(grams[0], a, own)
                _add_gram(grams[1], b, own)
                products[at[0]] = (a * b).sum(dim=1)
        if own:
            products = grams[0].diagonal().clone()
            value = grams[0].fill_diagonal_(0).square().sum()
        else:
            value = (grams[0] * grams[1]).sum() - products.square().sum()
        ctx.save_for_backward(*view1, *view2, products, *grams)
        return value, products.clone()

    @staticmethod
    @first_derivative
    def backward(ctx: Any, grad_value: Tensor, grad_products: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        view1, view2, products, grams = (
            Vectors(*saved[:4]),
            Vectors(*saved[4:8]),
            saved[8],
            saved[9:],
        )
        grad1, grad2 = torch.empty_like(view1.x), torch.empty_like(view2.x)
        weights = [2 * grad_value * gram for gram in grams]
        if _own(view1.x):
            weights[0].diagonal().copy_(grad_products)
            both = 2 * grad_value * grams[0].square()
            both.diagonal().copy_(grad_products * products)
            along1, along2 = both.sum(dim=1, keepdim=True), both.sum(dim=0)[:, None]
            for at in _pieces(view1.x):
                a, b = view1.piece(at), view2.piece(at)
                grad1[at] = view1.gradient(_product(weights[0], b, a), a, along1, at)
                grad2[at] = view2.gradient(_product(weights[0].T, a, b), b, along2, at)
        else:
            on_products = (grad_products - 2 * grad_value * products)[:, None]
            for at in _pieces(view1.x):
                a, b, on = view1.piece(at), view2.piece(at), on_products[at[0]]
                grad_a = _product(a, weights[1], a).addcmul_(b, on)
                grad_b = _product(b, weights[0], b).addcmul_(a, on)
                grad1[at] = view1.gradient(grad_a, a, (grad_a * a).sum(dim=1, keepdim=True), at)
                grad2[at] = view2.gradient(grad_b, b, (grad_b * b).sum(dim=1, keepdim=True), at)
        return grad1, grad2, *(None,) * 6


class HalfLogDets(Function):
    """``a, b -> (the products a_i . b_i, logdet(I + scale a a^T) / 2, that of b)``."""

    @staticmethod
    def forward(
        ctx: Any, x1: Tensor, x2: Tensor, scale: float, *normalization: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        views = Vectors(x1, *normalization[:3]), Vectors(x2, *normalization[3:])
        own, matrices = _own(x1), (_square(x1), _square(x1))
        products = x1.new_zeros(len(x1))
        for at in _pieces(x1):
            a, b = views[0].piece(at), views[1].piece(at)
            products[at[0]] += (a * b).sum(dim=1)
            for matrix, vectors in zip(matrices, (a, b), strict=True):
                _add_gram(matrix, vectors, own)
        factors = []
        for matrix in matrices:
            matrix.mul_(scale).diagonal().add_(1)
            # `cholesky` would synchronise with the device to raise: a failure is a NaN instead.
            factor, info = torch.linalg.cholesky_ex(matrix)
            factor.diagonal().masked_fill_(info != 0, torch.nan)
            factors.append(factor)
        ctx.save_for_backward(*views[0], *views[1], products, *factors)
        ctx.scale = scale
        rates = [factor.diagonal().log().sum() for factor in factors]
        return products.clone(), rates[0], rates[1]

    @staticmethod
    @first_derivative
    def backward(ctx: Any, grad_products: Tensor, *grad_rates: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        views, products, factors = (Vectors(*saved[:4]), Vectors(*saved[4:8])), saved[8], saved[9:]
        grads = [torch.empty_like(view.x) for view in views]
        # The gradient of the half log-determinant is scale (I + scale a a^T)^-1 a.
        inverses = [torch.cholesky_inverse(factor) for factor in factors]
        weights = [ctx.scale * g * m for g, m in zip(grad_rates, inverses, strict=True)]
        on = grad_products[:, None]
        own, alongs = _own(views[0].x), []
        if own:  # pieces have no whole vectors: scale a . (I + scale a a^T)^-1 a from the inverse
            alongs = [
                (g * (1 - m.diagonal()) + grad_products * products)[:, None]
                for g, m in zip(grad_rates, inverses, strict=True)
            ]
        for at in _pieces(views[0].x):
            a, b = views[0].piece(at), views[1].piece(at)
            for i, (mine, other) in enumerate(((a, b), (b, a))):
                if own:
                    grad = _product(weights[i], mine, mine).addcmul_(other, on)
                    along = alongs[i]
                else:
                    grad = _product(mine, weights[i], mine).addcmul_(other, on[at[0]])
                    along = (grad * mine).sum(dim=1, keepdim=True)
                grads[i][at] = views[i].gradient(grad, mine, along, at)
        return *grads, None, *(None,) * 6


class CenteredViews(Function):
    """``x1, x2 -> ||x1 - x2||^2, squared norms (2, K), penalties (2,)`` of the vectors, centred.

    The difference is not centred. The penalty of vectors ``a`` is ``sum_{i != j} (a_i . a_j)^2``
    or, given a factor and ``K <= M``, ``sum_i log sum_{j != i} exp(factor * a_i . a_j)``.
    """

    @staticmethod
    def forward(
        ctx: Any, x1: Tensor, x2: Tensor, factor: float | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        means = torch.stack([x.mean(dim=1, keepdim=True) for x in (x1, x2)])
        grams = x1.new_zeros(2, *_square(x1).shape)
        norms = x1.new_zeros(2, len(x1))
        distance = x1.new_zeros(())
        for at in _pieces(x1):
            distance += (x1[at] - x2[at]).square_().sum()
            for x, mean, gram, norm in zip((x1, x2), means, grams, norms, strict=True):
                a = x[at] - mean[at[0]]
                _add_gram(gram, a, _own(x1))
                norm[at[0]] += a.square_().sum(dim=1)
        diagonals = grams.diagonal(dim1=1, dim2=2)
        if not _own(x1):  # theorem 3.3; the other side's diagonal are the vectors' fourth norms
            penalties = grams.square().sum(dim=(1, 2)) - norms.square().sum(dim=1)
            slopes = 4 * grams
        elif factor is None:
            diagonals.zero_()
            penalties, slopes = grams.square().sum(dim=(1, 2)), 4 * grams
        else:
            diagonals.fill_(-torch.inf)
            logits = grams.mul_(factor)
            lse = logits.logsumexp(dim=2)
            softmax = (logits - lse[:, :, None]).exp_()
            penalties, slopes = lse.sum(dim=1), factor * (softmax + softmax.mT)
        ctx.save_for_backward(x1, x2, means, slopes, norms)
        return distance, norms.clone(), penalties

    @staticmethod
    @first_derivative
    def backward(
        ctx: Any, grad_distance: Tensor, grad_norms: Tensor, grad_penalties: Tensor
    ) -> tuple[Tensor | None, ...]:
        x1, x2, means, slopes, norms = ctx.saved_tensors
        own, grads = _own(x1), (torch.empty_like(x1), torch.empty_like(x2))
        weights = grad_penalties[:, None, None] * slopes
        on_norms = 2 * grad_norms
        if own:
            weights.diagonal(dim1=1, dim2=2).copy_(on_norms)
        else:
            on_norms = on_norms - 4 * grad_penalties[:, None] * norms
        for at in _pieces(x1):
            difference = (x1[at] - x2[at]).mul_(2 * grad_distance)
            for i, x in enumerate((x1, x2)):
                a = x[at] - means[i][at[0]]
                if own:
                    grad = _product(weights[i], a, a)
                else:
                    grad = _product(a, weights[i], a).addcmul_(a, on_norms[i][at[0], None])
                grads[i][at] = grad.add_(difference) if i == 0 else grad.sub_(difference)
        return *grads, None
