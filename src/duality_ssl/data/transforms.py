"""Batched image operations in space, crop, resize, mirror, blur, and normalisation.

Images are float tensors of shape ``(N, C, H, W)`` with values in [0, 1], ``C`` 1 or 3. Every
operation agrees with ``torchvision.transforms.v2.functional`` on float images given the same
parameters, unless its docstring says otherwise. An operation is made with the parameters of a whole
batch, CPU tensors with one row a sample, and then called with the batch or with one part of it
after the other: what it prepares, it prepares once, and which samples it changes is decided on the
CPU, so that a GPU never has to be waited for.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from duality_ssl.data.operations import Operation, pick, upload


def draw_boxes(
    n: int,
    size: tuple[int, int],
    scale: tuple[float, float],
    ratio: tuple[float, float],
    generator: torch.Generator,
) -> Tensor:
    """Draw crop boxes as ``RandomResizedCrop`` does: area uniform, aspect ratio log-uniform.

    Ten candidates a box are drawn at once and the first that fits is taken; where none does, the
    largest centred box with an allowed aspect ratio.

    Args:
        n: Number of boxes.
        size: Height and width of the images, in pixels.
        scale: Smallest and largest area of a box, as fractions of the image's.
        ratio: Smallest and largest width / height of a box.
        generator: Source of randomness, on the CPU.

    Returns:
        Integer tensor of shape ``(n, 4)``: top, left, height, width, in pixels.
    """
    height, width = size
    low, high = math.log(ratio[0]), math.log(ratio[1])
    draws = torch.rand(3, n, 10, generator=generator)
    area = height * width * (scale[0] + (scale[1] - scale[0]) * draws[0])
    aspect = torch.exp(low + (high - low) * draws[1])
    w = torch.sqrt(area * aspect).round().long()
    h = torch.sqrt(area / aspect).round().long()
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = fits.int().argmax(dim=1, keepdim=True)
    w, h = w.gather(1, first).squeeze(1), h.gather(1, first).squeeze(1)

    clamped = min(max(width / height, ratio[0]), ratio[1])
    whole_w = max(1, min(width, round(height * clamped)))
    whole_h = max(1, min(height, round(width / clamped)))
    found = fits.any(dim=1)
    w = torch.where(found, w, whole_w)
    h = torch.where(found, h, whole_h)

    u, v = draws[2, :, 0], draws[2, :, 1]
    top = torch.where(found, (u * (height - h + 1)).long(), (height - h) // 2)
    left = torch.where(found, (v * (width - w + 1)).long(), (width - w) // 2)
    return torch.stack((top, left, h, w), dim=1)


def _weigh_rows(images: Tensor, pixel: Tensor, weight: Tensor) -> Tensor:
    """Make each row of the output of some rows of the same plane: a vertical resampling.

    That is what the sum over a bag of embeddings does, a row of pixels being an embedding: one
    pass, where gathering the rows for each weight would take two passes a weight.

    Args:
        images: Shape ``(n, C, H, W)``.
        pixel: Which rows, shape ``(n or 1, size, K)``, int.
        weight: Their weights, shape ``(n, size or 1, K)``.

    Returns:
        Shape ``(n, C, size, W)``.
    """
    n, channels, height, width = images.shape
    planes = torch.arange(0, n * channels * height, height, dtype=pixel.dtype, device=images.device)
    rows = planes.view(n, channels, 1, 1) + pixel.unsqueeze(1)
    weights = weight.unsqueeze(1).expand(rows.shape).reshape(-1, rows.shape[3])
    table = images.reshape(-1, width)
    out = F.embedding_bag(rows.view(weights.shape), table, mode="sum", per_sample_weights=weights)
    return out.view(n, channels, -1, width)


class ResizedCrop:
    """Crop each image to its box, resize it to a square and mirror it where asked.

    Agrees with ``resized_crop(..., antialias=True)`` in bilinear mode, followed by
    ``horizontal_flip``. Resizing is separable and linear: each row of the result is a weighted sum
    of two rows (more where a side shrinks), then the same with columns. Mirroring is an order of
    the columns and costs nothing.

    Output ``i`` of an interval is centred at ``(i + 1/2) * length / size``; its weights are a
    triangle of half-width ``max(length / size, 1)`` cut at the ends of the interval and normalised.

    Args:
        boxes: Shape ``(N, 4)``: top, left, height, width in pixels, inside the image.
        size: Side of the output, in pixels.
        flip: Shape ``(N,)``, true where the result is mirrored.
        scale: Factor for all values: 1/255 turns ``uint8`` into [0, 1] on the way.
        device: Where the images are.
    """

    def __init__(
        self, boxes: Tensor, size: int, flip: Tensor, scale: float, device: torch.device
    ) -> None:
        self.sides = [(left, left + width) for _, left, _, width in boxes.tolist()]
        taps = math.ceil(2 * max(1.0, int(boxes[:, 2:].max()) / size))
        boxes, flip = upload(boxes, device), upload(flip, device)
        start, length = boxes.view(-1, 2, 2, 1, 1).unbind(dim=1)  # vertical, horizontal
        output = torch.arange(size, device=device).view(-1, 1).repeat(len(boxes), 2, 1, 1)
        output[:, 1] += flip.view(-1, 1, 1) * (size - 1 - 2 * output[:, 1])
        step = length / size
        reach = step.clamp(min=1)
        centre = (output + 0.5) * step - 0.5
        pixel = torch.ceil(centre - reach) + torch.arange(taps, device=device)
        weight = (1 - (pixel - centre).abs_() / reach).clamp_(min=0)
        weight *= (pixel >= 0) & (pixel < length)
        weight /= weight.sum(dim=3, keepdim=True)
        weight[:, 0] *= scale
        self.pixel = (pixel.clamp_(min=0).minimum(length - 1) + start).int()
        self.weight = weight

    def __call__(self, images: Tensor, first: int = 0) -> Tensor:
        """Make float images of shape ``(n, C, size, size)`` of those of any size and dtype."""
        rows = slice(first, first + len(images))
        left = min(left for left, _ in self.sides[rows])
        right = max(right for _, right in self.sides[rows])
        pixel, weight = self.pixel[rows], self.weight[rows]
        out = images[..., left:right].float()
        out = _weigh_rows(out, pixel[:, 0], weight[:, 0]).transpose(2, 3)
        out = _weigh_rows(out, pixel[:, 1] - left, weight[:, 1]).transpose(2, 3)
        return out.contiguous()


def resized_crop(images: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Crop each image to its box and resize it to a square; see `ResizedCrop`."""
    flip = torch.zeros(len(boxes), dtype=torch.bool)
    return ResizedCrop(boxes, size, flip, 1.0, images.device)(images)


