"""Apply an operation to the samples of a batch that it was drawn for."""

from collections.abc import Callable

import torch
from torch import Tensor


def upload(parameters: Tensor, device: torch.device) -> Tensor:
    """Copy small CPU tensors to the images' device, without waiting for it."""
    return parameters.to(device, non_blocking=True)


def change_drawn(
    images: Tensor, drawn: Tensor, change: Callable[..., Tensor], *parameters: Tensor
) -> Tensor:
    """Change the drawn samples of a batch, in place where possible.

    Args:
        images: Shape ``(N, C, H, W)``; may be overwritten.
        drawn: Which samples to change, boolean, shape ``(N,)``, on the CPU: a GPU never has to be
            waited for.
        change: Takes the drawn images, which it may overwrite, and their parameters.
        parameters: CPU tensors with one row per sample.
    """
    if drawn.all():
        return change(images, *parameters)
    if drawn.any():
        places = drawn.nonzero().squeeze(1)
        index = upload(places, images.device)
        changed = change(images.index_select(0, index), *(each[places] for each in parameters))
        # a CPU copies value by value: 16 bytes at a time take a fourth of the time
        fits = images.shape[3] * images.element_size() % 16 == 0
        wide = torch.complex128 if fits else images.dtype
        images.view(wide).index_copy_(0, index, changed.view(wide))
    return images
