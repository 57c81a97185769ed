"""Batched operations in space: crop and resize, flip, blur.

Images have shape ``(N, C, H, W)``. Parameters are CPU tensors with one row per sample. Given the
same parameters, every operation agrees with ``torchvision.transforms.v2.functional`` on float
images, unless its docstring says otherwise.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from duality_ssl.data.augment.color import change_drawn, upload
from duality_ssl.data.augment.view import Interpolation


class Resampling:
    """Crop each image of a batch to its box, resize it to a square, and flip it where asked.

    Agrees with ``resized_crop(..., antialias=True)``, followed by ``horizontal_flip``. Resizing is
    separable and linear: each row of the result is a weighted sum of two rows, or four if bicubic
    (more where a side shrinks), then the same with columns. A flip is an order of the columns and
    costs nothing.

    Output ``i`` of an interval is centred at ``(i + 1/2) * length / size``; its weights are a
    triangle of half-width ``max(length / size, 1)``, or Keys' cubic of twice that half-width, cut
    at the ends of the interval and normalised. The cubic has negative weights: its results are a
    little beyond the values of the image at sharp edges, and are not clamped here.

    Args:
        boxes: Shape ``(N, 4)``: top, left, height, width in pixels, inside the image.
        size: Side of the result, in pixels.
        flip: Whether to flip each image, shape ``(N,)``.
        device: Device of the images.
        interpolation: "bilinear" or "bicubic".
    """

    def __init__(
        self,
        boxes: Tensor,
        size: int,
        flip: Tensor | None,
        device: torch.device,
        interpolation: Interpolation = "bilinear",
    ) -> None:
        self.boxes = boxes
        radius, kernel = _KERNELS[interpolation]
        taps = math.ceil(2 * radius * max(1.0, int(boxes[:, 2:].max()) / size))
        start, length = upload(boxes.float().view(-1, 2, 2, 1, 1), device).unbind(dim=1)
        output = torch.arange(size, device=device).view(-1, 1).repeat(len(boxes), 2, 1, 1)
        if flip is not None:
            output[:, 1] += upload(flip, device).view(-1, 1, 1) * (size - 1 - 2 * output[:, 1])
        step = length / size
        unit = step.clamp(min=1)
        centre = (output + 0.5) * step - 0.5
        pixel = torch.ceil(centre - radius * unit) + torch.arange(taps, device=device)
        inside = pixel.clamp(min=0).minimum(length - 1)
        weight = kernel((pixel - centre).abs_(), unit) * (pixel == inside)
        # rows, then columns: shape (N, 2, size, taps)
        self.weight = weight / weight.sum(dim=3, keepdim=True)
        self.pixel = (inside + start).int()

    def __call__(self, images: Tensor, rows: slice = slice(None)) -> Tensor:
        """Resample images of any size and dtype, the samples ``rows`` of the batch, to floats."""
        boxes, pixel, weight = self.boxes[rows], self.pixel[rows], self.weight[rows]
        left, right = int(boxes[:, 1].min()), int((boxes[:, 1] + boxes[:, 3]).max())
        out = images[..., left:right].float()  # no other column has a share in the result
        out = _weigh_rows(out, pixel[:, 0], weight[:, 0]).transpose(2, 3)
        return _weigh_rows(out, pixel[:, 1] - left, weight[:, 1]).transpose(2, 3).contiguous()


def _triangle(distance: Tensor, unit: Tensor) -> Tensor:
    return (unit - distance).clamp_(min=0)


def _cubic(distance: Tensor, unit: Tensor) -> Tensor:
    """Cubic convolution of Keys (1981) with a = -1/2, as Pillow's and PyTorch's antialiased one."""
    x = (distance / unit).clamp_(max=2)
    return torch.where(x < 1, (1.5 * x - 2.5) * x**2 + 1, ((2.5 - 0.5 * x) * x - 4) * x + 2)


_KERNELS = {"bilinear": (1, _triangle), "bicubic": (2, _cubic)}  # half-width and weights


def _weigh_rows(images: Tensor, pixel: Tensor, weight: Tensor) -> Tensor:
    """Make each row of the result a weighted sum of some rows of the same plane.

    A sum over a bag of embeddings does that, with rows of pixels as embeddings: one pass, where
    gathering the rows of each weight would take two passes per weight.

    ``pixel``, ``(N or 1, size, K)``, says which rows; ``weight``: ``(N, size or 1, K)``.
    """
    n, channels, height, width = images.shape
    planes = torch.arange(0, n * channels * height, height, dtype=pixel.dtype, device=images.device)
    rows = planes.view(n, channels, 1, 1) + pixel.unsqueeze(1)
    weights = weight.unsqueeze(1).expand(rows.shape).reshape(-1, rows.shape[3])
    table = images.reshape(-1, width)
    out = F.embedding_bag(rows.view(weights.shape), table, mode="sum", per_sample_weights=weights)
    return out.view(n, channels, -1, width)


def horizontal_flip(images: Tensor, drawn: Tensor) -> Tensor:
    """Flip the drawn images left to right; they are overwritten."""
    return change_drawn(images, drawn, lambda x: x.flip(-1))


def blur_radius(largest_sigma: float, size: int) -> int:
    """Half-width of a blur's kernel in pixels: four of the largest sigma, less in tiny images."""
    return max(0, min(math.ceil(4 * largest_sigma), size - 1))


