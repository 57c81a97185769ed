"""Batched image operations: one drawn parameter a sample, no Python loop over samples.

Images are float tensors of shape ``(N, C, H, W)`` with values in [0, 1], ``C`` 1 or 3. Every
operation agrees with ``torchvision.transforms.v2.functional`` on float images given the same
parameters, unless its docstring says otherwise. Parameters are CPU tensors (that is where they are
drawn): which rows an operation touches is decided there, so that a GPU never has to be waited for.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

GRAY_WEIGHTS = (0.2989, 0.587, 0.114)  # ITU-R 601-2 luma, as torchvision has them
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)  # the names of colour operations in `order`


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


def _resampling_matrix(start: Tensor, length: Tensor, source: int, target: int) -> Tensor:
    """Weights ``(N, target, source)`` of an antialiased bilinear resize of an interval.

    Output ``i`` is centred at ``(i + 1/2) * length / target``; its weights are a triangle of
    half-width ``max(length / target, 1)`` cut at the ends of the interval and normalised.
    """
    start, length = start.view(-1, 1, 1).float(), length.view(-1, 1, 1).float()
    step = length / target
    centre = (torch.arange(target, device=start.device).view(1, -1, 1) + 0.5) * step
    position = torch.arange(source, device=start.device).view(1, 1, -1) + 0.5 - start
    weights = (1 - (position - centre).abs_() / step.clamp(min=1)).clamp_(min=0)
    weights *= (position > 0) & (position < length)
    return weights / weights.sum(dim=2, keepdim=True)


def resized_crop(
    images: Tensor, boxes: Tensor, size: int, flip: Tensor | None = None, scale: float = 1.0
) -> Tensor:
    """Crop each image to its box, resize it to a square and mirror it where asked.

    Agrees with ``resized_crop(..., antialias=True)`` in bilinear mode, followed by
    ``horizontal_flip``. The resize is separable and linear, so that it is two batched matrix
    products with a weight matrix a sample; mirroring is the horizontal matrix upside down, and
    costs nothing. (With TF32 matrix products on a GPU, off unless asked for, the agreement is to
    1e-3.)

    Args:
        images: Shape ``(N, C, H, W)``, any dtype; ``uint8`` is not rescaled unless by ``scale``.
        boxes: Shape ``(N, 4)``: top, left, height, width in pixels, inside the image.
        size: Side of the output, in pixels.
        flip: Shape ``(N,)``, true where the result is mirrored.
        scale: Factor for all values: 1/255 turns ``uint8`` into [0, 1] on the way.

    Returns:
        Float tensor of shape ``(N, C, size, size)``.
    """
    n, channels, height, width = images.shape
    boxes = boxes.to(images.device, non_blocking=True)
    top, left, h, w = boxes.unbind(dim=1)
    vertical = _resampling_matrix(top, h, height, size)
    horizontal = _resampling_matrix(left, w, width, size) * scale
    if flip is not None:
        mirrored = flip.to(images.device, non_blocking=True).view(-1, 1, 1)
        horizontal = torch.where(mirrored, horizontal.flip(1), horizontal)
    rows = images.float().reshape(n, channels * height, width)
    rows = torch.bmm(rows, horizontal.transpose(1, 2)).view(n, channels, height, size)
    return torch.matmul(vertical.unsqueeze(1), rows)


def _rows(mask: Tensor, images: Tensor) -> Tensor:
    """Indices of true rows, on the images' device, found on the CPU without waiting for a GPU."""
    return mask.nonzero().squeeze(1).to(images.device, non_blocking=True)


def _column(values: Tensor, images: Tensor) -> Tensor:
    """One value a sample, on the images' device, that broadcasts over ``(N, C, H, W)``."""
    return values.to(images.device, images.dtype, non_blocking=True).view(-1, 1, 1, 1)


def horizontal_flip(images: Tensor, flip: Tensor) -> Tensor:
    """Mirror the images where ``flip`` (shape ``(N,)``) is true; as torchvision's of that name."""
    rows = _rows(flip, images)
    return images.index_copy(0, rows, images[rows].flip(-1))


