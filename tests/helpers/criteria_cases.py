"""Every criterion that is exported, in the variants of its reference, and two views for it."""

import inspect
from typing import Any

import pytest
import torch
from helpers import references
from torch import Tensor

from duality_ssl import criteria
from duality_ssl.criteria import Criterion

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


def build(name: str, arguments: dict[str, Any] | None = None) -> Criterion:
    criterion: Criterion = vars(criteria)[name](**(arguments or {}))
    return criterion


def make_views(
    n: int, d: int, noise: float = 0.5, dtype: torch.dtype = torch.float64, seed: int = 0
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n, d, dtype=torch.float64, generator=generator)
    other = z + noise * torch.randn(n, d, dtype=torch.float64, generator=generator)
    return z.to(dtype), other.to(dtype)
