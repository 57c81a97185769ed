"""What batched operations share: whom they change, and how much is done at a time."""

from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import Tensor


class Operation(ABC):
    """Something done to some samples of a batch, each with its own parameters.

    Args:
        drawn: Which samples are changed, boolean, shape ``(N,)``.
        device: Where the images are.
    """

    def __init__(self, drawn: Tensor, device: torch.device) -> None:
        self.drawn: list[bool] = drawn.tolist()
        self.device = device

    @abstractmethod
    def change(self, images: Tensor, samples: list[int]) -> Tensor:
        """What the images become; they may be overwritten.

        Args:
            images: Shape ``(n, C, H, W)``.
            samples: Which of the batch they are.
        """

    def __call__(self, images: Tensor, first: int = 0) -> Tensor:
        """Change the drawn ones of ``images``, sample ``first`` of the batch and on, in place."""
        rows = [i for i in range(len(images)) if self.drawn[first + i]]
        samples = [first + i for i in rows]
        if len(rows) == len(images):
            changed = self.change(images, samples)
            return images if changed is images else images.copy_(changed)
        if rows:
            index = upload(torch.tensor(rows), self.device)
            changed = self.change(images.index_select(0, index), samples)
            # A CPU copies one value after the other: four floats for a value take a fourth of it.
            fits = images.shape[3] * images.element_size() % 16 == 0
            wide = torch.complex128 if fits else images.dtype
            images.view(wide).index_copy_(0, index, changed.contiguous().view(wide))
        return images


def upload(parameters: Tensor, device: torch.device) -> Tensor:
    """Small tensors to the images' device, without waiting for it."""
    return parameters.to(device, non_blocking=True)


def pick(parameters: Tensor, samples: list[int]) -> Tensor:
    """The rows of ``samples``; a view where they follow each other."""
    first, last = samples[0], samples[-1]
    if last - first + 1 == len(samples):
        return parameters[first : last + 1]
    return parameters.index_select(0, upload(torch.tensor(samples), parameters.device))


def chunk_size(values: int) -> int:
    """How many samples of so many values a CPU takes through all operations at a time.

    Several temporaries of a chunk, 2 MiB each, stay in a CPU's caches; a large image goes alone:
    what is drawn for it is then done in place.
    """
    return 1 if values > 2**17 else 2**19 // values


def empty(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Room for a batch of floats; on a CPU from NumPy, which asks for huge pages.

    The first touch of 4 KiB pages would take as long as a fifth of the work at 224 pixels.
    """
    if device.type == "cpu":
        return torch.from_numpy(np.empty(shape, np.float32))
    return torch.empty(shape, device=device)
