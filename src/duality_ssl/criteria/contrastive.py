"""Sample-contrastive criteria: SimCLR, DCL, MoCo v3 and spectral contrastive."""

from typing import Literal, get_args

import torch
from torch import Tensor

from duality_ssl.criteria.base import Criterion, check_positive
from duality_ssl.distributed import SINGLE, Group
from duality_ssl.functional import (
    contrast_logits,
    cross_gram,
    logsumexp_of_keys,
    normalize_centered_rows,
    normalize_rows,
    project_to_ball,
    standardize_columns,
)
from duality_ssl.functional.logsumexp import Similarity, keys_memory, logsumexp_memory

Normalization = Literal["embeddings", "centered", "standardized"]


class SimCLR(Criterion):
    r"""NT-Xent: each of the 2N samples must find its partner among all the others.

    .. math:: L = \frac{1}{2N} \sum_i \Bigl(-\frac{s_i^+}{\tau}
        + \log\bigl(e^{s_i^+/\tau} + \sum_{j \in \mathrm{neg}(i)} e^{s_{ij}/\tau}\bigr)\Bigr)

    The mean is over the 2N samples of both views; the negatives are the ``2 N - 2`` other samples
    in both views. Statistics of ``centered`` and ``standardized`` are those of each view.

    Terms: ``invariance``, the mean of :math:`-s^+/\tau`, and ``contrast``, the mean log-sum-exp;
    the loss is their sum.

    Args:
        temperature: :math:`\tau`, positive.
        similarity: ``cosine``, ``squared`` (SimCLR-sq, :math:`\cos^2`) or ``absolute``
            (SimCLR-abs), for positives and negatives alike.
        normalization: ``embeddings`` gives unit rows; ``centered`` centres each dimension over the
            batch before (the paper's A); ``standardized`` centres and gives each dimension the norm
            :math:`\sqrt{N/D}` instead of normalising rows (B), the similarity then being a dot
            product of rows that have unit norm on average only.

    Reference: Chen et al., ICML 2020, eq. 1, https://arxiv.org/abs/2002.05709; -sq and
    -abs: Garrido et al., ICLR 2023, proposition 3.2, https://arxiv.org/abs/2206.02574

    Example:
        >>> square = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        >>> SimCLR(temperature=1)(square, square)["invariance"].round(decimals=3)
        tensor(-1.)
    """

    family = "sample"
    side = "N x N"

    def __init__(
        self,
        temperature: float = 0.15,
        similarity: Similarity = "cosine",
        normalization: Normalization = "embeddings",
    ) -> None:
        super().__init__()
        check_positive(temperature=temperature)
        _check_choice("similarity", similarity, get_args(Similarity))
        _check_choice("normalization", normalization, get_args(Normalization))
        self.temperature = temperature
        self.similarity: Similarity = similarity
        self.normalization = normalization

    def terms(self, z1: Tensor, z2: Tensor, group: Group = SINGLE) -> dict[str, Tensor]:
        positives, negatives = self.logits(z1, z2, group)
        invariance = -group.mean(positives)
        contrast = group.mean(torch.logaddexp(negatives, positives[:, None]))
        return {"loss": invariance + contrast, "invariance": invariance, "contrast": contrast}

    def logits(
        self, z1: Tensor, z2: Tensor, group: Group = SINGLE, labels: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Compute :func:`~duality_ssl.functional.contrast_logits` of the normalised views."""
        h1, h2 = self._normalized(z1, group), self._normalized(z2, group)
        return contrast_logits(h1, h2, self.temperature, self.similarity, group, labels)

    def _normalized(self, z: Tensor, group: Group) -> Tensor:
        if self.normalization == "embeddings":
            return normalize_rows(z)
        if self.normalization == "centered":
            return normalize_centered_rows(z, group=group)
        n, d = group.world_size * len(z), z.shape[1]
        return standardize_columns(z, (n / d) ** 0.5, group)

    def memory(self, n: int, d: int) -> int:
        return 5 * 2 * n * d + logsumexp_memory(2 * n)


class DCL(SimCLR):
    r"""Decoupled contrastive learning: SimCLR with the positive left out of the log-sum.

    .. math:: L = \frac{1}{2N} \sum_i \Bigl(-\frac{s_i^+}{\tau}
        + \log\sum_{j \in \mathrm{neg}(i)} e^{s_{ij}/\tau}\Bigr)

    Mean, negatives and terms are :class:`SimCLR`'s.

    Args:
        temperature: :math:`\tau`, positive.
        similarity: ``cosine``, ``squared`` (DCL-sq, :math:`\cos^2`) or ``absolute`` (DCL-abs), for
            positives and negatives alike.
        normalization: ``embeddings``, ``centered`` or ``standardized``; see :class:`SimCLR`.

    Reference: Yeh et al., ECCV 2022, section 3, https://arxiv.org/abs/2110.06848; -sq and
    -abs: Garrido et al., ICLR 2023, proposition 3.2, https://arxiv.org/abs/2206.02574

    Example:
        >>> square = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        >>> DCL(temperature=1)(square, square)["contrast"]  # log(4 + 2 / e): cosines 0 and -1
        tensor(1.5551)
    """

    def __init__(
        self,
        temperature: float = 0.1,
        similarity: Similarity = "cosine",
        normalization: Normalization = "embeddings",
    ) -> None:
        super().__init__(temperature, similarity, normalization)

    def terms(self, z1: Tensor, z2: Tensor, group: Group = SINGLE) -> dict[str, Tensor]:
        return self._decoupled(*self.logits(z1, z2, group), group)

    def _decoupled(self, positives: Tensor, negatives: Tensor, group: Group) -> dict[str, Tensor]:
        invariance, contrast = -group.mean(positives), group.mean(negatives)
        return {"loss": invariance + contrast, "invariance": invariance, "contrast": contrast}


class MoCoV3(Criterion):
    r"""InfoNCE against targets: each query must find its key among those of the other view.

    .. math:: L = 2\tau \bigl(\mathrm{CE}(z_1, t_2) + \mathrm{CE}(z_2, t_1)\bigr), \qquad
        \mathrm{CE}(q, k) = \frac1N \sum_i \Bigl(-\frac{q_i \cdot k_i}{\tau}
        + \log\sum_j e^{q_i \cdot k_j/\tau}\Bigr)

    on rows of unit norm. The queries ``z1, z2`` are the predictor's outputs, the keys ``targets``
    the teacher's embeddings, without gradient. A query meets all N keys of the other view, its own
    among them, and none of its view; there is no queue.

    Terms: ``invariance`` and ``contrast``, the sums over both directions of the two summands with
    the factor :math:`2\tau`; the loss is their sum.

    Args:
        temperature: :math:`\tau`, positive.

    Reference: Chen et al., ICCV 2021, algorithm 1, https://arxiv.org/abs/2104.02057; the authors'
    code has the factor :math:`2\tau`

    Example:
        >>> square = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        >>> MoCoV3()(square, square, targets=(square, square))["invariance"].round(decimals=3)
        tensor(-4.)
    """

    family = "sample"
    side = "N x N"

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        check_positive(temperature=temperature)
        self.temperature = temperature

    def terms(
        self, z1: Tensor, z2: Tensor, targets: tuple[Tensor, Tensor], group: Group = SINGLE
    ) -> dict[str, Tensor]:
        t1, t2 = targets
        positives1, contrast1 = self._logits(z1, t2, group)
        positives2, contrast2 = self._logits(z2, t1, group)
        scale = 2 * self.temperature
        invariance = -scale * group.mean(positives1 + positives2)
        contrast = scale * group.mean(contrast1 + contrast2)
        return {"loss": invariance + contrast, "invariance": invariance, "contrast": contrast}

    def _logits(self, z: Tensor, target: Tensor, group: Group) -> tuple[Tensor, Tensor]:
        queries, keys = normalize_rows(z), normalize_rows(target.detach())
        positives = (queries * keys).sum(dim=1) / self.temperature
        return positives, logsumexp_of_keys(queries, group.all_gather(keys), self.temperature)

    def memory(self, n: int, d: int) -> int:
        return 6 * 2 * n * d + keys_memory(n, n, views=2)


class SpectralContrastive(Criterion):
    r"""Spectral contrastive loss, on rows projected into a ball.

    .. math:: L = \frac{1}{\mu}\Bigl(-\frac{2}{N}\sum_i z_{1,i} \cdot z_{2,i}
        + \frac{1}{N(N-1)}\sum_{i \ne j} (z_{1,i} \cdot z_{2,j})^2\Bigr)

    Rows longer than :math:`\sqrt\mu` are shortened to it, shorter ones are left. The negatives are
    those across the views. With ``N > D`` the sum comes from two ``D x D`` matrices.

    Terms: ``invariance`` and ``contrast``, the two summands with their factors and :math:`1/\mu`;
    the loss is their sum.

    Args:
        mu: :math:`\mu`, positive: the *squared* radius of the ball.

    Reference: HaoChen et al., NeurIPS 2021, section 3.2 (the ball: its appendix on experiments),
    https://arxiv.org/abs/2106.04156

    Example:
        >>> square = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        >>> SpectralContrastive()(square, square)["loss"]  # -2 + 1/3: one of three is opposite
        tensor(-1.6667)
    """

    family = "sample"
    side = "smaller"

    def __init__(self, mu: float = 1.0) -> None:
        super().__init__()
        check_positive(mu=mu)
        self.mu = mu

    def terms(self, z1: Tensor, z2: Tensor, group: Group = SINGLE) -> dict[str, Tensor]:
        a, b = (project_to_ball(z, self.mu**0.5) for z in (z1, z2))
        products, squares = cross_gram(a, b, group)
        n = group.world_size * len(products)
        invariance = -2 * group.mean(products) / self.mu
        contrast = squares / (n * (n - 1) * self.mu)
        return {"loss": invariance + contrast, "invariance": invariance, "contrast": contrast}


def _check_choice(name: str, value: str, valid: tuple[str, ...]) -> None:
    if value not in valid:
        raise ValueError(f"Expected `{name}` to be one of {[*valid]}, but got {value!r}.")
