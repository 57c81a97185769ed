"""Every criterion that is exported, in the variants of its reference, and two views for it."""

import copy
import inspect
from typing import Any

import pytest
import torch
from helpers import references, references_contrast
from torch import Tensor, nn

from duality_ssl import criteria
from duality_ssl.criteria import Criterion
from duality_ssl.distributed import SINGLE, Group

references.CRITERIA |= references_contrast.CRITERIA

EXPORTED = [
    name
    for name in criteria.__all__
    if inspect.isclass(vars(criteria)[name])
    and issubclass(vars(criteria)[name], Criterion)
    and not inspect.isabstract(vars(criteria)[name])
]
VARIANTS = [
    pytest.param(name, arguments, id="-".join([name, *map(str, arguments.values())]))
    for name in EXPORTED
    for arguments in references.CRITERIA.get(name, (None, [{}]))[1]
]


class WithInputs(nn.Module):
    """A criterion that gets its inputs, and is built anew, with each batch.

    Args:
        name: Name of a criterion that has inputs or needs `dimensions`.
        arguments: Its arguments.
    """

    def __init__(self, name: str, arguments: dict[str, Any]) -> None:
        super().__init__()
        self.name, self.arguments = name, arguments
        self.min_dimensions = vars(criteria)[name].min_dimensions
        self.order: Tensor | None = None
        self.swapped = False
        self._inputs: dict[Any, dict[str, Any]] = {}

    def forward(self, *views: Tensor, group: Group = SINGLE) -> dict[str, Tensor]:
        z = views[0]
        if not isinstance(z, Tensor) or z.ndim != 2 or not z.is_floating_point():
            return self.built(torch.zeros(2, 2))(*views, group=group)  # which refuses them
        criterion = self.built(z)
        return criterion(*views, group=group, **self.inputs(criterion, z, group))

    def inputs(self, criterion: Criterion, z: Tensor, group: Group = SINGLE) -> dict[str, Any]:
        """The same for each batch of one shape; kept, for a graph must not draw them."""
        key = z.shape, z.dtype, group.rank, group.world_size
        if key not in self._inputs:
            self._inputs[key] = make_inputs(criterion, z, group)
        given = dict(self._inputs[key])
        if self.swapped and "targets" in given:
            given["targets"] = given["targets"][::-1]
        if self.order is not None and "targets" in given:
            given["targets"] = tuple(t[self.order] for t in given["targets"])
        if self.order is not None and "labels" in given:
            given["labels"] = given["labels"][self.order]
        return given

    def built(self, z: Tensor) -> Criterion:
        """The criterion for embeddings like `z`, in their dtype."""
        cls = vars(criteria)[self.name]
        asks = "dimensions" in inspect.signature(cls).parameters
        sizes = {"dimensions": z.shape[1]} if asks else {}
        criterion: Criterion = cls(**sizes, **self.arguments)
        return criterion.to(z.dtype)

    def __getattr__(self, name: str) -> Any:
        """The criterion's arguments."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            parameters = inspect.signature(vars(criteria)[self.name]).parameters
            if name not in parameters:
                raise
            return self.arguments.get(name, parameters[name].default)


def build(name: str, arguments: dict[str, Any] | None = None) -> Any:
    """The criterion, called with views alone."""
    cls = vars(criteria)[name]
    if cls.inputs or "dimensions" in inspect.signature(cls).parameters:
        lazy = WithInputs(name, arguments or {})
        lazy.built(torch.zeros(2, 2))  # which refuses arguments out of range
        return lazy
    return cls(**(arguments or {}))


def rearranged(criterion: Any, order: Tensor | None = None, swapped: bool = False) -> Any:
    """The criterion, whose inputs change as the views do: in another order, or swapped."""
    if isinstance(criterion, WithInputs):
        criterion = copy.copy(criterion)
        criterion.order, criterion.swapped = order, swapped
    return criterion


def make_views(
    n: int, d: int, noise: float = 0.5, dtype: torch.dtype = torch.float64, seed: int = 0
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n, d, dtype=torch.float64, generator=generator)
    other = z + noise * torch.randn(n, d, dtype=torch.float64, generator=generator)
    return z.to(dtype), other.to(dtype)


def make_inputs(criterion: Criterion, z: Tensor, group: Group = SINGLE) -> dict[str, Any]:
    """Targets, labels and a step, those that the criterion takes; of two classes or more."""
    n, d = z.shape
    every = n * group.world_size
    own = group.own(n)
    given = {
        # of eighths: the same numbers in half precision
        "targets": tuple(
            ((8 * t[own]).round() / 8).to(z.dtype) for t in make_views(every, d, seed=1)
        ),
        "labels": (torch.arange(every) % max(2, every // 2))[own],
        "step": 3,
    }
    return {name: given[name] for name in criterion.inputs}
