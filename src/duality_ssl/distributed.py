"""Process groups: rank, exact gather, sums, averages. The only module that names torch.distributed.

Without a process group every function works as one process.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Function


class Group(NamedTuple):
    """A group of processes that share a batch, as many rows each, in rank order.

    A function that takes a group is called by every process of it with that process's rows, and
    computes with the rows of all. Its gradient is the adjoint: each process gets the gradient, in
    its own rows, of the sum of all processes' losses. If all W processes compute the same loss,
    this is W times the gradient of the loss, and the average over processes that distributed data
    parallel takes of the parameters' gradients is the gradient of one process with the whole batch.
    (A gather that returns only its own slice gives 1/W of it: footnote 1 of
    https://arxiv.org/abs/2206.02574.)

    Example:
        >>> group = Group()  # one process, which has all rows
        >>> group.rank, group.world_size
        (0, 1)
        >>> group.sum(torch.ones(2))
        tensor([1., 1.])
    """

    rank: int = 0
    world_size: int = 1
    process_group: "dist.ProcessGroup | None" = None
    """Group of ``torch.distributed``; None for one process."""

    def gather(self, x: Tensor) -> Tensor:
        """Concatenate the rows ``(n, ...)`` of all processes, equally many, in rank order."""
        return x if self.world_size == 1 else _apply(_Gather, x, self)

    def sum(self, x: Tensor) -> Tensor:
        """Sum a tensor over processes; ``x`` itself with one process."""
        return x if self.world_size == 1 else _apply(_Sum, x, self)

    def mean(self, x: Tensor) -> Tensor:
        """Average all entries of a tensor over all processes."""
        return self.sum(x.mean()) / self.world_size

    @torch.no_grad()
    def all_gather(self, x: Tensor) -> Tensor:
        """As :meth:`gather`, without gradient."""
        if self.world_size == 1:
            return x
        gathered = x.new_empty(self.world_size * len(x), *x.shape[1:])
        dist.all_gather_into_tensor(gathered, x.contiguous(), group=self.process_group)
        return gathered

    def own(self, rows: int) -> slice:
        """Return where this process's ``rows`` are among the gathered rows."""
        return slice(self.rank * rows, (self.rank + 1) * rows)


SINGLE = Group()


class _Gather(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return group.all_gather(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _apply(_SumOfOwnRows, grad, ctx.group), None


class _SumOfOwnRows(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        own = x.new_empty(len(x) // group.world_size, *x.shape[1:])
        dist.reduce_scatter_tensor(own, x.contiguous(), group=group.process_group)
        return own

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _apply(_Gather, grad, ctx.group), None


class _Sum(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return _all_reduce(x, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _apply(_Sum, grad, ctx.group), None


def _apply(function: type[Function], x: Tensor, group: Group) -> Tensor:
    result: Tensor = function.apply(x, group)
    return result


def _all_reduce(x: Tensor, group: Group) -> Tensor:
    total = x.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=group.process_group)
    return total


def _initialized() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Return the rank of this process; 0 without a process group."""
    return dist.get_rank() if _initialized() else 0


def world_size() -> int:
    """Return the number of processes; 1 without a process group."""
    return dist.get_world_size() if _initialized() else 1


def process_group(group: "dist.ProcessGroup | None" = None) -> Group:
    """Return all processes, or those of a ``torch.distributed`` group that this process is in."""
    if not _initialized():
        return SINGLE
    own = dist.get_rank(group)
    if own < 0:
        raise ValueError(f"Expected a group that has this process, rank {rank()}, but it has not.")
    return Group(own, dist.get_world_size(group), group or dist.group.WORLD)


@torch.no_grad()
def all_gather_rows(x: Tensor) -> Tensor:
    """Concatenate all processes' rows in rank order; their number may differ, and be 0."""
    group = process_group()
    if group.world_size == 1:
        return x.detach()
    counts = group.all_gather(torch.tensor([len(x)], device=x.device)).tolist()
    padded = x.new_zeros(max(counts), *x.shape[1:])
    padded[: len(x)] = x
    chunks = group.all_gather(padded).view(len(counts), *padded.shape)
    return torch.cat([chunk[:count] for chunk, count in zip(chunks, counts, strict=True)])


@torch.no_grad()
def all_reduce_sum(x: Tensor) -> Tensor:
    """Sum a tensor over processes into a new one, without gradient."""
    group = process_group()
    return x.detach().clone() if group.world_size == 1 else _all_reduce(x, group)


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace each gradient by its average over processes, in one message.

    For modules that are trained outside distributed data parallel, such as an online probe. Where a
    parameter requires a gradient and has none, it counts as zero: a process may have no labels.
    """
    if world_size() == 1:
        return
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
    flat = all_reduce_sum(torch.cat([gradient.reshape(-1) for gradient in gradients]))
    flat /= world_size()
    averages = flat.split([gradient.numel() for gradient in gradients])
    for parameter, average in zip(trained, averages, strict=True):
        parameter.grad = average.view_as(parameter).to(parameter.dtype)
