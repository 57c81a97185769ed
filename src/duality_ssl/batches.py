"""What is in a batch: two views with labels for training, one image and its label elsewhere."""

from typing import Any

from torch import Tensor


def two_views(batch: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Both views and the labels of a training batch.

    Args:
        batch: ``([x1, x2], labels)``, images of shape ``(N, C, H, W)`` and labels ``(N,)``, as
            tuples or lists.

    Raises:
        ValueError: If it is anything else.
    """
    match batch:
        case [[Tensor() as x1, Tensor() as x2], Tensor() as labels] if labels.ndim == 1:
            return x1, x2, labels
    raise ValueError(
        "Expected training batches ([x1, x2], labels) of two views of N images and N labels, but "
        f"got {describe(batch)}: have the training set return ((x1, x2), label), with a label of "
        "-1 where there is none."
    )


def one_view(batch: Any) -> tuple[Tensor, Tensor]:
    """Images and labels of a batch for validation, test or prediction.

    Args:
        batch: ``([x], labels)`` or ``(x, labels)``, as tuples or lists; or images alone, ``x`` or
            ``[x]``, whose labels are -1.

    Raises:
        ValueError: If it is anything else.
    """
    match batch:
        case [[Tensor() as x], Tensor() as labels] if labels.ndim == 1:
            return x, labels
        case [Tensor() as x, Tensor() as labels] if labels.ndim == 1:
            return x, labels
        case (Tensor() as x) | [Tensor() as x]:
            return x, x.new_full((len(x),), -1).long()
    raise ValueError(
        "Expected batches (x, labels) of N images and N labels for validation, test and "
        f"prediction, but got {describe(batch)}: have that data set return (x, label), one view "
        "of an image without augmentation."
    )


def images_of(batch: Any, rows: int) -> list[Tensor]:
    """The views of ``rows`` images that a batch of anybody's begins with, as far as it has them.

    Args:
        batch: Of a training loader.
        rows: Number N of its samples.
    """
    first = batch[0] if isinstance(batch, tuple | list) and batch else batch
    parts = first if isinstance(first, tuple | list) else [first]
    return [x for x in parts if isinstance(x, Tensor) and x.ndim > 1 and len(x) == rows]


def describe(batch: Any) -> str:
    """What a batch or a part of it is, for a message: ``(a tensor (4, 3, 8, 8), a dict)``."""
    match batch:
        case Tensor():
            return f"a tensor {tuple(batch.shape)}"
        case list() | tuple():
            return f"({', '.join(describe(part) for part in batch)})"
    return f"a {type(batch).__name__}"
