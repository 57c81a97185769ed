"""Every criterion that is exported, in the variants of its reference, and two views for it."""

import copy
import inspect
from typing import Any

import pytest
import torch
from helpers import (
    references,
    references_contrast,
    references_prototypes,
    references_statistics,
    references_step,
)
from torch import Tensor, nn

from duality_ssl import criteria
from duality_ssl.criteria import Criterion
from duality_ssl.distributed import SINGLE, Group

for part in (references_contrast, references_prototypes, references_statistics, references_step):
    references.CRITERIA |= part.CRITERIA

# The covariance of N <= D samples cannot be inverted; tests/criteria/test_whitening.py has it.
NEED_MORE_SAMPLES = {"WMSE"}
FEW = {  # more take longer, no more
    "CPLearn": {"num_codes": 24},
    "LeJEPA": {"directions": 12},
    "SwAV": {"num_prototypes": 12},
    "VISReg": {"directions": 12},
}
EXPORTED = [
    name
    for name in sorted({*criteria.__all__} - NEED_MORE_SAMPLES)
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
    """A criterion that gets its inputs, and has its first state again, with each batch.

    Args:
        name: Name of a criterion that has inputs or needs `dimensions`.
        arguments: Its arguments.
    """

    def __init__(self, name: str, arguments: dict[str, Any]) -> None:
        super().__init__()
        self.name, self.arguments = name, arguments
        self.order: Tensor | None = None
        self.swapped = False
        # nothing is drawn twice: transforms of torch.func and compiled graphs forbid it
        self._built: dict[Any, tuple[Criterion, dict[str, Tensor]]] = {}
        self._inputs: dict[Any, dict[str, Any]] = {}

    def forward(self, *views: Tensor, group: Group = SINGLE) -> dict[str, Tensor]:
        z = views[0]
        if not isinstance(z, Tensor) or z.ndim != 2 or 0 in z.shape or not z.is_floating_point():
            return self.built(torch.zeros(2, 2))(*views, group=group)  # which refuses them
        criterion = self.built(z)
        key = *z.shape, z.dtype, group.rank, group.world_size
        if key not in self._inputs:
            self._inputs[key] = make_inputs(criterion, z, group)
        inputs = dict(self._inputs[key])
        if self.order is not None and "labels" in inputs:
            inputs["labels"] = inputs["labels"][self.order]
        if self.order is not None and "targets" in inputs:
            inputs["targets"] = tuple(t[self.order] for t in inputs["targets"])
        if self.swapped and "targets" in inputs:
            inputs["targets"] = inputs["targets"][::-1]
        return criterion(*views, group=group, **inputs)

    def built(self, z: Tensor) -> Criterion:
        """The criterion for embeddings like `z`, in full precision, as it is at first."""
        key = z.shape[1], z.dtype
        if key not in self._built:
            cls = vars(criteria)[self.name]
            asks = "dimensions" in inspect.signature(cls).parameters
            sizes = {"dimensions": z.shape[1]} if asks else {}
            with torch.random.fork_rng():
                torch.manual_seed(0)
                new: Criterion = cls(**sizes, **self.arguments)
            new.to(torch.promote_types(z.dtype, torch.float32)).requires_grad_(False)
            self._built[key] = new, copy.deepcopy(dict(new.named_buffers()))
        criterion, state = self._built[key]
        for name, buffer in criterion.named_buffers() if self.training else ():
            buffer.copy_(state[name])
        return criterion.train(self.training)

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
    cls, arguments = vars(criteria)[name], FEW.get(name, {}) | (arguments or {})
    if cls.inputs or "dimensions" in inspect.signature(cls).parameters:
        lazy = WithInputs(name, arguments)
        lazy.built(torch.zeros(2, 2))  # which refuses arguments out of range
        return lazy
    return cls(**arguments)


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
    # the same in every precision
    targets = make_views(every, d, dtype=torch.bfloat16, seed=1)
    given = {
        "targets": tuple(t[own].to(z.dtype) for t in targets),
        "labels": (torch.arange(every) % max(2, every // 2))[own],
        "step": 3,
    }
    return {name: given[name] for name in criterion.inputs}
