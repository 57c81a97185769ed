"""Assignments of samples to prototypes, each prototype as often as any other."""

import torch
from torch import Tensor

from duality_ssl.distributed import SINGLE, Group
from duality_ssl.functional.precision import full_precision


@full_precision
@torch.no_grad()
def sinkhorn(logits: Tensor, iterations: int = 3, group: Group = SINGLE) -> Tensor:
    r"""Balance soft assignments over the prototypes by the Sinkhorn-Knopp algorithm.

    In turn, the weights of each prototype over all samples, and those of each sample over all
    prototypes, are scaled to a sum of 1:

    .. math:: l_{ij} \leftarrow l_{ij} - \log\sum_k e^{l_{kj}}, \qquad
        l_{ij} \leftarrow l_{ij} - \log\sum_k e^{l_{ik}}

    In logarithms nothing overflows: with SwAV's :math:`\epsilon = 0.05`, ``exp(1 / 0.05)`` is
    infinite in float16. There is no gradient.

    Args:
        logits: Scores over :math:`\epsilon`, this process's rows ``(n, K)``; processes may have
            different numbers of rows.
        iterations: Times that both are scaled.
        group: Processes that share the samples.

    Returns:
        Assignments ``(n, K)``; each row sums to 1, and over all samples each prototype has about
        the same sum, the more iterations the closer.

    Reference: Caron et al., NeurIPS 2020, eq. 3-5, https://arxiv.org/abs/2006.09882

    Example:
        >>> sinkhorn(torch.tensor([[3.0, 0.0], [2.0, 0.0]])).round(decimals=2)
        tensor([[0.6200, 0.3800],
                [0.3800, 0.6200]])
    """
    for _ in range(iterations):
        of_prototypes = logits.logsumexp(dim=0, keepdim=True)
        logits = logits - group.all_gather(of_prototypes).logsumexp(dim=0)
        logits = logits - logits.logsumexp(dim=1, keepdim=True)
    return logits.exp()
