"""What every criterion shares: checked views, full precision, a readable ``repr``."""

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable

from torch import Tensor, nn

from duality_ssl.distributed import SINGLE, Group
from duality_ssl.functional import full_precision


class Criterion(nn.Module, ABC):
    """A loss of two views' embeddings; subclasses implement :meth:`terms`.

    By default each process of a group gathers the whole batch, with the exact gradient, and
    computes all of :meth:`terms`. A subclass whose ``terms`` has a third parameter ``group`` is
    called with this process's rows and the group instead, and shares the work; its terms are those
    of the whole batch.

    Set ``criterion.check_finite = True`` to have a NaN or Inf from upstream raise a ``ValueError``
    that counts them. It is off by default because it waits for the device at every step.

    Attributes:
        check_finite: Whether to look for NaN and Inf in the views.
        min_dimensions: Fewest dimensions that the criterion is defined for.

    Example:
        >>> class Distance(Criterion):
        ...     def terms(self, z1: Tensor, z2: Tensor) -> dict[str, Tensor]:
        ...         return {"loss": (z1 - z2).square().mean()}
        >>> Distance()(torch.zeros(2, 3), torch.ones(2, 3))
        {'loss': tensor(1.)}
    """

    check_finite: bool = False
    min_dimensions: int = 1
    _takes_group: bool = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls._takes_group = "group" in inspect.signature(cls.terms).parameters

    @abstractmethod
    def terms(self, z1: Tensor, z2: Tensor) -> dict[str, Tensor]:
        """Compute ``"loss"`` and its named terms, unweighted.

        Args:
            z1: Embeddings of the first view, shape ``(N, D)``, checked, float32 or float64.
            z2: Embeddings of the second view, the same shape; row i is the partner of row i.

        Returns:
            Scalars; ``"loss"`` is the weighted sum of the others.
        """

    def forward(self, z1: Tensor, z2: Tensor, group: Group = SINGLE) -> dict[str, Tensor]:
        """Check the views and compute the terms in float32 (float64 for float64), autocast or not.

        Args:
            z1: Embeddings of the first view, shape ``(N, D)``, ``N >= 2``, of any floating dtype.
            z2: Embeddings of the second view, same shape and dtype; row i is the partner of row i.
            group: Processes that share the batch, with as many rows each; see
                :func:`duality_ssl.distributed.process_group`. By default this process has all.

        Returns:
            ``"loss"`` and the terms that it weighs, scalars, all with gradient, the same on every
            process; the average over processes of their gradients is that of one process with the
            whole batch.

        Raises:
            ValueError: If the views are not two floating-point tensors of one shape (N, D) and
                dtype with enough rows and columns or, with ``check_finite``, have a NaN or Inf.
        """
        check_views(z1, z2, self.min_dimensions, group.world_size)
        if self.check_finite:
            _check_finite(z1, z2)
        terms: Callable[..., dict[str, Tensor]] = full_precision(self.terms)
        if self._takes_group:
            return terms(z1, z2, group)
        return terms(group.gather(z1), group.gather(z2))

    def memory(self, n: int, d: int) -> int:
        """Estimate how many values (not bytes) a step keeps beside its two inputs.

        About three times the inputs, and the Gram matrix of the smaller side.

        Args:
            n: Samples of the batch.
            d: Dimensions.
        """
        return 3 * 2 * n * d + min(n, d) ** 2

    def extra_repr(self) -> str:
        """Return the arguments of the criterion, for ``repr``."""
        names = inspect.signature(type(self)).parameters
        return ", ".join(f"{name}={getattr(self, name, '?')!r}" for name in names)


def check_views(z1: Tensor, z2: Tensor, min_dimensions: int = 1, world_size: int = 1) -> None:
    """Check that two views can be compared.

    Args:
        z1: Embeddings of the first view.
        z2: Embeddings of the second view.
        min_dimensions: Fewest columns.
        world_size: Number of processes that have as many rows each.

    Raises:
        ValueError: Unless both are tensors of one shape ``(N, D)`` with ``N >= 2`` and
            ``D >= min_dimensions``, and of one floating-point dtype.
    """
    if not (isinstance(z1, Tensor) and isinstance(z2, Tensor)):
        got = f"{type(z1).__name__} and {type(z2).__name__}"
        raise ValueError(f"Expected `z1` and `z2` to be tensors, but got {got}.")
    if z1.ndim != 2 or z1.shape != z2.shape:
        got = f"{tuple(z1.shape)} and {tuple(z2.shape)}"
        raise ValueError(f"Expected `z1` and `z2` to share one shape (N, D), but got {got}.")
    if not z1.is_floating_point() or z1.dtype != z2.dtype:
        raise ValueError(
            "Expected `z1` and `z2` to share one floating-point dtype, but got "
            f"{z1.dtype} and {z2.dtype}."
        )
    if len(z1) * world_size < 2:
        raise ValueError(f"Expected at least 2 samples to compare, but got N={len(z1)}.")
    if z1.shape[1] < min_dimensions:
        raise ValueError(
            f"Expected embeddings of at least {min_dimensions} dimension(s), but got "
            f"D={z1.shape[1]}."
        )


def _check_finite(z1: Tensor, z2: Tensor) -> None:
    for name, z in (("z1", z1), ("z2", z2)):
        nan, inf = z.isnan(), z.isinf()
        if (nan | inf).any():
            rows = (nan | inf).any(dim=1).sum().item()
            raise ValueError(
                f"Expected finite embeddings, but got {nan.sum().item()} NaN and "
                f"{inf.sum().item()} Inf values in {rows} of the {len(z)} rows of `{name}`: look "
                "upstream of the criterion (learning rate, mixed precision, input images)."
            )


def check_positive(*, or_zero: bool = False, **arguments: float) -> None:
    """Check a criterion's numbers at construction.

    Args:
        or_zero: Whether zero is allowed, as for the weight of a term.
        **arguments: Values by the names of the arguments.

    Raises:
        ValueError: Unless every value is positive (or zero, where allowed) and finite.
    """
    for name, value in arguments.items():
        if not 0 <= value < math.inf or (value == 0 and not or_zero):
            expected = "at least 0" if or_zero else "positive"
            raise ValueError(f"Expected `{name}` to be {expected} and finite, but got {value}.")


def check_choice(name: str, value: str, valid: Iterable[str]) -> None:
    """Check a criterion's argument at construction.

    Args:
        name: The argument's name, for the message.
        value: Its value.
        valid: Values that are allowed.

    Raises:
        ValueError: Unless the value is one of the valid ones; the message names them.
    """
    valid = list(valid)
    if value not in valid:
        raise ValueError(f"Expected `{name}` to be one of {valid}, but got {value!r}.")
