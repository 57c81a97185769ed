"""Contrastive criteria that take labels: NSCL and SupCon."""

import torch
from torch import Tensor

from duality_ssl.criteria.base import Criterion, check_positive
from duality_ssl.criteria.contrastive import DCL
from duality_ssl.distributed import SINGLE, Group
from duality_ssl.functional import class_logits, normalize_rows
from duality_ssl.functional.logsumexp import logsumexp_memory


class NSCL(DCL):
    r"""Negatives-only supervised contrastive learning: DCL with negatives of other classes only.

    .. math:: L = \frac{1}{2N} \sum_i \Bigl(-\frac{s_i^+}{\tau}
        + \log\sum_{j:\, y_j \ne y_i} e^{s_{ij}/\tau}\Bigr)

    Positives are the partners, as without labels; the negatives of a sample are the samples of
    another class in both views. With a class for each sample it is :class:`DCL`; see
    :func:`~duality_ssl.functional.supervision_gap_bound` for how far DCL is from it at most. Mean,
    terms and tiles are DCL's.

    Args:
        temperature: :math:`\tau`, positive.
        similarity: ``cosine``, ``squared`` or ``absolute``; see :class:`DCL`.
        normalization: ``embeddings``, ``centered`` or ``standardized``; see :class:`SimCLR`.

    Raises:
        ValueError: If all samples of the batch are of one class, or one has no label (-1). Under
            `torch.compile` the labels are not looked at, and the loss of one class is not finite.

    Reference: Luthra et al., NeurIPS 2025, https://arxiv.org/abs/2506.04411, as in ICLR 2026,
    https://arxiv.org/abs/2510.08852 (the positive is not among the negatives, unlike in the code)

    Example:
        >>> square = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        >>> labels = torch.tensor([0, 1, 1, 0])
        >>> NSCL(temperature=1)(square, square, labels=labels)["contrast"]  # log 4: cosines of 0
        tensor(1.3863)
    """

    def terms(  # type: ignore[override]
        self, z1: Tensor, z2: Tensor, labels: Tensor, group: Group = SINGLE
    ) -> dict[str, Tensor]:
        _check_labels(labels, len(z1), "NSCL", group, classes=2)
        positives, negatives = self.logits(z1, z2, group, labels)
        return self._decoupled(positives, negatives, group)


class SupCon(Criterion):
    r"""Supervised contrastive learning: each sample is pulled to all others of its class.

    .. math:: L = \frac{1}{2N} \sum_i \Bigl(-\frac{1}{|P(i)|} \sum_{p \in P(i)}
        \frac{u_i \cdot u_p}{\tau} + \log\sum_{a \ne i} e^{u_i \cdot u_a/\tau}\Bigr)

    on rows u of unit norm. The mean is over the 2N samples of both views. ``P(i)`` are the others
    of the class in both views: the partner alone where a class has one sample. With a class for
    each sample it is SimCLR. This is :math:`L_{out}`, the positives outside of the logarithm, as a
    mean and without the factor :math:`\tau/0.07` of the authors' code.

    Terms: ``invariance``, the mean over samples of minus the mean logit of their positives, and
    ``contrast``, the mean log-sum-exp; the loss is their sum.

    Args:
        temperature: :math:`\tau`, positive.

    Raises:
        ValueError: If a sample of the batch has no label (-1); not under `torch.compile`, where
            samples without label are a class.

    Reference: Khosla et al., NeurIPS 2020, eq. 2, https://arxiv.org/abs/2004.11362

    Example:
        >>> square = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        >>> labels = torch.tensor([0, 1, 1, 0])
        >>> SupCon(1.0)(square, square, labels=labels)["invariance"]  # cosines of 1, -1 and -1
        tensor(0.3333)
    """

    family = "sample"
    side = "N x N"

    def __init__(self, temperature: float = 0.1) -> None:
        super().__init__()
        check_positive(temperature=temperature)
        self.temperature = temperature

    def terms(
        self, z1: Tensor, z2: Tensor, labels: Tensor, group: Group = SINGLE
    ) -> dict[str, Tensor]:
        _check_labels(labels, len(z1), "SupCon", group)
        h1, h2 = normalize_rows(z1), normalize_rows(z2)
        positives, others = class_logits(h1, h2, labels, self.temperature, group)
        invariance, contrast = -group.mean(positives), group.mean(others)
        return {"loss": invariance + contrast, "invariance": invariance, "contrast": contrast}

    def memory(self, n: int, d: int) -> int:
        return 6 * 2 * n * d + logsumexp_memory(2 * n)


def _check_labels(labels: Tensor, n: int, name: str, group: Group, classes: int = 1) -> None:
    """Raise ``ValueError`` unless each sample has a label, of ``classes`` classes or more."""
    if labels.shape != (n,) or labels.is_floating_point():
        got = f"{tuple(labels.shape)}, {labels.dtype}"
        raise ValueError(f"Expected `labels` to be {n} integers, one a sample, but got {got}.")
    if torch.compiler.is_compiling():  # the numbers are not there yet
        return
    every = group.all_gather(labels)  # so that all processes raise, or none
    least, most = torch.stack(every.aminmax()).tolist()
    if least < 0:
        raise ValueError(
            f"Expected {name} to get a label of 0 or more for each sample, but got {least}: train "
            "on labelled images only, or choose a method without labels."
        )
    if classes > 1 and least == most:
        raise ValueError(
            f"Expected {name} to get samples of two classes or more, but all {len(every)} of the "
            f"batch are of class {least} and have no negatives: set a larger --data.batch_size."
        )
