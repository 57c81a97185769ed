"""A linear classifier that standardizes its features."""

import torch
from torch import Tensor, nn

from duality_ssl.distributed import all_reduce_sum


class StandardizedLinear(nn.Module):
    r"""A linear classifier of features standardized by their running mean and variance.

    .. math:: \frac{1}{\sqrt{F}}\, W \frac{h - \mu}{\sigma} + b, \qquad
        \sigma \ge 10^{-6} |\mu| + 10^{-12}

    The result does not depend on the scale or shift of the features, and :math:`1/\sqrt F` makes
    one learning rate suit every width. The statistics are those of the whole batch over all
    processes; the weights start at zero, so that processes agree. A feature that is constant up to
    rounding counts as zero.

    Args:
        num_features: Number F of features.
        num_classes: Number C of classes.
        momentum: Weight of a batch in the running statistics; the first are averaged evenly.
    """

    def __init__(self, num_features: int, num_classes: int, momentum: float = 0.1) -> None:
        super().__init__()
        # without random numbers: a probe must not change the draws of the run
        self.linear = nn.utils.skip_init(nn.Linear, num_features, num_classes)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("var", torch.ones(num_features))
        self.mean: Tensor
        self.var: Tensor

    @torch.no_grad()
    def observe(self, h: Tensor, mask: Tensor, count: Tensor, step: int) -> None:
        """Update the statistics with features ``(N, F)`` of batch number ``step``.

        ``mask`` ``(N, 1)`` is 1 for samples that count, of which all processes have ``count``.
        """
        some, count = count > 0, count.clamp(min=1)
        mean = all_reduce_sum((h * mask).sum(0)) / count
        # two passes: E[h^2] - E[h]^2 cancels if the mean is large
        var = all_reduce_sum(((h - mean).square() * mask).sum(0)) / count
        weight = max(self.momentum, 1 / (step + 1)) * some
        self.mean.lerp_(mean, weight)
        self.var.lerp_(var, weight)

    def forward(self, h: Tensor) -> Tensor:
        """Compute logits ``(N, C)`` of features ``(N, F)``."""
        std = self.var.sqrt()
        # the rounding errors of a constant feature must not become variance 1
        constant = std <= 1e-6 * self.mean.abs() + 1e-12
        scale = std.masked_fill(constant, torch.inf).reciprocal() * len(std) ** -0.5
        return self.linear((h.float() - self.mean) * scale)
