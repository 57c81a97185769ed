"""Supervised training on augmented crops, outside a Trainer, for `linear_sgd` and `finetune`."""

from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR

from duality_ssl.data import SSLDataModule, View
from duality_ssl.data.passes import Passes, Rows

_REFERENCE_BATCH = 256  # images that a learning rate is stated for


def labelled_rows(passes: Passes) -> Rows:
    """The images that have a label.

    Raises:
        ValueError: If less than two have one.
    """
    rows = np.flatnonzero(passes.labels.numpy() >= 0)
    if len(rows) < 2:
        raise ValueError(
            f"Expected labelled images for linear_sgd and finetune, but got {len(rows)}. Set "
            "--data.probe_source or --data.probe_root, or name other --evaluation.protocols."
        )
    return rows


def crops(data: SSLDataModule) -> View:
    """Crop and flip of the first view of pretraining, bilinear, without its colours and blur."""
    plain = replace(data.views[0], jitter=0.0, gray=0.0, blur=0.0, solarize=0.0)
    return replace(plain, interpolation="bilinear")


def train(
    loss: Callable[[Tensor, Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    passes: Passes,
    rows: Rows,
    view: View,
    *,
    epochs: int,
    batch_size: int,
) -> None:
    """Minimise a loss of images and labels; learning rates fall to 0 along a cosine.

    Args:
        loss: From images ``(B, C, S, S)`` and labels ``(B,)`` to a scalar.
        optimizer: Its learning rates are those for batches of 256; they are scaled linearly.
        passes: The images.
        rows: Which of them.
        view: Their augmentation.
        epochs: Passes over the images.
        batch_size: Images of a step, all if there are fewer (the learning rate stays); a smaller
            last batch of an epoch is dropped.
    """
    for group in optimizer.param_groups:
        group["lr"] *= batch_size / _REFERENCE_BATCH
    batch_size = min(batch_size, len(rows))
    cosine = CosineAnnealingLR(optimizer, epochs * (len(rows) // batch_size))
    for epoch in range(epochs):
        batches = passes.shuffled(rows, batch_size, epoch)
        for (images,), labels in passes.views(batches, (view,), epoch):
            optimizer.zero_grad()
            loss(images, labels).backward()
            optimizer.step()
            cosine.step()


@torch.no_grad()
def top1(logits: Callable[[Tensor], Tensor], batches: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Accuracy of logits ``(..., B, C)`` of images, of shape ``(...)``, in float64."""
    hits, count = torch.zeros((), dtype=torch.float64), 0
    for images, labels in batches:
        correct = logits(images).argmax(dim=-1) == labels
        hits, count = hits + correct.sum(dim=-1).cpu(), count + len(labels)
    return hits / count
