"""What every criterion shares: checked views, full precision, a readable ``repr``."""

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor, nn

from duality_ssl.distributed import SINGLE, Group
from duality_ssl.functional import full_precision


class Criterion(nn.Module, ABC):
    """A loss of two views' embeddings; subclasses implement :meth:`terms`.

    By default each process of a group gathers the whole batch, with the exact gradient, and
    computes all of :meth:`terms`. A subclass whose ``terms`` has a third parameter ``group`` is
    called with this process's rows and the group instead, and shares the work; its terms are those
    of the whole batch.

    Attributes:
        min_dimensions: Fewest dimensions that the criterion is defined for.

    Example:
        >>> class Distance(Criterion):
        ...     def terms(self, z1: Tensor, z2: Tensor) -> dict[str, Tensor]:
        ...         return {"loss": (z1 - z2).square().mean()}
        >>> Distance()(torch.zeros(2, 3), torch.ones(2, 3))
        {'loss': tensor(1.)}
    """

    min_dimensions: int = 1
    _takes_group: bool = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls._takes_group = "group" in inspect.signature(cls.terms).parameters

    @abstractmethod
    def terms(self, z1: Tensor, z2: Tensor) -> dict[str, Tensor]:
        """Compute ``"loss"`` and the unweighted terms that it weighs, scalars.

        The views ``(N, D)`` are checked, and in float32 or float64.
        """

    def forward(self, z1: Tensor, z2: Tensor, group: Group = SINGLE) -> dict[str, Tensor]:
        """Check the views and compute the terms in float32 (float64 for float64), autocast or not.

        Args:
            z1: Embeddings of the first view ``(n, D)``, this process's rows, of any floating dtype.
            z2: Embeddings of the second view; row i is the partner of row i.
            group: Processes that share the batch, with as many rows each; see
                :func:`duality_ssl.distributed.process_group`. By default this process has all.

        Returns:
            The terms, the same on every process; the average over processes of their gradients is
            that of one process with the whole batch.

        Raises:
            ValueError: If the views are not two floating-point tensors of one shape (N, D) and
                dtype with at least two rows and ``min_dimensions`` columns.
        """
        _check_views(z1, z2, self.min_dimensions, group.world_size)
        terms: Callable[..., dict[str, Tensor]] = full_precision(self.terms)
        if self._takes_group:
            return terms(z1, z2, group)
        return terms(group.gather(z1), group.gather(z2))

    def memory(self, n: int, d: int) -> int:
        """Estimate how many values (not bytes) a step of ``(n, d)`` views keeps beside them.

        About three times the inputs, and the Gram matrix of the smaller side.
        """
        return 3 * 2 * n * d + min(n, d) ** 2

    def extra_repr(self) -> str:
        """Return the arguments of the criterion, for ``repr``."""
        names = inspect.signature(type(self)).parameters
        return ", ".join(f"{name}={getattr(self, name, '?')!r}" for name in names)


def _check_views(z1: Tensor, z2: Tensor, min_dimensions: int, world_size: int) -> None:
    if not (isinstance(z1, Tensor) and isinstance(z2, Tensor)):
        got = f"{type(z1).__name__} and {type(z2).__name__}"
        raise ValueError(f"Expected `z1` and `z2` to be tensors, but got {got}.")
    if z1.ndim != 2 or z1.shape != z2.shape:
        got = f"{tuple(z1.shape)} and {tuple(z2.shape)}"
        raise ValueError(f"Expected `z1` and `z2` to share one shape (N, D), but got {got}.")
    if not z1.is_floating_point() or z1.dtype != z2.dtype:
        got = f"{z1.dtype} and {z2.dtype}"
        raise ValueError(f"Expected `z1`, `z2` to share one floating-point dtype, but got {got}.")
    if len(z1) * world_size < 2:
        raise ValueError(f"Expected at least 2 samples to compare, but got N={len(z1)}.")
    if z1.shape[1] < min_dimensions:
        least = f"at least {min_dimensions} dimension(s)"
        raise ValueError(f"Expected embeddings of {least}, but got D={z1.shape[1]}.")


def check_positive(*, or_zero: bool = False, **arguments: float) -> None:
    """Raise ``ValueError`` unless all arguments are positive (or zero, if allowed) and finite."""
    for name, value in arguments.items():
        if not 0 <= value < math.inf or (value == 0 and not or_zero):
            expected = "at least 0" if or_zero else "positive"
            raise ValueError(f"Expected `{name}` to be {expected} and finite, but got {value}.")
