r"""What labels change in a contrastive loss: positives of a class, negatives of other classes."""

import torch
from torch import Tensor

from duality_ssl.distributed import SINGLE, Group
from duality_ssl.functional.logsumexp import contrast_logits, logsumexp_of_others
from duality_ssl.functional.normalization import normalize_rows
from duality_ssl.functional.precision import full_precision, to_double


@full_precision
def class_sums(x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Sum the vectors ``(K, M)`` of each vector's class, and count them.

    Labels ``(K,)`` are any integers. The results are of shape ``(K, M)`` and ``(K,)``.

    Example:
        >>> class_sums(torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([7, 3, 7]))
        (tensor([[5.],
                [2.],
                [5.]]), tensor([2, 1, 2]))
    """
    ordered = labels.sort().values
    first = torch.searchsorted(ordered, labels)  # a number of the class, of a shape known before
    sizes = torch.searchsorted(ordered, labels, right=True) - first
    return torch.zeros_like(x).index_add(0, first, x)[first], sizes


@full_precision
def class_logits(
    z1: Tensor, z2: Tensor, labels: Tensor, temperature: float = 1.0, group: Group = SINGLE
) -> tuple[Tensor, Tensor]:
    r"""Mean logit of each sample's class, and the log-sum-exp of all others, in both views.

    The views are normalised embeddings ``(n, D)`` of samples of classes ``labels``, ``(n,)``; a
    logit is a product over the temperature. The mean over a class comes from its sum S, in O(ND)
    and without a matrix of pairs: :math:`\sum_p u_i \cdot u_p = u_i \cdot (S - u_i)`.

    Returns:
        Two tensors ``(n, 2)``: the mean over the other samples of the class in both views, its
        partner among them, and the log-sum-exp over the ``2 N - 1`` others in both views.

    Example:
        >>> class_logits(torch.eye(2), torch.eye(2), torch.tensor([5, 5]))  # products of 1, 0 and 0
        (tensor([[0.3333, 0.3333],
                [0.3333, 0.3333]]), tensor([[1.5514, 1.5514],
                [1.5514, 1.5514]]))
    """
    both = group.gather(torch.stack([z1, z2], dim=1))  # (N, 2, D)
    sums, sizes = class_sums(both.sum(dim=1), group.all_gather(labels))
    own = group.own(len(z1))
    others = sums[own, None] - both[own]
    positives = (both[own] * others).sum(dim=2) / (2 * sizes[own, None] - 1) / temperature
    lse = logsumexp_of_others(both.flatten(0, 1), temperature, group=group)
    return positives, lse.view(-1, 2)[own]


@full_precision
def supervision_gap(
    z1: Tensor, z2: Tensor, labels: Tensor, temperature: float = 1.0, group: Group = SINGLE
) -> Tensor:
    r"""How far DCL is above its supervised form, NSCL.

    .. math:: \mathrm{DCL} - \mathrm{NSCL} = \frac{1}{2N} \sum_i
        \Bigl(\log \sum_{j \in \mathrm{neg}(i)} e^{s_{ij}/\tau} - \log \sum_{j:\, y_j \ne y_i}
        e^{s_{ij}/\tau}\Bigr)

    over the samples of both views and their cosines s; between 0 and
    :func:`supervision_gap_bound`.

    Args:
        z1: Embeddings of the first view, shape ``(n, D)``; rows are normalised here.
        z2: Embeddings of the second view, shape ``(n, D)``.
        labels: Classes of the samples, shape ``(n,)``, at least two.
        temperature: :math:`\tau`.
        group: Processes that share the work.

    Reference: Luthra et al., NeurIPS 2025, theorem 1, https://arxiv.org/abs/2506.04411

    Example:
        >>> z = torch.eye(3)
        >>> supervision_gap(z, z, torch.tensor([0, 0, 1]))  # twice log 4/2, and the last has none
        tensor(0.4621)
    """
    h1, h2 = normalize_rows(z1), normalize_rows(z2)
    _, every = contrast_logits(h1, h2, temperature, group=group)
    _, other_class = contrast_logits(h1, h2, temperature, group=group, labels=labels)
    return group.mean(every - other_class)


def supervision_gap_bound(labels: Tensor, temperature: float = 1.0) -> Tensor:
    r"""Most that :func:`supervision_gap` can be, from the size of the largest class.

    .. math:: \mathrm{DCL} - \mathrm{NSCL}
        \le \log\Bigl(1 + \frac{n_{\max} e^{2/\tau}}{N - n_{\max}}\Bigr)

    A scalar in float64 from the labels of all N samples, ``(N,)``, of which :math:`n_{\max}` are in
    the largest class; infinite if all are. With C classes of one size the fraction is
    :math:`e^{2/\tau}/(C - 1)`.

    Reference: Luthra et al., NeurIPS 2025, theorem 1 (there at :math:`\tau = 1`),
    https://arxiv.org/abs/2506.04411

    Example:
        >>> supervision_gap_bound(torch.tensor([0, 0, 1])).round(decimals=3)  # log(1 + 2 e^2)
        tensor(2.7590, dtype=torch.float64)
    """
    _, sizes = class_sums(labels[:, None], labels)
    largest = to_double(sizes.max())
    odds = torch.log(largest / (len(labels) - largest)) + 2 / temperature
    return torch.logaddexp(odds, torch.zeros_like(odds))