def _luma(images: Tensor) -> Tensor:
    """Grey value of RGB images, shape ``(N, 1, H, W)``."""
    red, green, blue = images.split(1, dim=1)
    r, g, b = GRAY_WEIGHTS
    return red.mul(r).add_(green, alpha=g).add_(blue, alpha=b)


def adjust_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turn each image's hue; agrees with ``adjust_hue``, grey images stay as they are.

    With value ``v = max(R, G, B)``, chroma ``c = v - min(R, G, B)`` and hue ``h`` in sixths of a
    turn, HSV goes back to RGB by ``v - c * clamp(min(k, 4 - k), 0, 1)`` with ``k = (n + h) mod 6``
    and ``n = 5, 3, 1`` for red, green and
    blue: no table of cases, which a gather over pixels would be.

    Args:
        images: Shape ``(N, C, H, W)``.
        shift: Shape ``(N,)``, in turns, in [-0.5, 0.5].

    Returns:
        Images of the same shape.
    """
    if images.shape[1] == 1:
        return images
    red, green, blue = images.split(1, dim=1)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    tiny = torch.finfo(images.dtype).tiny
    scale = chroma.clamp(min=tiny).reciprocal_()  # grey pixels: times a difference of 0
    hue = torch.where(value == green, (blue - red).mul_(scale).add_(2), (red - green) * scale + 4)
    hue = torch.where(value == red, (green - blue).mul_(scale), hue)
    hue += 6 * _column(shift, images)
    out = torch.empty_like(images)
    for channel, offset in enumerate((5, 3, 1)):
        k = hue + offset
        k -= torch.floor(k / 6).mul_(6)
        k = torch.minimum(k, 4 - k).clamp_(0, 1)
        torch.addcmul(value, chroma, k, value=-1, out=out[:, channel : channel + 1])
    return out


def color_jitter(
    images: Tensor,
    brightness: Tensor,
    contrast: Tensor,
    saturation: Tensor,
    hue: Tensor,
    order: Tensor,
) -> Tensor:
    """Jitter brightness, contrast, saturation and hue, each sample in its own order.

    Brightness ``b x``, contrast ``c x + (1 - c) mean(grey(x))`` and saturation ``s x + (1 - s)
    grey(x)``, each clamped to [0, 1], are one form ``a x + p grey(x) + q mean(grey(x))``: three
    such steps over the whole batch, with coefficients a sample, do every order of them. Hue is
    turned between two steps, for the samples whose order has it there. Agrees with the four
    ``adjust_*`` called one after the other; on grey images saturation and hue are identities, as
    there.

    Args:
        images: Shape ``(N, C, H, W)``; may be overwritten.
        brightness: Factors, shape ``(N,)``, 1 is the identity.
        contrast: Factors, shape ``(N,)``, 1 is the identity.
        saturation: Factors, shape ``(N,)``, 1 is the identity.
        hue: Shifts in turns, shape ``(N,)``, 0 is the identity.
        order: Permutations of (0 brightness, 1 contrast, 2 saturation, 3 hue), shape ``(N, 4)``.

    Returns:
        Images of the same shape.
    """
    n, channels = images.shape[:2]
    colour = channels == 3
    factors = torch.stack((brightness, contrast, saturation if colour else torch.ones(n)), dim=1)
    steps = order[order != HUE].view(n, 3)
    factor = factors.gather(1, steps)
    p = torch.where(steps == SATURATION, 1 - factor, 0.0)
    q = torch.where(steps == CONTRAST, 1 - factor, 0.0)
    on_device = torch.stack((factor, p, q)).to(images.device, images.dtype, non_blocking=True)
    coefficients = on_device.view(3, n, 3, 1, 1).unbind(dim=2)  # per step: (3, N, 1, 1)

    turn_at = torch.where(hue != 0, (order == HUE).int().argmax(dim=1), -1) if colour else None
    for step in range(4):
        if turn_at is not None and bool((turn_at == step).any()):
            rows = _rows(turn_at == step, images)
            images = images.index_copy_(0, rows, adjust_hue(images[rows], hue[turn_at == step]))
        if step < 3:
            a, p, q = (x.unsqueeze(-1) for x in coefficients[step])
            gray = _luma(images) if colour else images
            mean = gray.mean(dim=(2, 3), keepdim=True)
            offset = torch.addcmul(q * mean, p, gray) if colour else q * mean
            images = torch.addcmul(offset, a, images).clamp_(0, 1)
    return images


def grayscale(images: Tensor, mask: Tensor) -> Tensor:
    """Replace the images where ``mask`` (shape ``(N,)``) is true by their grey values, in place.

    Agrees with ``rgb_to_grayscale(..., num_output_channels=3)``; grey images stay as they are.
    """
    if images.shape[1] == 1 or not bool(mask.any()):
        return images
    rows = _rows(mask, images)
    return images.index_copy_(0, rows, _luma(images[rows]).expand(-1, 3, -1, -1))


def blur_radius(largest_sigma: float, size: int) -> int:
    """Half-width of a blur's kernel, in pixels: four of the largest sigma, less in tiny images."""
    return max(0, min(math.ceil(4 * largest_sigma), size - 1))


