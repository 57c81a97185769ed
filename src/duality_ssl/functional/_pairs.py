"""Products of two views' vectors on the smaller side, normalised on the way, in one pass each way.

A criterion compares K vectors of M entries, the rows of ``x``: samples for ``x = z``, dimensions
for ``x = z.T``. Each function here goes through two such matrices in pieces along the longer axis,
so that what is done to an entry is done while it is in a cache, and adds up the small matrices of
which value and gradient are made: ``K x K`` if ``K <= M``, ``M x M`` if not. Normalised vectors are
never stored, and their gradients leave in one matrix a view.

Subtracting a vector's mean needs no backward pass: a product of centred vectors has centred
gradients already.

Each function takes the axis of ``x`` that samples lie on and the processes that share them. What
comes out is the whole batch's, the same on every process; the gradient that goes in is the sum of
the processes' (the adjoint, see :meth:`Processes.gather`), the one that comes out that of this
process's samples.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from duality_ssl.distributed import Processes
from duality_ssl.functional._products import first_derivative
from duality_ssl.functional._side import Side
from duality_ssl.functional._vectors import Vectors, shifted


def _all(side: Side, view: Vectors) -> Vectors:
    factor, curvature = side.per_vector(view.factor), side.per_vector(view.curvature)
    return Vectors(side.all(view.x), view.shift, factor, curvature)


def _with_all(
    side: Side, view: Vectors, others: Vectors, at: tuple[slice, slice]
) -> tuple[Tensor, Tensor]:
    """A piece of this process's vectors, and that of those they are multiplied with."""
    a = view.piece(at)
    return a, others.piece(at) if side.by_rows else a


