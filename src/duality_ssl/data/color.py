"""Batched operations on colours, with the conventions of `duality_ssl.data.transforms`."""

import torch
from torch import Tensor

from duality_ssl.data.operations import Operation, pick, upload

GRAY_WEIGHTS = (0.2989, 0.587, 0.114)  # ITU-R 601-2 luma, as torchvision has them
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)  # the names of colour operations in `order`


def luma(images: Tensor) -> Tensor:
    """Grey value of RGB images, shape ``(N, 1, H, W)``; of grey images a copy."""
    if images.shape[1] == 1:
        return images.clone()
    red, green, blue = images.split(1, dim=1)
    r, g, b = GRAY_WEIGHTS
    return red.mul(r).add_(green, alpha=g).add_(blue, alpha=b)


class Hue(Operation):
    """Turn each drawn image's hue; agrees with ``adjust_hue``, grey images stay as they are.

    Hue is a position on the hexagon of largest and smallest channel, ``v`` and ``m``; in units of
    the chroma ``c = v - m``, from red over yellow at 1 and green at 2 to cyan at 3, it is

        |h| c = v + G + B - R - 2 m, with the sign of G - B,

    and a channel whose own colour is ``a`` units away from the hue has the value
    ``v + c - a c`` within ``[m, v]``. So nothing is divided, and no pixel is a case of its own.

    Args:
        drawn: Which samples are turned, shape ``(N,)``.
        shift: Shape ``(N,)``, in turns, in [-0.5, 0.5].
        device: Where the images are.
    """

    def __init__(self, drawn: Tensor, shift: Tensor, device: torch.device) -> None:
        super().__init__(drawn, device)
        # Counted from the colour opposite to a channel's own, which is then at 3 and at -3.
        ahead = torch.tensor((3.0, 1.0, -1.0)) + 6 * shift.view(-1, 1)
        ahead -= 6 * torch.floor((ahead + 3) / 6)
        self.ahead = upload(ahead.view(-1, 3, 1, 1), device)

    def change(self, images: Tensor, samples: list[int]) -> Tensor:
        """Turn all of them."""
        if images.shape[1] == 1:
            return images
        red, green, blue = images.split(1, dim=1)
        value = torch.maximum(torch.maximum(red, green), blue)
        least = torch.minimum(torch.minimum(red, green), blue)
        chroma = value - least
        hue = (green + blue).sub_(red).add_(value).sub_(least, alpha=2).copysign_(green - blue)
        away = torch.addcmul(hue, chroma, pick(self.ahead, samples))
        away.abs_().sub_(chroma, alpha=3).abs_()
        torch.sub(chroma.add_(value), away, out=away)
        return torch.clamp(away, least, value, out=images)


class ColorJitter:
    """Jitter brightness, contrast, saturation and hue, each sample in its own order.

    Brightness ``b x``, contrast ``c x + (1 - c) mean(grey(x))`` and saturation ``s x + (1 - s)
    grey(x)``, each clamped to [0, 1], are one form ``a x + p grey(x) + q mean(grey(x))``: three
    such steps over the whole batch, with coefficients a sample, do every order of them. Hue is
    turned between two steps, for the samples whose order has it there. Agrees with the four
    ``adjust_*`` called one after the other; on grey images saturation and hue are identities, as
    there.

    Args:
        brightness: Factors, shape ``(N,)``, 1 is the identity.
        contrast: Factors, shape ``(N,)``, 1 is the identity.
        saturation: Factors, shape ``(N,)``, 1 is the identity.
        hue: Shifts in turns, shape ``(N,)``, 0 is the identity.
        order: Permutations of (0 brightness, 1 contrast, 2 saturation, 3 hue), shape ``(N, 4)``.
        device: Where the images are.
    """

    def __init__(
        self,
        brightness: Tensor,
        contrast: Tensor,
        saturation: Tensor,
        hue: Tensor,
        order: Tensor,
        device: torch.device,
    ) -> None:
        factors = torch.stack((brightness, contrast, saturation), dim=1)
        steps = order[order != HUE].view(-1, 3)
        a = factors.gather(1, steps)
        p, q = (1 - a) * (steps == SATURATION), (1 - a) * (steps == CONTRAST)
        # Which samples a step changes, which with their grey values, which with their mean.
        self.changes, self.grays, self.means = (x.T.tolist() for x in (a != 1, p != 0, q != 0))
        coefficients = torch.stack((a, p, q)).permute(2, 0, 1).reshape(3, 3, -1, 1, 1, 1)
        self.coefficients = upload(coefficients, device)  # by step, by a, p, q
        self.hues = [Hue((hue != 0) & (order[:, step] == HUE), hue, device) for step in range(4)]

    def __call__(self, images: Tensor, first: int = 0) -> Tensor:
        """Jitter ``images``, sample ``first`` of the batch and those after it, in place."""
        rows = slice(first, first + len(images))
        self.hues[0](images, first)
        for step in range(3):
            if any(self.changes[step][rows]):
                a, p, q = self.coefficients[step][:, rows].unbind()
                offset: Tensor | int = 0
                if any(self.means[step][rows]):
                    offset = luma(images.mean(dim=(2, 3), keepdim=True)).mul_(q)
                if any(self.grays[step][rows]):
                    offset = luma(images).mul_(p).add_(offset)
                images.mul_(a).add_(offset).clamp_(0, 1)
            self.hues[step + 1](images, first)
        return images


class Grayscale(Operation):
    """Replace the drawn images by their grey values.

    Agrees with ``rgb_to_grayscale(..., num_output_channels=3)``; grey images stay as they are.
    """

    def change(self, images: Tensor, samples: list[int]) -> Tensor:
        """Take the colours of all of them."""
        return images if images.shape[1] == 1 else luma(images).expand_as(images)


class Solarize(Operation):
    """Invert the values from one half on, of the drawn images.

    Agrees with ``solarize``; the threshold 0.5 is BYOL's (torchvision and PIL say 128 of 255, which
    between 8-bit values is the same). What is at least one half is at least its inverse.
    """

    def change(self, images: Tensor, samples: list[int]) -> Tensor:
        """Invert the bright values of all of them."""
        return torch.minimum(images, 1 - images)
