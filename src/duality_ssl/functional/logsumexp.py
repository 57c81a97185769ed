"""Log-sum-exps of similarities: of samples in one view or two, of keys, and of dimensions."""

from typing import Literal

import torch
from torch import Tensor

from duality_ssl.distributed import SINGLE, Group
from duality_ssl.functional._kernels import logsumexp as kernels
from duality_ssl.functional._kernels.dispatch import accelerated
from duality_ssl.functional._kernels.logsumexp import keys_memory as keys_memory
from duality_ssl.functional._kernels.logsumexp import logsumexp_memory as logsumexp_memory
from duality_ssl.functional.normalization import centered
from duality_ssl.functional.precision import full_precision

Similarity = Literal["cosine", "squared", "absolute"]


@full_precision
@accelerated(kernels.logsumexp_of_others, kernels.logsumexp_of_others_gradient)
def logsumexp_of_others(
    x: Tensor,
    temperature: float = 1.0,
    similarity: Similarity = "cosine",
    views: int = 1,
    group: Group = SINGLE,
    labels: Tensor | None = None,
) -> Tensor:
    r"""Log-sum-exp of each vector with the others, :math:`\log\sum_{j \ne i} e^{s(x_i, x_j)/\tau}`.

    A sum over the others, not a mean, of shape ``(K,)``. Large matrices are computed in tiles:
    from 4,096 or 5,792 vectors on memory grows with K, not with its square.

    Args:
        x: Vectors ``(K, M)``, all of them on every process; two views of a sample are neighbours.
        temperature: :math:`\tau`.
        similarity: From a product :math:`p = x_i \cdot x_j` to s: ``cosine`` :math:`p` (of unit
            vectors), ``squared`` :math:`p^2`, ``absolute`` :math:`|p|`.
        views: Vectors of each sample, which are not among its others.
        group: Processes that share the work.
        labels: Classes ``(K,)`` of the vectors, whose others are then those of another class; minus
            infinity where there is none.

    Example:
        >>> logsumexp_of_others(torch.eye(3))  # two others with a product of 0: log 2
        tensor([0.6931, 0.6931, 0.6931])
    """
    logits = kernels.SIMILARITIES[similarity].value(x @ x.T) / temperature
    if labels is None:
        labels = torch.arange(len(x), device=x.device) // views
    return logits.masked_fill(labels[:, None] == labels, -torch.inf).logsumexp(dim=1)


@full_precision
@accelerated(kernels.logsumexp_of_keys, kernels.logsumexp_of_keys_gradient)
def logsumexp_of_keys(queries: Tensor, keys: Tensor, temperature: float = 1.0) -> Tensor:
    r"""Log-sum-exp of each query with all keys, :math:`\log\sum_j e^{q_i \cdot k_j/\tau}`.

    A sum over the keys, not a mean, of shape ``(n,)``. Large matrices are computed in tiles, as in
    :func:`logsumexp_of_others`.

    Args:
        queries: Vectors ``(n, M)``, this process's.
        keys: Vectors ``(K, M)``, those of all processes; they get no gradient.
        temperature: :math:`\tau`.

    Example:
        >>> logsumexp_of_keys(torch.zeros(1, 3), torch.eye(3))  # three keys with a product of 0
        tensor([1.0986])
    """
    return (queries @ keys.detach().T / temperature).logsumexp(dim=1)


@full_precision
def contrast_logits(
    z1: Tensor,
    z2: Tensor,
    temperature: float = 1.0,
    similarity: Similarity = "cosine",
    group: Group = SINGLE,
    labels: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Logit of each positive pair, and the log-sum-exp of each sample's negatives in both views.

    The views are normalised embeddings ``(n, D)``. A logit is a similarity over the temperature
    :math:`\tau`; see :func:`logsumexp_of_others`.

    Returns:
        Logits of this process's pairs, shape ``(n,)``, and the log-sum-exp over the ``2 N - 2``
        others in both views, without the sample itself and its partner, shape ``(n, 2)``. With
        ``labels`` of this process's samples, ``(n,)``, it is over those of another class.

    Example:
        >>> contrast_logits(torch.eye(2), torch.eye(2))  # two negatives with a cosine of 0
        (tensor([1., 1.]), tensor([[0.6931, 0.6931],
                [0.6931, 0.6931]]))
    """
    positives = kernels.SIMILARITIES[similarity].value((z1 * z2).sum(dim=1)) / temperature
    both = group.gather(torch.stack([z1, z2], dim=1))  # (N, 2, D)
    classes = None if labels is None else group.all_gather(labels).repeat_interleave(2)
    lse = logsumexp_of_others(both.flatten(0, 1), temperature, similarity, 2, group, classes)
    return positives, lse.view(-1, 2)[group.own(len(z1))]


@full_precision
def covariance_logsumexp(z: Tensor, temperature: float, group: Group = SINGLE) -> Tensor:
    r"""VICReg-exp's term of one view, :math:`\frac1D\sum_i\log\sum_{j \ne i} e^{C_{ij}/\tau}`.

    A scalar from ``z`` of shape ``(n, D)``, a mean over dimensions (equation 12); the covariance C
    of the centred embeddings is over ``N - 1``. It is computed in tiles, with ``N < D`` too.

    Example:
        >>> covariance_logsumexp(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), temperature=1.0)
        tensor(2.)
    """
    vectors = group.gather(centered(z, group))
    return logsumexp_of_others(vectors.T, (len(vectors) - 1) * temperature, group=group).mean()


@full_precision
def sample_logsumexp(z: Tensor, temperature: float, group: Group = SINGLE) -> Tensor:
    r"""VICReg-ctr's term, :math:`\frac1N\sum_i\log\sum_{j \ne i} e^{z_i \cdot z_j/((D - 1)\tau)}`.

    A scalar from ``z`` of shape ``(n, D)``, ``D >= 2``, a mean over samples (equation 13 and
    table 1). Not centred here: VICReg-ctr centres the dimensions before.

    Example:
        >>> sample_logsumexp(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), temperature=1.0)
        tensor(11.)
    """
    vectors = group.gather(z)
    return logsumexp_of_others(vectors, (z.shape[1] - 1) * temperature, group=group).mean()