def gaussian_kernels(sigma: Tensor, radius: int) -> Tensor:
    """Kernels of `gaussian_blur`, shape ``(N, 1, 2 * radius + 1)``; undefined for a sigma of 0."""
    sigma = sigma.view(-1, 1, 1)
    offset = torch.arange(-radius, radius + 1)
    kernels = torch.exp(-0.5 * (offset / sigma) ** 2) * (offset.abs() <= torch.ceil(4 * sigma))
    return kernels / kernels.sum(dim=2, keepdim=True)


def gaussian_blur(images: Tensor, sigma: Tensor, kernels: Tensor) -> Tensor:
    """Blur each image with its own Gaussian; where ``sigma`` is 0 the image stays.

    Agrees with ``gaussian_blur`` with its reflected borders and a kernel of four sigma on each
    side, ``kernel_size=2 * min(radius, ceil(4 * sigma)) + 1``. SimCLR's kernel is a tenth of the
    image wide; ours depends on sigma alone, which is the same Gaussian at 224 pixels (the tail
    beyond is below 1e-4), not cut off in small images, and narrow where sigma is small.

    Args:
        images: Float tensor of shape ``(N, C, H, W)``; overwritten.
        sigma: Shape ``(N,)``, in pixels.
        kernels: `gaussian_kernels` of ``sigma``, of a radius less than the images' sides.
    """
    return change_drawn(images, sigma > 0, _blur, sigma, kernels)


def _blur(images: Tensor, sigma: Tensor, kernels: Tensor) -> Tensor:
    radius = kernels.shape[2] // 2
    widest = min(radius, int(torch.ceil(4 * sigma.max())))
    kernels = upload(kernels[..., radius - widest : radius + widest + 1], images.device)
    for _ in range(2):  # along the rows, then down the columns
        pixel = _reflected(images.shape[3], widest, images.device)
        images = _weigh_rows(images.transpose(2, 3), pixel, kernels)
    return images


@lru_cache(maxsize=64)
def _reflected(side: int, radius: int, device: torch.device) -> Tensor:
    """Pixels around each one of an interval, shape ``(1, side, K)``, reflected at its ends."""
    pixel = torch.arange(side).view(-1, 1) + torch.arange(-radius, radius + 1)
    pixel = (side - 1) - ((side - 1) - pixel.abs_()).abs_()
    return upload(pixel.int().unsqueeze(0), device)