def gaussian_blur(images: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Blur each image with its own Gaussian, in place; where ``sigma`` is 0 the image stays.

    Agrees with ``gaussian_blur(..., kernel_size=2 * radius + 1, sigma)`` with its reflected
    borders. SimCLR's kernel is a tenth of the image wide; ours has four sigma on each side whatever
    the size, which is the same Gaussian at 224 pixels (the tail beyond is below 1e-4) and not cut
    off in small images.

    Args:
        images: Shape ``(N, C, H, W)``, both sides longer than ``radius``.
        sigma: Shape ``(N,)``, in pixels.
        radius: Half-width of the kernel, in pixels.

    Returns:
        Images of the same shape.
    """
    if radius == 0 or not bool((sigma > 0).any()):
        return images
    rows = _rows(sigma > 0, images)
    chosen = images[rows]
    n, channels, height, width = chosen.shape
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float32)
    kernels = torch.softmax(-0.5 * (offsets / sigma[sigma > 0].unsqueeze(1)) ** 2, dim=1)
    kernels = kernels.to(images.device, images.dtype, non_blocking=True)
    # A kernel a sample is a grouped convolution of one image that has all samples as channels.
    kernels = kernels.repeat_interleave(channels, dim=0).view(n * channels, 1, -1, 1)
    planes = chosen.view(1, n * channels, height, width)
    planes = F.pad(planes, (radius, radius, radius, radius), mode="reflect")
    planes = F.conv2d(planes, kernels, groups=n * channels)
    planes = F.conv2d(planes, kernels.transpose(2, 3), groups=n * channels)
    return images.index_copy_(0, rows, planes.view_as(chosen))


def solarize(images: Tensor, mask: Tensor, threshold: float = 0.5) -> Tensor:
    """Invert the values from ``threshold`` on where ``mask`` (shape ``(N,)``) is true, in place.

    Agrees with ``solarize``; the threshold 0.5 is BYOL's (torchvision and PIL say 128 of 255, which
    between 8-bit values is the same).
    """
    if not bool(mask.any()):
        return images
    rows = _rows(mask, images)
    chosen = images[rows]
    return images.index_copy_(0, rows, torch.where(chosen >= threshold, 1 - chosen, chosen))


def normalize(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Subtract each channel's mean and divide by its deviation, in place; as torchvision's."""
    shape = (1, -1, 1, 1)
    centre = torch.tensor(mean, dtype=images.dtype).view(shape).to(images.device, non_blocking=True)
    spread = torch.tensor(std, dtype=images.dtype).view(shape).to(images.device, non_blocking=True)
    return images.sub_(centre).div_(spread)
