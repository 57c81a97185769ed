"""What every criterion shares: checked views, full precision, a readable ``repr``."""

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from duality_ssl.distributed import SINGLE, Group
from duality_ssl.functional import full_precision

INPUTS = ("targets", "labels", "step")
"""What a criterion may take beside the views."""


class Criterion(nn.Module, ABC):
    """A loss of the views' embeddings; subclasses implement :meth:`terms`.

    The parameters of ``terms`` say what a criterion takes: ``z1, z2`` are two views, ``*views`` are
    two or more. Of the names in :data:`INPUTS` it gets those that it lists, as keywords.

    By default each process of a group gathers the whole batch, with the exact gradient, and
    computes all of ``terms``. A subclass whose ``terms`` has a parameter ``group`` is called with
    this process's rows and the group instead, and shares the work; its terms are those of the
    whole batch.

    Attributes:
        min_dimensions: Fewest dimensions that the criterion is defined for.
        inputs: What it takes beside the views, of :data:`INPUTS`.
        many_views: Whether it takes more than two views.
        family: What the criterion keeps apart, or predicts: a word of the table in docs/methods.md.
        side: Matrix of products that it needs: ``"N x N"``, ``"D x D"``, ``"smaller"`` for the
            smaller of the two, or none.

    Example:
        >>> class Distance(Criterion):
        ...     def terms(self, z1: Tensor, z2: Tensor) -> dict[str, Tensor]:
        ...         return {"loss": (z1 - z2).square().mean()}
        >>> Distance()(torch.zeros(2, 3), torch.ones(2, 3))
        {'loss': tensor(1.)}
    """

    min_dimensions: int = 1
    inputs: ClassVar[frozenset[str]] = frozenset()
    many_views: ClassVar[bool] = False
    family: ClassVar[str] = ""
    side: ClassVar[str] = ""
    _takes_group: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        parameters = inspect.signature(cls.terms).parameters
        cls.inputs = frozenset(INPUTS) & parameters.keys()
        cls.many_views = any(each.kind is each.VAR_POSITIONAL for each in parameters.values())
        cls._takes_group = "group" in parameters

    @abstractmethod
    def terms(self, *views: Any, **inputs: Any) -> dict[str, Tensor]:
        """Compute ``"loss"`` and the unweighted terms that it weighs, scalars.

        The views ``(N, D)`` are checked, and in float32 or float64.
        """

    def forward(self, *views: Tensor, group: Group = SINGLE, **inputs: Any) -> dict[str, Tensor]:
        """Check the views and compute the terms in float32 (float64 for float64), autocast or not.

        Args:
            views: Embeddings ``(n, D)`` of each view, this process's rows, of any floating dtype;
                rows i of all views are partners.
            group: Processes that share the batch, with as many rows each; see
                :func:`duality_ssl.distributed.process_group`. By default this process has all.
            inputs: What :attr:`inputs` names: ``targets``, embeddings ``(n, D)`` of each view
                without gradient; ``labels`` ``(n,)``; ``step``, the number of optimizer steps done.

        Returns:
            The terms, the same on every process; the average over processes of their gradients is
            that of one process with the whole batch.

        Raises:
            ValueError: If the views are not floating-point tensors of one shape (N, D) and dtype
                with at least two rows and ``min_dimensions`` columns, or not as many as ``terms``
                takes, or if an input is missing.
        """
        self._check_number(len(views))
        _check_views(views, self.min_dimensions, group.world_size)
        if missing := sorted(self.inputs - inputs.keys()):
            raise ValueError(
                f"Expected `{missing[0]}` for {type(self).__name__}: pass {missing[0]}=..."
            )
        terms: Callable[..., dict[str, Tensor]] = full_precision(self.terms)
        if self._takes_group:
            return terms(*views, group=group, **inputs)
        if "labels" in inputs:
            inputs["labels"] = group.all_gather(inputs["labels"])
        if "targets" in inputs:
            inputs["targets"] = tuple(map(group.gather, inputs["targets"]))
        return terms(*map(group.gather, views), **inputs)

    def _check_number(self, views: int) -> None:
        if views < 2 or (views > 2 and not self.many_views):
            expected = "two or more views" if self.many_views else "two views"
            raise ValueError(f"Expected {expected} for {type(self).__name__}, but got {views}.")

    def memory(self, n: int, d: int) -> int:
        """Estimate how many values (not bytes) a step of ``(n, d)`` views keeps beside them.

        About three times the inputs, and the Gram matrix of the smaller side.
        """
        return 3 * 2 * n * d + min(n, d) ** 2

    def extra_repr(self) -> str:
        """Return the arguments of the criterion, for ``repr``."""
        names = inspect.signature(type(self)).parameters
        return ", ".join(f"{name}={getattr(self, name, '?')!r}" for name in names)


def _check_views(views: Sequence[Tensor], min_dimensions: int, world_size: int) -> None:
    if not all(isinstance(z, Tensor) for z in views):
        got = " and ".join(type(z).__name__ for z in views)
        raise ValueError(f"Expected the views to be tensors, but got {got}.")
    z1 = views[0]
    if z1.ndim != 2 or any(z.shape != z1.shape for z in views):
        got = " and ".join(str(tuple(z.shape)) for z in views)
        raise ValueError(f"Expected the views to share one shape (N, D), but got {got}.")
    if not z1.is_floating_point() or any(z.dtype != z1.dtype for z in views):
        got = " and ".join(str(z.dtype) for z in views)
        raise ValueError(f"Expected the views to share one floating-point dtype, but got {got}.")
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
