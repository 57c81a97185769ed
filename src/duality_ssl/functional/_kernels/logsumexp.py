"""Log-sum-exp of a matrix of similarities that never exists as a whole.

The matrix of all products is symmetric: its upper triangle is computed in tiles that fit a cache,
each used for its rows and for its columns. The backward pass takes the same tiles again: they are
kept where all of them are few, and computed anew where they are not, so that memory grows with the
number of vectors and not with its square. Processes that all have all vectors share the tiles.

Cheng et al., *Breaking the Memory Barrier*, 2024, use such tiles for two modalities on GPUs:
https://arxiv.org/abs/2410.17243.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from duality_ssl.distributed import Group

_KEPT = 2**24
"""Products that are kept: 64 MiB in float32; below it memory is cheaper than a second product."""


class Similarity(NamedTuple):
    """From a product to its similarity, elementwise."""

    value: Callable[[Tensor], Tensor]
    derivative: Callable[[Tensor], Tensor] | None
    """None for 1."""
    degree: int
    """Similarities of vectors c times as long are ``c ** (2 * degree)`` times as large."""


SIMILARITIES = {
    "cosine": Similarity(torch.clone, None, 1),
    "squared": Similarity(torch.square, lambda products: 2 * products, 2),
    "absolute": Similarity(torch.abs, torch.sign, 1),
}


def logsumexp_of_others(
    x: Tensor,
    temperature: float,
    similarity: str,
    views: int,
    group: Group,
    labels: Tensor | None,
) -> tuple[Tensor, Sequence[Tensor]]:
    form = SIMILARITIES[similarity]
    keep = len(x) ** 2 <= 2 * _KEPT * group.world_size
    lse, kept = x.new_full((len(x),), -torch.inf), []
    for rows, columns in _tiles(x, views, group):
        products = _products(x[rows], x[columns], _scale(temperature, form))
        logits = _logits(products, rows, columns, views, form, labels)
        _add_exps(lse[rows], logits, 1)
        if rows != columns:
            _add_exps(lse[columns], logits, 0)
        if keep:
            kept.append(products)
    if group.world_size > 1:
        lse = group.all_gather(lse[None]).logsumexp(dim=0)
    return lse, [lse, *kept]


def logsumexp_of_others_gradient(
    grad: Tensor,
    x: Tensor,
    saved: Sequence[Tensor],
    temperature: float,
    similarity: str,
    views: int,
    group: Group,
    labels: Tensor | None,
) -> Tensor:
    """Return this process's part of the gradient; the gather that gave it ``x`` adds the parts."""
    lse, *kept = saved
    form, grad, result = SIMILARITIES[similarity], group.sum(grad), torch.zeros_like(x)
    scale = _scale(temperature, form)
    for index, (rows, columns) in enumerate(_tiles(x, views, group)):
        products = kept[index] if kept else _products(x[rows], x[columns], scale)
        logits = _logits(products, rows, columns, views, form, labels)
        weights = (logits - lse[rows, None]).exp_().mul_(grad[rows, None])
        # A product differs from its mirror image by rounding, which an exponential would magnify:
        # each softmax is taken from the same logits as its log-sum-exp.
        if rows == columns:
            weights = weights + weights.T
        else:
            weights += logits.sub_(lse[columns]).exp_().mul_(grad[columns])
        if form.derivative is not None:
            weights *= form.derivative(products)
        result[rows].addmm_(weights, x[columns], alpha=scale)
        if rows != columns:
            result[columns].addmm_(weights.T, x[rows], alpha=scale)
    return result


def logsumexp_of_keys(
    queries: Tensor, keys: Tensor, temperature: float
) -> tuple[Tensor, Sequence[Tensor]]:
    keep = len(queries) * len(keys) <= _KEPT
    lse, kept = queries.new_full((len(queries),), -torch.inf), []
    for rows, columns in itertools.product(_parts(queries), _parts(keys)):
        logits = _products(queries[rows], keys[columns], 1 / temperature)
        _add_exps(lse[rows], logits, 1)
        if keep:
            kept.append(logits)
    return lse, [lse, *kept]


def logsumexp_of_keys_gradient(
    grad: Tensor, queries: Tensor, saved: Sequence[Tensor], keys: Tensor, temperature: float
) -> Tensor:
    lse, *kept = saved
    result, scale = torch.zeros_like(queries), 1 / temperature
    tiles = itertools.product(_parts(queries), _parts(keys))
    for index, (rows, columns) in enumerate(tiles):
        logits = kept[index] if kept else _products(queries[rows], keys[columns], scale)
        weights = (logits - lse[rows, None]).exp_().mul_(grad[rows, None])
        result[rows].addmm_(weights, keys[columns], alpha=scale)
    return result


def logsumexp_memory(vectors: int) -> int:
    """Estimate the numbers that forward and backward pass hold beside the vectors and gradients."""
    return keys_memory(vectors, vectors // 2)  # one triangle


def keys_memory(queries: int, keys: int, views: int = 1) -> int:
    """As :func:`logsumexp_memory`, of as many matrices of queries and keys as there are views."""
    products = queries * keys
    return min(products, 2**20) + (views * products if products <= _KEPT else 0)


def _tiles(x: Tensor, views: int, group: Group) -> list[tuple[slice, slice]]:
    """Tiles of the upper triangle of all products, this process's share of them.

    They are nearly square: 512 wide, so that two of them fit a cache and the half of a diagonal
    tile that is computed in vain is little; wider on an accelerator, which they have to fill.
    """
    samples = len(x) // views
    cuts = -(-len(x) // _width(x))
    if group.world_size > 1:  # so that each has as many tiles, on the diagonal and off it
        multiple = 2 * group.world_size
        cuts = -(-cuts // multiple) * multiple
    cuts = min(cuts, samples)
    edges = [samples * cut // cuts * views for cut in range(cuts + 1)]
    parts = [slice(*edge) for edge in itertools.pairwise(edges)]
    on_diagonal = [(part, part) for part in parts]
    tiles = [*on_diagonal, *itertools.combinations(parts, 2)]
    return tiles[group.rank :: group.world_size]


def _parts(x: Tensor) -> list[slice]:
    """Rows of a tile."""
    return [slice(start, start + _width(x)) for start in range(0, len(x), _width(x))]


def _width(x: Tensor) -> int:
    return 512 if x.device.type == "cpu" else 4096


def _scale(temperature: float, form: Similarity) -> float:
    """What the products are multiplied by, so that their similarities are over the temperature."""
    return temperature ** (-1 / form.degree)


def _products(a: Tensor, b: Tensor, scale: float) -> Tensor:
    # scaled by the product itself, without a pass over the tile
    return torch.addmm(a.new_zeros(()), a, b.T, beta=0, alpha=scale)


def _logits(
    products: Tensor,
    rows: slice,
    columns: slice,
    views: int,
    form: Similarity,
    labels: Tensor | None,
) -> Tensor:
    """Similarities over the temperature, with -inf where a sample meets itself or its class."""
    logits = form.value(products)
    if labels is not None:
        logits.masked_fill_(labels[rows, None] == labels[columns], -torch.inf)
    elif rows == columns:
        samples = len(logits) // views
        logits.view(samples, views, samples, views).diagonal(dim1=0, dim2=2).fill_(-torch.inf)
    return logits


def _add_exps(lse: Tensor, logits: Tensor, dim: int) -> None:
    lse.copy_(torch.logaddexp(lse, logits.logsumexp(dim)))
