"""How far samples in one dimension are from a standard normal distribution."""

import torch
from torch import Tensor

from duality_ssl.distributed import SINGLE, Group
from duality_ssl.functional.precision import full_precision

_LAST, _STEPS = 3.0, 16


@full_precision
def epps_pulley(x: Tensor, group: Group = SINGLE) -> Tensor:
    r"""Epps-Pulley statistic of each column against N(0, 1), averaged over the columns.

    .. math:: N \int_{-3}^{3} \Bigl|\frac1N \sum_i e^{\mathrm{i} t x_i} - e^{-t^2/2}\Bigr|^2
        e^{-t^2/2} \, dt

    The squared distance of the characteristic functions, by the trapezoidal rule with 16 steps from
    0 to 3 (the integrand is even, and 0 at 0). Value and gradient are bounded for any ``x``; the
    gradient vanishes as the samples become equal.

    Args:
        x: Samples ``(n, K)``, K distributions.
        group: Processes that share the samples; each sends 32 K numbers.

    Returns:
        Scalar, 0 or more, of the order of 1 for N samples of N(0, 1), of N for others.

    Reference: Epps & Pulley, Biometrika 1983; Balestriero & LeCun, *LeJEPA*, 2025,
    https://arxiv.org/abs/2511.08544

    Example:
        >>> epps_pulley(torch.zeros(2, 1)) / 2  # the integral of (1 - g)^2 g, g = exp(-t^2 / 2)
        tensor(0.4020)
    """
    n = group.world_size * len(x)
    step = _LAST / _STEPS
    knots = [step * k for k in range(1, _STEPS + 1)]
    phases = (t * x for t in knots)
    waves = [sums for phase in phases for sums in (phase.cos().sum(dim=0), phase.sin().sum(dim=0))]
    cosine, sine = (group.sum(torch.stack(waves)) / n).unflatten(0, (_STEPS, 2)).unbind(dim=1)
    t = x.new_tensor(knots)[:, None]
    normal = torch.exp(-t.square() / 2)
    weights = torch.full_like(t, 2 * step)
    weights[-1] = step
    distances = (cosine - normal).square() + sine.square()
    return n * (weights * normal * distances).sum(dim=0).mean()


@full_precision
def quantile_distances(x: Tensor) -> Tensor:
    r"""Mean squared distance of the sorted samples of each column to the quantiles of N(0, 1).

    .. math:: \frac1N \sum_i \Bigl(x_{(i)} - \Phi^{-1}\bigl(\tfrac{i}{N + 1}\bigr)\Bigr)^2

    The squared Wasserstein-2 distance to these quantiles. The gradient does not vanish as the
    samples become equal, where the order of equal ones is arbitrary.

    Args:
        x: Samples ``(N, K)``, K distributions.

    Returns:
        Shape ``(K,)``.

    Reference: Wu et al., *VISReg*, 2026, https://arxiv.org/abs/2606.02572

    Example:
        >>> quantile_distances(torch.tensor([[2.0], [0.0], [-2.0]])).round(decimals=3)
        tensor([1.1710])
    """
    n = len(x)
    ranks = torch.arange(1, n + 1, dtype=x.dtype, device=x.device)
    quantiles = torch.special.ndtri(ranks / (n + 1))
    return (x.sort(dim=0).values - quantiles[:, None]).square().mean(dim=0)
