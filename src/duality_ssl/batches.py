"""The content of a batch: views and labels for training, else one view and labels.

Any other batch is refused with a ``ValueError``.
"""

from itertools import takewhile
from typing import Any

from torch import Tensor


def training_views(batch: Any) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Unpack ``(views, labels)``: the large views, the small ones, and the labels ``(N,)``.

    Views are images ``(N, C, H, W)``, two or more. The first two are large, and those that follow
    in the size of the first; the small ones come after them.
    """
    match batch:
        case [[Tensor() as x1, Tensor() as x2, *rest], Tensor() as labels] if labels.ndim == 1:
            if all(isinstance(x, Tensor) for x in rest):
                more = [*takewhile(lambda x: x.shape == x1.shape, rest)]
                return [x1, x2, *more], rest[len(more) :], labels
    raise ValueError(
        "Expected training batches (views, labels) of two or more views of N images and N labels, "
        f"but got {describe(batch)}: let the training set return ((x1, x2), label), -1 for no "
        "label."
    )


def one_view(batch: Any) -> tuple[Tensor, Tensor]:
    """Unpack ``([x], labels)``, ``(x, labels)``, or ``x`` or ``[x]``, whose labels are -1."""
    match batch:
        case [(Tensor() as x) | [Tensor() as x], Tensor() as labels] if labels.ndim == 1:
            return x, labels
        case (Tensor() as x) | [Tensor() as x]:
            return x, x.new_full((len(x),), -1).long()
    raise ValueError(
        "Expected batches (x, labels) of one view of N images and N labels for validation, test "
        f"and prediction, but got {describe(batch)}: let that data set return (x, label)."
    )


def images_of(batch: Any, rows: int) -> list[Tensor]:
    """Find the views of ``rows`` images in the first part of a training batch of any format."""
    first = batch[0] if isinstance(batch, tuple | list) and batch else batch
    parts = first if isinstance(first, tuple | list) else [first]
    return [x for x in parts if isinstance(x, Tensor) and x.ndim > 1 and len(x) == rows]


def describe(batch: Any) -> str:
    """Describe a batch or a part of it for a message: ``(a tensor (4, 3, 8, 8), a dict)``."""
    match batch:
        case Tensor():
            return f"a tensor {tuple(batch.shape)}"
        case list() | tuple():
            return f"({', '.join(describe(part) for part in batch)})"
    return f"a {type(batch).__name__}"
