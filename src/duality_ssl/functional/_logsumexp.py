"""Log-sum-exp of a matrix of similarities that is never there as a whole.

The matrix of all products is symmetric: its upper triangle is gone through in tiles that fit a
cache, each used for its rows and for its columns. The backward pass takes the same tiles again:
they are kept where all of them are few, and computed anew where they are not, so that memory grows
with N and not with its square. Processes that all have all vectors share the tiles.

That the softmax of a contrastive loss can be taken by tiles is known: Cheng et al., *Breaking the
Memory Barrier*, 2024, https://arxiv.org/abs/2410.17243, for two modalities on GPUs; here for every
similarity, one view or two, rows or columns, any device.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from duality_ssl.distributed import Processes
from duality_ssl.functional._products import first_derivative
from duality_ssl.functional._vectors import Vectors

_KEPT = 2**24  # elements: 64 MiB in float32; below it memory is cheaper than a second product


class Similarity(NamedTuple):
    """An elementwise function of products into a new tensor, and its derivative."""

    value: Callable[[Tensor], Tensor]
    derivative: Callable[[Tensor], Tensor] | None
    """None for 1."""


SIMILARITIES = {
    "cosine": Similarity(torch.clone, None),
    "squared": Similarity(torch.square, lambda products: 2 * products),
    "absolute": Similarity(torch.abs, torch.sign),
}


class _Tile(NamedTuple):
    row_view: int
    rows: slice
    column_view: int
    columns: slice

    @property
    def aligned(self) -> bool:
        """Whether its diagonal pairs each sample with itself or with its own other view."""
        return self.rows == self.columns

    @property
    def mirrored(self) -> bool:
        """Whether it is its own mirror image, on the diagonal of the whole matrix."""
        return self.aligned and self.row_view == self.column_view


def _tiles(views: Sequence[Vectors], processes: Processes) -> list[_Tile]:
    """Tiles of the upper triangle of all views' products, this process's share of them.

    They are as good as square: 512 wide, so that two of them fit a cache and the half of a diagonal
    tile that is computed in vain is little; wider on an accelerator, which they have to fill.
    """
    n = len(views[0].x)
    cuts = -(-n // (512 if views[0].x.device.type == "cpu" else 4096))
    if processes.world_size > 1:  # so that each has as many tiles, on the diagonal and off it
        multiple = 2 * processes.world_size // len(views)
        cuts = min(n, -(-cuts // multiple) * multiple)
    edges = [n * cut // cuts for cut in range(cuts + 1)]
    parts = [
        (view, slice(*edge)) for view in range(len(views)) for edge in itertools.pairwise(edges)
    ]
    on_diagonal = [_Tile(*part, *part) for part in parts]
    above = [_Tile(*row, *column) for row, column in itertools.combinations(parts, 2)]
    return [*on_diagonal, *above][processes.rank :: processes.world_size]


def _products(views: Sequence[Vectors], tile: _Tile) -> Tensor:
    one, other = views[tile.row_view], views[tile.column_view]
    products = one.x[tile.rows] @ other.x[tile.columns].T
    return products.mul_(one.factor[tile.rows]).mul_(other.factor[tile.columns].T)


def _logits(products: Tensor, tile: _Tile, similarity: Similarity) -> Tensor:
    """Similarities, with -inf where a sample meets itself."""
    logits = similarity.value(products)
    return logits.fill_diagonal_(-torch.inf) if tile.aligned else logits


def logsumexps(
    views: Sequence[Vectors], similarity: Similarity, keep: bool, processes: Processes
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Log-sum-exp of each vector with the others, in all views, and what the gradient takes.

    Args:
        views: Vectors that have no shift.
        similarity: What makes logits of products.
        keep: Whether there will be a gradient.
        processes: Those who share the tiles; each has all vectors.

    Returns:
        Log-sum-exps of shape ``(views, K)``, without the pairs of a vector with itself or with its
        partner; the products with the partner, shape ``(K,)``; the products of this
        process's tiles if they are wanted and few.
    """
    x = views[0].x
    lse = x.new_full((len(views), len(x)), -torch.inf)
    partners = x.new_zeros(len(x))
    keep = keep and lse.numel() ** 2 <= 2 * _KEPT * processes.world_size
    kept = []
    for tile in _tiles(views, processes):
        products = _products(views, tile)
        if tile.aligned and not tile.mirrored:
            partners[tile.rows] = products.diagonal()
        logits = _logits(products, tile, similarity)
        _add_exps(lse[tile.row_view, tile.rows], logits, 1)
        if not tile.mirrored:
            _add_exps(lse[tile.column_view, tile.columns], logits, 0)
        if keep:
            kept.append(products)
    if processes.world_size > 1:
        lse = processes.rows(lse[None]).logsumexp(dim=0)
    return lse, processes.sum(partners), kept


