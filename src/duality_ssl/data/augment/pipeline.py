"""The augmentation of a batch: which operations an image goes through, in order."""

import numpy as np
import torch
from torch import Tensor

from duality_ssl.data.augment.color import color_jitter, grayscale, normalize, solarize
from duality_ssl.data.augment.spatial import (
    Resampling,
    blur_radius,
    gaussian_blur,
    gaussian_kernels,
    horizontal_flip,
)
from duality_ssl.data.augment.view import Draws, View
from duality_ssl.distributed import SINGLE, Group


class Augmentation:
    """One view's augmentation: ``uint8`` batch in, normalised float batch out.

    Args:
        view: Distributions of the parameters.
        image_size: Side of the result, in pixels.
        mean: Mean of each channel, for values in [0, 1].
        std: Standard deviation of each channel, for values in [0, 1].
    """

    def __init__(
        self, view: View, image_size: int, mean: tuple[float, ...], std: tuple[float, ...]
    ) -> None:
        self.view = view
        self.image_size = image_size
        self.mean = mean
        self.std = std
        self.radius = blur_radius(view.sigma[1], image_size)

    def __call__(
        self,
        images: Tensor,
        generator: torch.Generator,
        *,
        cropped: bool = False,
        group: Group = SINGLE,
    ) -> Tensor:
        """Draw parameters for the global batch; apply those of this process's images.

        The result is what one process with the whole batch makes of these images.

        Args:
            images: This process's images, as for `apply`.
            generator: Generator on the CPU, in the same state on every process.
            cropped: Whether the images were cropped when they were decoded.
            group: Processes that share the batch, with as many images each.
        """
        size = None if cropped else (images.shape[2], images.shape[3])
        draws = self.view.draw(group.world_size * len(images), generator, size)
        return self.apply(images, draws[group.own(len(images))])

    def apply(self, images: Tensor, draws: Draws) -> Tensor:
        """Apply drawn parameters, on the device of the images.

        Values stay float between the operations; a chain on 8-bit images rounds after each. Values
        of bicubic crops are clamped to [0, 1] once, where 8-bit images clamp after the columns and
        after the rows. On a CPU a few samples at a time go through all operations, so that they
        stay in its caches.

        Args:
            images: ``uint8``, shape ``(N, C, H, W)``, ``C`` 1 or 3; ``H = W = image_size`` if
                ``draws`` has no boxes.
            draws: Parameters of ``N`` samples.

        Returns:
            Normalised floats, shape ``(N, C, image_size, image_size)``.
        """
        n, size, device = len(images), self.image_size, images.device
        shape, chunk = (n, images.shape[1], size, size), n
        if device.type == "cpu":
            # NumPy asks for huge pages: the first touch of small ones takes a fifth of the work
            out = torch.from_numpy(np.empty(shape, np.float32))
            chunk = chunk_size(out[0].numel())
        else:
            out = torch.empty(shape, device=device)
        # autocast would round to bfloat16; inference mode saves a tenth of the time
        with torch.autocast(device.type, enabled=False), torch.inference_mode():
            # for all samples at once: per sample they would take a fifth of the time
            kernels = gaussian_kernels(draws.sigma, self.radius)
            resampling, interpolation = None, self.view.interpolation
            if draws.boxes is not None:
                resampling = Resampling(draws.boxes, size, draws.flip, device, interpolation)
            for first in range(0, n, chunk):
                rows = slice(first, first + chunk)
                x, d = images[rows], draws[rows]
                if resampling is None:
                    x = horizontal_flip(x.float(), d.flip)
                else:
                    x = resampling(x, rows)
                    x = x.clamp_(0, 255) if interpolation == "bicubic" else x
                x = x.mul_(1 / 255)
                x = color_jitter(x, d.brightness, d.contrast, d.saturation, d.hue, d.order)
                x = grayscale(x, d.gray)
                x = gaussian_blur(x, d.sigma, kernels[rows])
                x = solarize(x, d.solarize)
                normalize(x, self.mean, self.std, out[rows])
        return out


def chunk_size(values: int) -> int:
    """How many samples of so many values a CPU takes at a time: several temporaries are cached."""
    return 1 if values > 2**17 else 2**19 // values


@torch.no_grad()
def plain(
    images: Tensor,
    image_size: int,
    channels: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Tensor:
    """Normalize images ``(N, C, H, W)`` of uint8; resize them, and repeat grey, where needed."""
    height, width = images.shape[2:]
    images = images.float().div_(255)
    if (height, width) != (image_size, image_size):
        whole = torch.tensor([[0, 0, height, width]]).expand(len(images), 4)
        images = Resampling(whole, image_size, None, images.device)(images)
    if images.shape[1] < channels:
        images = images.repeat(1, channels, 1, 1)
    return normalize(images, mean, std)
