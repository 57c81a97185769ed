"""The content of a batch: views and labels for training, else one view and labels.

Any other batch is refused with a ``ValueError``.
"""

from typing import Any

from torch import Tensor


def training_views(batch: Any) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Unpack ``(views, labels)``: the large views, the small ones, and the labels ``(N,)``.

    Views are images ``(N, C, H, W)``, two or more. Those of the first one's size are large; small
    are the others, after them.
    """
    match batch:
        case [[Tensor() as first, Tensor(), *_] as views, Tensor() as labels] if labels.ndim == 1:
            large = [x for x in views if isinstance(x, Tensor) and x.shape == first.shape]
            small = [x for x in views[len(large) :] if isinstance(x, Tensor)]
            if len(large) + len(small) == len(views) and len(large) > 1:
                return large, small, labels
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
