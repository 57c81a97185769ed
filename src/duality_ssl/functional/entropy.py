"""Entropy of the spectrum of the embeddings, without its eigenvalues."""

import torch
from torch import Tensor

from duality_ssl.distributed import SINGLE, Group
from duality_ssl.functional.gram import dimension_gram, sample_gram
from duality_ssl.functional.precision import full_precision


@full_precision
def matrix_entropy(z: Tensor, group: Group = SINGLE) -> Tensor:
    r"""Matrix-based Renyi entropy of order 2, :math:`-2 \log(\|z^\top z\|_F / \|z\|_F^2)`, in nats.

    It is that of the eigenvalues of :math:`z^\top z`, scaled to the sum 1: 0 for one of them,
    :math:`\log r` for r equal ones. :math:`\|z^\top z\|_F = \|z z^\top\|_F` is computed on the
    smaller side.

    Args:
        z: Embeddings ``(n, D)``, neither centred nor scaled here; FroSSL gives them unit columns.
        group: Processes that share the products.

    Returns:
        Scalar in ``[0, log min(N, D)]``; 0, with zero gradient, if all entries are 0.

    Reference: Skean et al., *FroSSL*, ECCV 2024, section 3, https://arxiv.org/abs/2310.02903;
    Giraldo et al., 2014, https://arxiv.org/abs/1211.2459

    Example:
        >>> matrix_entropy(torch.eye(3))  # log 3
        tensor(1.0986)
    """
    if group.world_size * len(z) < z.shape[1]:
        squares = group.sum(sample_gram(z, group).square().sum())
    else:
        squares = dimension_gram(z, group).square().sum()
    trace = group.sum(z.square().sum())
    spread = trace > 0
    return 2 * torch.where(spread, trace, 1.0).log() - torch.where(spread, squares, 1.0).log()
