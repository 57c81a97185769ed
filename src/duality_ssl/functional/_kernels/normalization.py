"""Standardised columns by torch's batch norm, which passes over the embeddings less often."""

from collections.abc import Sequence

import torch
from torch import Tensor

from duality_ssl.distributed import Group
from duality_ssl.functional._kernels.covariance import mean_and_variance
from duality_ssl.functional.precision import rounding_noise


def standardize_columns(z: Tensor, length: float, group: Group) -> tuple[Tensor, Sequence[Tensor]]:
    mean, variance = mean_and_variance(z, group)
    constant = variance.sqrt() <= rounding_noise(mean)
    variance = torch.where(constant, 1, variance)
    scale = (~constant).to(z) * (length / len(z) ** 0.5)
    h = torch.batch_norm(z, scale, None, mean, variance, False, 0.0, _eps(z), False)
    return h, [mean, variance.rsqrt(), scale]


def standardize_columns_gradient(
    grad: Tensor, z: Tensor, saved: Sequence[Tensor], length: float, group: Group
) -> Tensor:
    mean, inverse, scale = saved
    statistics = (scale, None, None, mean, inverse, True, _eps(z))
    wanted = (True, False, False)
    result: Tensor
    result, *_ = torch.ops.aten.native_batch_norm_backward(grad, z, *statistics, wanted)
    return result


def takes(z: Tensor, length: float, group: Group) -> bool:
    """Whether one process on a CPU has all rows: batch norm's gradient is of these alone."""
    return z.device.type == "cpu" and group.world_size == 1


def _eps(z: Tensor) -> float:
    """Batch norm without its epsilon, which must not be zero."""
    return torch.finfo(z.dtype).tiny