class HorizontalFlip(Operation):
    """Mirror the drawn images; as torchvision's ``horizontal_flip``."""

    def change(self, images: Tensor, samples: list[int]) -> Tensor:
        """Mirror all of them."""
        return images.flip(-1)


def blur_radius(largest_sigma: float, size: int) -> int:
    """Half-width of a blur's kernel, in pixels: four of the largest sigma, less in tiny images."""
    return max(0, min(math.ceil(4 * largest_sigma), size - 1))


class GaussianBlur(Operation):
    """Blur each image with its own Gaussian; where ``sigma`` is 0 the image stays.

    Agrees with ``gaussian_blur`` with its reflected borders and a kernel of four sigma on each
    side, ``kernel_size=2 * min(radius, ceil(4 * sigma)) + 1``. SimCLR's kernel is a tenth of the
    image wide; ours depends on sigma alone, which is the same Gaussian at 224 pixels (the tail
    beyond is below 1e-4), not cut off in small images, and narrow where sigma is small.

    Args:
        sigma: Shape ``(N,)``, in pixels.
        radius: Largest half-width of a kernel, in pixels, shorter than the images' sides.
        device: Where the images are.
    """

    def __init__(self, sigma: Tensor, radius: int, device: torch.device) -> None:
        super().__init__((sigma > 0) & (radius > 0), device)
        self.offsets = torch.arange(-radius, radius + 1)
        reach = torch.ceil(4 * sigma).clamp_(max=radius)
        kernels = torch.exp(-0.5 * (self.offsets / sigma.clamp(min=1e-6).view(-1, 1)) ** 2)
        kernels *= self.offsets.abs() <= reach.view(-1, 1)
        kernels /= kernels.sum(dim=1, keepdim=True)
        self.kernels = upload(kernels.view(len(sigma), 1, -1), device)
        self.reach: list[int] = reach.int().tolist()

    def change(self, images: Tensor, samples: list[int]) -> Tensor:
        """Blur all of them, with kernels as wide as the widest of theirs."""
        radius, widest = len(self.offsets) // 2, max(self.reach[i] for i in samples)
        window = slice(radius - widest, radius + widest + 1)
        kernels = pick(self.kernels, samples)[..., window]
        for _ in range(2):  # down, then along the rows
            pixel = _reflected(images.shape[2], widest, self.device)
            images = _weigh_rows(images, pixel, kernels).transpose(2, 3)
        return images


@lru_cache(maxsize=64)
def _reflected(side: int, radius: int, device: torch.device) -> Tensor:
    """Pixels around each of an interval's, ``(1, side, 2 radius + 1)``, reflected at its ends."""
    pixel = torch.arange(side).view(-1, 1) + torch.arange(-radius, radius + 1)
    pixel = (side - 1) - ((side - 1) - pixel.abs_()).abs_()
    return upload(pixel.int().unsqueeze(0), device)


def normalize(
    images: Tensor, mean: tuple[float, ...], std: tuple[float, ...], out: Tensor | None = None
) -> Tensor:
    """Subtract each channel's mean and divide by its deviation; as torchvision's.

    Args:
        images: Shape ``(N, C, H, W)``; overwritten if there is no other place for the result.
        mean: Mean of each channel.
        std: Standard deviation of each channel.
        out: Where to write the result.

    Returns:
        Images of the same shape.
    """
    shift, factor = _standardisation(mean, std, images.dtype, images.device)
    return torch.add(images.mul_(factor), shift, out=images if out is None else out)


@lru_cache(maxsize=16)
def _standardisation(
    mean: tuple[float, ...], std: tuple[float, ...], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """What is added to and multiplied with each channel, ``(1, C, 1, 1)``."""
    if not all(s > 0 for s in std):
        raise ValueError(
            f"Expected the images' source to have a positive `std` for each channel, but got {std}."
        )
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], dtype=dtype)
    factor = torch.tensor([1 / s for s in std], dtype=dtype)
    return upload(shift.view(1, -1, 1, 1), device), upload(factor.view(1, -1, 1, 1), device)
