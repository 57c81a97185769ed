"""A criterion builds the matrix that its class names, and no larger one."""

import math
from typing import Any

import pytest
import torch
from helpers.criteria_cases import EXPORTED, FEW, NEED_MORE_SAMPLES, build, make_inputs, make_views
from torch.utils._python_dispatch import TorchDispatchMode

from duality_ssl import criteria

LARGE, SMALL = 1024, 8


class Shapes(TorchDispatchMode):
    """The shapes of all tensors that are computed."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        outputs = result if isinstance(result, tuple | list) else [result]
        self.seen |= {tuple(each.shape) for each in outputs if isinstance(each, torch.Tensor)}
        return result


def side(name: str) -> str:
    """The matrix that a step builds when either N or D is large."""
    small, large = zip(built(name, LARGE, SMALL), built(name, SMALL, LARGE), strict=True)
    if any(large):
        return "N x N" if large[0] else "D x D"
    return "smaller" if all(small) else ""


def built(name: str, n: int, d: int) -> tuple[bool, bool]:
    """Whether a step builds a matrix of the smaller side, and one of the larger."""
    criterion = build(name, {"directions": 1} if "directions" in FEW.get(name, {}) else {})
    views = [z.float().requires_grad_() for z in make_views(n, d)]
    inputs = make_inputs(criterion, views[0]) if isinstance(criterion, criteria.Criterion) else {}
    with Shapes() as shapes:
        criterion(*views, **inputs)["loss"].backward()
    return (
        any(shape[-2:] == (SMALL, SMALL) for shape in shapes.seen),
        any(math.prod(shape) > 20 * n * d for shape in shapes.seen),
    )


@pytest.mark.parametrize("name", EXPORTED)
def test_side_is_the_one_that_the_class_names(name: str) -> None:
    assert side(name) == vars(criteria)[name].side


def test_whitening_takes_the_dimensions() -> None:
    assert {"WMSE"} == NEED_MORE_SAMPLES
    assert criteria.WMSE.side == "D x D"
    assert built("WMSE", LARGE, SMALL) == (True, False)
