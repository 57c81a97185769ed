"""What a method needs of its arguments, its data and the trainer, each refused in one sentence."""

import math

from lightning import Trainer
from torch import nn

from duality_ssl.criteria import Criterion


def check_rates(final_lr_fraction: float, **rates: float) -> None:
    """Raise ``ValueError`` unless rates are 0 or more and finite, and the fraction is in [0, 1]."""
    for name, value in rates.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"Expected `{name}` to be finite and 0 or more, but got {value}.")
    if not 0 <= final_lr_fraction <= 1:
        raise ValueError(f"Expected `final_lr_fraction` in [0, 1], got {final_lr_fraction}.")


def check_targets(criterion: Criterion, *, teacher: bool, stop_gradient: bool) -> None:
    """Raise ``ValueError`` for arguments about targets that would do nothing."""
    name = type(criterion).__name__
    if "targets" not in criterion.inputs:
        option = "teacher_momentum" if teacher else "stop_gradient"
        if teacher or not stop_gradient:
            raise ValueError(
                f"Expected a criterion that takes targets with `{option}`, but {name} takes none: "
                "leave it out, or choose a method such as BYOL."
            )
    elif teacher and not stop_gradient:
        raise ValueError(
            "Expected `stop_gradient` true with `teacher_momentum`: a teacher has no gradient."
        )


def check_fit(
    criterion: Criterion, backbone: nn.Module, trainer: Trainer, *, teacher: bool
) -> None:
    """Raise ``ValueError`` for data without the criterion's inputs, or weights too coarse to move.

    A data module says what its training batches have by ``num_views``, its views of an image,
    ``small_size``, the pixels of small ones, and ``has_labels``; others are taken to fit.
    """
    name, data = type(criterion).__name__, getattr(trainer, "datamodule", None)
    views = getattr(data, "num_views", 2)
    if views > 2 and not criterion.many_views:
        raise ValueError(
            f"Expected two views of an image for {name}, but the data has {views}: set "
            "--data.views 2 and --data.small_views 0."
        )
    patches = getattr(backbone, "patch_embed", None)  # of a transformer
    if getattr(data, "small_size", None) and getattr(patches, "strict_img_size", False):
        raise ValueError(
            "Expected a backbone for images of any size with small views, but this transformer "
            "takes one: choose a convolutional network, or set --data.small_views 0."
        )
    if "labels" in criterion.inputs and not getattr(data, "has_labels", True):
        raise ValueError(
            f"Expected labelled training images for {name}, but they have no labels: sort them "
            "into a folder a class, or choose a method without labels."
        )
    if teacher and str(trainer.precision) in ("16-true", "bf16-true"):
        raise ValueError(
            f"Expected --trainer.precision bf16-mixed or 32-true with a teacher, but got "
            f"{trainer.precision}, which rounds the teacher's steps away."
        )
