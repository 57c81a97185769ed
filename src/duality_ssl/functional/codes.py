"""Random codes, and how evenly a batch is spread over them (CPLearn)."""

import math

import torch
from torch import Tensor

from duality_ssl.distributed import SINGLE, Group
from duality_ssl.functional.precision import full_precision


def random_codes(dimensions: int, num_codes: int, seed: int) -> Tensor:
    """Draw codes of -1 and 1, the same for a seed on every machine: int8 ``(dimensions, codes)``.

    Example:
        >>> random_codes(2, 3, seed=0)
        tensor([[-1,  1,  1],
                [-1,  1,  1]], dtype=torch.int8)
    """
    generator = torch.Generator().manual_seed(seed)
    bits = torch.randint(2, (dimensions, num_codes), generator=generator, dtype=torch.int8)
    return bits.mul_(2).sub_(1)


def code_temperature(dimensions: int, num_codes: int, n: int, epsilon: float = 1e-8) -> float:
    r"""Temperature at which a row that equals a code is assigned to it, for batches of ``n`` rows.

    .. math:: T = \frac{f}{\sqrt n \, \log((1 - \epsilon (c - 1)) / \epsilon)}

    with f dimensions and c codes, as in the authors' code. Logits are over T, so they grow with
    the square root of n: a temperature belongs to a batch size.

    Reference: Sansone et al., ICML 2025, https://arxiv.org/abs/2410.04959

    Example:
        >>> round(code_temperature(2048, 16384, n=64), 2)
        13.9
    """
    return dimensions / (math.sqrt(n) * math.log((1 - epsilon * (num_codes - 1)) / epsilon))


@full_precision
def divergence_from_uniform(p: Tensor, group: Group = SINGLE) -> Tensor:
    r"""Divergence of the mean assignment from the uniform one, :math:`\mathrm{KL}(m \| 1/c)`.

    .. math:: \log c + \sum_j m_j \log m_j, \qquad m = \frac1N \sum_i p_i

    Between 0, every code as often as the others, and :math:`\log c`, one code alone. Value and
    gradient are finite where a mean is so small that it is rounded to zero.

    Args:
        p: Assignments ``(n, c)`` of this process's samples, rows that sum to 1.
        group: Processes that share the samples; the mean is that of all.

    Example:
        >>> divergence_from_uniform(torch.eye(4)), divergence_from_uniform(torch.eye(4)[:2])
        (tensor(0.), tensor(0.6931))
    """
    m = group.sum(p.mean(dim=0)) / group.world_size
    # 0 log 0 is 0: the logarithm must be finite, since its gradient is multiplied by 0, too
    return math.log(p.shape[1]) + (m * m.clamp_min(torch.finfo(m.dtype).tiny).log()).sum()