class OffDiagonalCross(Function):
    """``a, b -> (sum_{i != j} (a_i . b_j)^2, the products a_i . b_i)`` of two views' vectors."""

    @staticmethod
    def forward(
        ctx: Any,
        samples: int,
        processes: Processes,
        x1: Tensor,
        x2: Tensor,
        *normalization: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        side = Side(x1, samples, processes)
        view1 = Vectors(x1, *normalization[:3])  # type: ignore[arg-type]
        view2 = Vectors(x2, *normalization[3:])  # type: ignore[arg-type]
        all1, all2 = _all(side, view1), _all(side, view2)
        grams = [side.zeros(x1)] if side.own else [side.zeros(x1), side.zeros(x1)]
        products = x1.new_empty(len(x1))
        for at in side.pieces(x1):
            a, all_a = _with_all(side, view1, all1, at)
            b, all_b = _with_all(side, view2, all2, at)
            if side.own:
                side.add(grams[0], a, all_b)
            else:  # ||a b^T||_F^2 = <a^T a, b^T b>
                side.add(grams[0], a, all_a)
                side.add(grams[1], b, all_b)
                products[at[0]] = (a * b).sum(dim=1)
        grams = [side.total(gram) for gram in grams]
        if side.own:
            products = side.diagonal(grams[0]).clone()
            side.diagonal(grams[0]).zero_()
            value = side.over_rows(grams[0].square().sum())
        else:
            products = side.over_entries(products)
            value = side.over_rows((grams[0] * grams[1]).sum())
            value -= side.over_vectors(products.square().sum())
        ctx.save_for_backward(*view1, *view2, *all1, *all2, products, *grams)
        ctx.samples, ctx.processes = samples, processes
        return value, side.per_vector(products.clone())

    @staticmethod
    @first_derivative
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        view1, view2, all1, all2 = (Vectors(*saved[4 * i : 4 * i + 4]) for i in range(4))
        products, *grams = saved[16:]
        side = Side(view1.x, ctx.samples, ctx.processes)
        grad_value, grad_products = side.gradients(grads, of_vectors=1)
        grad1, grad2 = torch.empty_like(view1.x), torch.empty_like(view2.x)
        weights = [2 * grad_value * gram for gram in grams]
        if side.own:
            side.diagonal(weights[0]).copy_(grad_products)
            both = 2 * grad_value * grams[0].square()
            side.diagonal(both).copy_(grad_products * products)
            along1 = both.sum(dim=1, keepdim=True)
            along2 = side.over_rows(both.sum(dim=0))[side.columns, None]
            transposed = side.transposed(weights[0])
            for at in side.pieces(view1.x):
                a, all_a = _with_all(side, view1, all1, at)
                b, all_b = _with_all(side, view2, all2, at)
                grad1[at] = view1.gradient(side.times(weights[0], all_b), a, along1, at)
                grad2[at] = view2.gradient(side.times(transposed, all_a), b, along2, at)
        else:
            on_products = (grad_products - 2 * grad_value * products)[:, None]
            for at in side.pieces(view1.x):
                a, all_a = _with_all(side, view1, all1, at)
                b, all_b = _with_all(side, view2, all2, at)
                on = on_products[at[0]]
                grad_a = side.times(weights[1], all_a).addcmul_(b, on)
                grad_b = side.times(weights[0], all_b).addcmul_(a, on)
                along1, along2 = (
                    side.over_entries((grad * v).sum(dim=1, keepdim=True))
                    for grad, v in ((grad_a, a), (grad_b, b))
                )
                grad1[at] = view1.gradient(grad_a, a, along1, at)
                grad2[at] = view2.gradient(grad_b, b, along2, at)
        return None, None, grad1, grad2, *(None,) * 6


class HalfLogDets(Function):
    """``a, b -> (the products a_i . b_i, logdet(I + scale a a^T) / 2, that of b)`` of samples.

    Processes share the products; the small matrix is factorised by each of them.
    """

    @staticmethod
    def forward(
        ctx: Any,
        scale: float,
        processes: Processes,
        x1: Tensor,
        x2: Tensor,
        *normalization: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        side = Side(x1, 0, processes)
        views = Vectors(x1, *normalization[:3]), Vectors(x2, *normalization[3:])
        alls = [_all(side, view) for view in views]
        matrices = (side.zeros(x1), side.zeros(x1))
        products = x1.new_zeros(len(x1))
        for at in side.pieces(x1):
            a, all_a = _with_all(side, views[0], alls[0], at)
            b, all_b = _with_all(side, views[1], alls[1], at)
            products[at[0]] += (a * b).sum(dim=1)
            side.add(matrices[0], a, all_a)
            side.add(matrices[1], b, all_b)
        factors = []
        for gram in matrices:
            matrix = side.complete(side.total(gram))
            matrix.mul_(scale).diagonal().add_(1)
            # `cholesky` would synchronise with the device to raise: a failure is a NaN instead.
            factor, info = torch.linalg.cholesky_ex(matrix)
            factor.diagonal().masked_fill_(info != 0, torch.nan)
            factors.append(factor)
        ctx.save_for_backward(*views[0], *views[1], *alls[0], *alls[1], products, *factors)
        ctx.scale, ctx.processes = scale, processes
        rates = [factor.diagonal().log().sum() for factor in factors]
        return side.per_vector(products.clone()), rates[0], rates[1]

    @staticmethod
    @first_derivative
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        view1, view2, all1, all2 = (Vectors(*saved[4 * i : 4 * i + 4]) for i in range(4))
        products, *factors = saved[16:]
        side = Side(view1.x, 0, ctx.processes)
        grad_products, *grad_rates = side.gradients(grads, of_vectors=0)
        results = [torch.empty_like(view1.x), torch.empty_like(view2.x)]
        # The gradient of the half log-determinant is scale (I + scale a a^T)^-1 a.
        inverses = [torch.cholesky_inverse(factor)[side.columns] for factor in factors]
        weights = [ctx.scale * g * m for g, m in zip(grad_rates, inverses, strict=True)]
        on, alongs = grad_products[:, None], []
        if side.own:  # pieces have no whole vectors: scale a . (I + scale a a^T)^-1 a instead
            alongs = [
                (g * (1 - side.diagonal(m)) + grad_products * products)[:, None]
                for g, m in zip(grad_rates, inverses, strict=True)
            ]
        for at in side.pieces(view1.x):
            a, all_a = _with_all(side, view1, all1, at)
            b, all_b = _with_all(side, view2, all2, at)
            for i, (view, mine, others, partner) in enumerate(
                ((view1, a, all_a, b), (view2, b, all_b, a))
            ):
                grad = side.times(weights[i], others).addcmul_(partner, on[at[0]])
                along = alongs[i] if side.own else (grad * mine).sum(dim=1, keepdim=True)
                results[i][at] = view.gradient(grad, mine, along, at)
        return None, None, *results, *(None,) * 6


class CenteredViews(Function):
    """``x1, x2 -> ||x1 - x2||^2, squared norms (2, K), penalties (2,)`` of the vectors, centred.

    The vectors are dimensions, and samples their entries. The difference is not centred. The
    penalty of vectors ``a`` is ``sum_{i != j} (a_i . a_j)^2`` or, given a factor and ``K <= M``,
    ``sum_i log sum_{j != i} exp(factor * a_i . a_j)``.
    """

    @staticmethod
    def forward(
        ctx: Any, factor: float | None, processes: Processes, x1: Tensor, x2: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        side = Side(x1, 1, processes)
        means = torch.stack([x.mean(dim=1, keepdim=True) for x in (x1, x2)])
        means = processes.sum(means) / processes.world_size
        alls = [side.all(x) for x in (x1, x2)]
        grams = [side.zeros(x1), side.zeros(x1)]
        norms = x1.new_zeros(2, len(x1))
        distance = x1.new_zeros(())
        for at in side.pieces(x1):
            distance += (x1[at] - x2[at]).square_().sum()
            for i, x in enumerate((x1, x2)):
                a = shifted(x, means[i], at)
                side.add(grams[i], a, shifted(alls[i], means[i], at) if side.by_rows else a)
                norms[i, at[0]] += a.square_().sum(dim=1)
        grams = [side.total(gram) for gram in grams]
        norms = side.over_entries(norms)
        sums, slopes = zip(*(_penalty(side, gram, factor) for gram in grams), strict=True)
        penalties = torch.stack(sums)
        if not side.own:  # theorem 3.3; the other side's diagonal are the vectors' fourth norms
            penalties -= norms.square().sum(dim=1)
        ctx.save_for_backward(x1, x2, means, norms, *slopes, *alls)
        ctx.processes = processes
        return processes.sum(distance), norms.clone(), penalties

    @staticmethod
    @first_derivative
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x1, x2, means, norms, *saved = ctx.saved_tensors
        slopes, alls = saved[:2], saved[2:]
        side = Side(x1, 1, ctx.processes)
        grad_distance, grad_norms, grad_penalties = side.gradients(grads, of_vectors=1)
        results = torch.empty_like(x1), torch.empty_like(x2)
        weights = [grad * slope for grad, slope in zip(grad_penalties, slopes, strict=True)]
        on_norms = 2 * grad_norms
        if side.own:
            for matrix, on in zip(weights, on_norms, strict=True):
                side.diagonal(matrix).copy_(on)
        else:
            on_norms = on_norms - 4 * grad_penalties[:, None] * norms
        for at in side.pieces(x1):
            difference = (x1[at] - x2[at]).mul_(2 * grad_distance)
            for i, x in enumerate((x1, x2)):
                a = shifted(x, means[i], at)
                others = shifted(alls[i], means[i], at) if side.by_rows else a
                grad = side.times(weights[i], others)
                if not side.own:
                    grad.addcmul_(a, on_norms[i][at[0], None])
                results[i][at] = grad.add_(difference) if i == 0 else grad.sub_(difference)
        return None, None, *results


def _penalty(side: Side, gram: Tensor, factor: float | None) -> tuple[Tensor, Tensor]:
    """Sum of a function of the matrix's entries, and its derivative in the gram's vectors.

    On the other side nothing is taken off the diagonal.
    """
    if not side.own:
        return side.over_rows(gram.square().sum()), 4 * gram
    if factor is None:
        side.diagonal(gram).zero_()
        return side.over_rows(gram.square().sum()), 4 * gram
    side.diagonal(gram).fill_(-torch.inf)
    logits = gram.mul_(factor)
    lse = logits.logsumexp(dim=1)
    softmax = (logits - lse[:, None]).exp_()
    return side.over_rows(lse.sum()), factor * (softmax + side.transposed(softmax))