def _add_exps(lse: Tensor, logits: Tensor, dim: int) -> None:
    lse.copy_(torch.logaddexp(lse, logits.logsumexp(dim)))


def add_gradients(
    grads: Sequence[Tensor],
    views: Sequence[Vectors],
    similarity: Similarity,
    saved: tuple[Tensor, Sequence[Tensor]],
    grad_lse: Tensor,
    grad_partners: Tensor,
    processes: Processes,
) -> None:
    """Add this process's part of the gradients of :func:`logsumexps` in the views' ``x``.

    Args:
        grads: One tensor a view.
        views: The vectors.
        similarity: What makes logits of products.
        saved: The log-sum-exps and the products kept.
        grad_lse: Gradient in the log-sum-exps, shape ``(views, K)``.
        grad_partners: Gradient in the logits of the partners, shape ``(K,)``.
        processes: As in the forward pass.
    """
    lse, kept = saved
    along = torch.zeros_like(lse)
    for index, tile in enumerate(_tiles(views, processes)):
        i, rows, j, columns = tile
        products = kept[index] if kept else _products(views, tile)
        logits = _logits(products, tile, similarity)
        weights = (logits - lse[i, rows, None]).exp_().mul_(grad_lse[i, rows, None])
        # A product differs from its mirror image by rounding, which an exponential would magnify:
        # each softmax is taken from the very logits that its log-sum-exp was.
        if tile.mirrored:
            weights = weights + weights.T
        else:
            weights += logits.sub_(lse[j, columns]).exp_().mul_(grad_lse[j, columns])
            if tile.aligned:
                weights.diagonal().copy_(grad_partners[rows])
        if similarity.derivative is not None:
            weights *= similarity.derivative(products)
        moments = weights * products
        along[i, rows] += moments.sum(dim=1)
        weights.mul_(views[i].factor[rows]).mul_(views[j].factor[columns].T)
        grads[i][rows].addmm_(weights, views[j].x[columns])
        if not tile.mirrored:
            along[j, columns] += moments.sum(dim=0)
            grads[j][columns].addmm_(weights.T, views[i].x[rows])
    for grad, (x, _, factor, curvature), on_self in zip(grads, views, along, strict=True):
        grad.addcmul_(x, on_self[:, None] * curvature * factor.square(), value=-1)


class LogSumExps(Function):
    """``views -> (partners' similarities (K,), log-sum-exps (views, K) of each with the others)``.

    A view is three arguments: ``x, factor, curvature`` of its `Vectors`, which have no shift. Each
    process is given all vectors, and returns a part of the gradient: what gathered the vectors, see
    :meth:`Processes.gather`, adds the parts up.
    """

    @staticmethod
    def forward(
        ctx: Any, similarity: str, processes: Processes, *arguments: Tensor
    ) -> tuple[Tensor, Tensor]:
        views, keep = _views(arguments), any(ctx.needs_input_grad)
        lse, partners, kept = logsumexps(views, SIMILARITIES[similarity], keep, processes)
        ctx.similarity, ctx.processes, ctx.views = similarity, processes, len(views)
        ctx.save_for_backward(*arguments, lse, *kept)
        return SIMILARITIES[similarity].value(partners), lse.clone()

    @staticmethod
    @first_derivative
    def backward(ctx: Any, grad_partners: Tensor, grad_lse: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        views, (lse, *kept) = _views(saved[: 3 * ctx.views]), saved[3 * ctx.views :]
        grads = [torch.zeros_like(view.x) for view in views]
        add_gradients(
            grads,
            views,
            SIMILARITIES[ctx.similarity],
            (lse, kept),
            ctx.processes.sum(grad_lse),
            ctx.processes.sum(grad_partners),
            ctx.processes,
        )
        return None, None, *itertools.chain.from_iterable((grad, None, None) for grad in grads)


def _views(arguments: Sequence[Tensor]) -> list[Vectors]:
    triples = zip(arguments[::3], arguments[1::3], arguments[2::3], strict=True)
    return [Vectors(x, None, factor, curvature) for x, factor, curvature in triples]
