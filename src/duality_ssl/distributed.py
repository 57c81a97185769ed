"""Processes: rank, exact gather, sums, averages. The only module that names ``torch.distributed``.

Every function works without a process group too, as one process.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable


def _initialized() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Return this process's number among :func:`world_size`; 0 without a process group."""
    return dist.get_rank() if _initialized() else 0


def world_size() -> int:
    """Return the number of processes; 1 without a process group."""
    return dist.get_world_size() if _initialized() else 1


class _Gather(Function):
    """All processes' rows; its gradient is the adjoint, a sum over processes of my rows' part."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        return processes().rows(z)

    @staticmethod
    @once_differentiable  # autograd records no collective: its derivative would be lost
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        mine = grad.new_empty(len(grad) // world_size(), *grad.shape[1:])
        dist.reduce_scatter_tensor(mine, grad.contiguous())
        return mine


class Processes(NamedTuple):
    """The processes that share a batch: which one this is, and of how many.

    Each holds as many of the batch's rows, in rank order. What computes with them is handed this,
    and so is told whether the rows that it gets are the whole batch: one process has them all.
    """

    rank: int = 0
    world_size: int = 1

    def gather(self, z: Tensor) -> Tensor:
        r"""Concatenate the rows of all processes in rank order, with the exact gradient.

        The backward pass sums over processes the gradient of this process's rows. If all W
        processes compute the same loss on the gathered rows, that sum is W times the loss's
        gradient, and the average over processes that distributed data parallel takes of the
        parameters' gradients is the gradient of one process holding the whole batch. (A gather that
        returns its own slice only gives 1/W of it: footnote 1 of https://arxiv.org/abs/2206.02574.)

        Args:
            z: Shape ``(N, ...)``; the same shape on every process (drop a smaller last batch).

        Returns:
            Shape ``(W N, ...)``; ``z`` itself with one process. With more it has a first derivative
            only: a second one is an error.
        """
        if self.world_size == 1:
            return z
        gathered: Tensor = _Gather.apply(z)
        return gathered

    @torch.no_grad()
    def rows(self, x: Tensor) -> Tensor:
        """As :meth:`gather`, without gradient."""
        if self.world_size == 1:
            return x
        gathered = x.new_empty(self.world_size * len(x), *x.shape[1:])
        dist.all_gather_into_tensor(gathered, x.contiguous())
        return gathered

    def sum(self, x: Tensor) -> Tensor:
        """Sum over processes, without gradient; ``x`` itself with one process."""
        return x if self.world_size == 1 else all_reduce_sum(x)

    def own(self, rows: int) -> slice:
        """Where this process's ``rows`` are among all that are gathered."""
        return slice(self.rank * rows, (self.rank + 1) * rows)


ALONE = Processes()


def processes() -> Processes:
    """Return the processes of this run; one without a process group."""
    return Processes(rank(), world_size())


@torch.no_grad()
def all_gather_rows(x: Tensor) -> Tensor:
    """Concatenate the rows of all processes in rank order, without gradient.

    Args:
        x: Shape ``(N, ...)``; N may differ between processes, and be 0.

    Returns:
        Shape ``(sum of the N, ...)``, without gradient.
    """
    if world_size() == 1:
        return x.detach()
    counts = processes().rows(torch.tensor([len(x)], device=x.device)).tolist()
    padded = x.new_zeros(max(counts), *x.shape[1:])
    padded[: len(x)] = x
    chunks = processes().rows(padded).view(len(counts), *padded.shape)
    return torch.cat([chunk[:count] for chunk, count in zip(chunks, counts, strict=True)])


@torch.no_grad()
def all_reduce_sum(x: Tensor) -> Tensor:
    """Sum a tensor over processes, without gradient.

    Args:
        x: The same shape on every process; left as it is.

    Returns:
        A new tensor, the same on every process.
    """
    total = x.detach().clone(memory_format=torch.contiguous_format)
    if world_size() > 1:
        dist.all_reduce(total)
    return total


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace each gradient by its average over processes, in one message a dtype.

    For modules that are trained outside distributed data parallel, such as an online probe.

    Args:
        parameters: The same ones, in the same order, on every process. Where one requires a
            gradient and has none, it counts as zero: a process without labels may take part.
    """
    if world_size() == 1:
        return
    buckets: dict[torch.dtype, list[nn.Parameter]] = {}
    for parameter in parameters:
        if parameter.requires_grad:
            buckets.setdefault(parameter.dtype, []).append(parameter)
    for bucket in buckets.values():
        for parameter in bucket:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [p.grad for p in bucket if p.grad is not None]
        flat = all_reduce_sum(torch.cat([gradient.reshape(-1) for gradient in gradients]))
        flat /= world_size()
        averages = flat.split([gradient.numel() for gradient in gradients])
        for gradient, average in zip(gradients, averages, strict=True):
            gradient.copy_(average.view_as(gradient))
