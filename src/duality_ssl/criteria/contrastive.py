"""Sample-contrastive criteria: SimCLR, DCL and spectral contrastive."""

from typing import get_args

import torch
from torch import Tensor

from duality_ssl.criteria.base import ShardedCriterion, check_choice, check_positive
from duality_ssl.distributed import ALONE, Processes
from duality_ssl.functional import contrast_logits, cross_gram_in_ball
from duality_ssl.functional.terms import Normalization, Similarity

# The power of 1 / temperature that, in the norm of the embeddings, divides the similarities by the
# temperature without a pass of their own.
_POWERS: dict[Similarity, float] = {"cosine": 0.5, "squared": 0.25, "absolute": 0.5}


class _PairContrast(ShardedCriterion):
    """What SimCLR and DCL share: the logits of each sample's positive and of its negatives."""

    def __init__(
        self, temperature: float, similarity: Similarity, normalization: Normalization
    ) -> None:
        super().__init__()
        check_positive(temperature=temperature)
        check_choice("similarity", similarity, _POWERS)
        check_choice("normalization", normalization, get_args(Normalization))
        self.temperature = temperature
        self.similarity = similarity
        self.normalization = normalization

    def logits(self, z1: Tensor, z2: Tensor, processes: Processes = ALONE) -> tuple[Tensor, Tensor]:
        """Compute the positives' logits and the negatives' log-sum-exp.

        Args:
            z1: Embeddings of the first view, shape ``(N, D)``.
            z2: Embeddings of the second view, shape ``(N, D)``.
            processes: Those who have the batch's other rows.

        Returns:
            Similarity over temperature of the N positive pairs, shape ``(N,)``, and the
            log-sum-exp over the ``2 N - 2`` negatives of both views' samples, shape ``(2, N)``.
        """
        length = self.temperature ** -_POWERS[self.similarity]
        return contrast_logits(z1, z2, length, self.similarity, self.normalization, processes)


class SimCLR(_PairContrast):
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

    Raises:
        ValueError: If the temperature is not positive, or a name is unknown.

    Reference: Chen et al., ICML 2020, eq. 1, https://arxiv.org/abs/2002.05709; -sq and
    -abs: Garrido et al., ICLR 2023, proposition 3.2, https://arxiv.org/abs/2206.02574
    """

    def __init__(
        self,
        temperature: float = 0.15,
        similarity: Similarity = "cosine",
        normalization: Normalization = "embeddings",
    ) -> None:
        super().__init__(temperature, similarity, normalization)

    def sharded_terms(self, z1: Tensor, z2: Tensor, processes: Processes) -> dict[str, Tensor]:
        """Compute the loss and its terms; see :meth:`Criterion.sharded_terms`."""
        positives, negatives = self.logits(z1, z2, processes)
        invariance = -positives.mean()
        contrast = torch.logaddexp(negatives, positives.expand_as(negatives)).mean()
        return {"loss": invariance + contrast, "invariance": invariance, "contrast": contrast}


class DCL(_PairContrast):
    r"""Decoupled contrastive learning: SimCLR with the positive left out of the log-sum.

    .. math:: L = \frac{1}{2N} \sum_i \Bigl(-\frac{s_i^+}{\tau}
        + \log\sum_{j \in \mathrm{neg}(i)} e^{s_{ij}/\tau}\Bigr)

    Mean, negatives and terms are :class:`SimCLR`'s.

    Args:
        temperature: :math:`\tau`, positive.
        similarity: ``cosine``, ``squared`` (DCL-sq, :math:`\cos^2`) or ``absolute`` (DCL-abs), for
            positives and negatives alike.
        normalization: ``embeddings``, ``centered`` or ``standardized``; see :class:`SimCLR`.

    Raises:
        ValueError: If the temperature is not positive, or a name is unknown.

    Reference: Yeh et al., ECCV 2022, section 3, https://arxiv.org/abs/2110.06848; -sq and
    -abs: Garrido et al., ICLR 2023, proposition 3.2, https://arxiv.org/abs/2206.02574
    """

    def __init__(
        self,
        temperature: float = 0.1,
        similarity: Similarity = "cosine",
        normalization: Normalization = "embeddings",
    ) -> None:
        super().__init__(temperature, similarity, normalization)

    def sharded_terms(self, z1: Tensor, z2: Tensor, processes: Processes) -> dict[str, Tensor]:
        """Compute the loss and its terms; see :meth:`Criterion.sharded_terms`."""
        positives, negatives = self.logits(z1, z2, processes)
        invariance, contrast = -positives.mean(), negatives.mean()
        return {"loss": invariance + contrast, "invariance": invariance, "contrast": contrast}


class SpectralContrastive(ShardedCriterion):
    r"""Spectral contrastive loss, on rows projected into a ball.

    .. math:: L = \frac{1}{\mu}\Bigl(-\frac{2}{N}\sum_i z_{1,i} \cdot z_{2,i}
        + \frac{1}{N(N-1)}\sum_{i \ne j} (z_{1,i} \cdot z_{2,j})^2\Bigr)

    Rows longer than :math:`\sqrt\mu` are shortened to it, shorter ones are left. The negatives are
    those across the views. With ``N > D`` the sum comes from two ``D x D`` matrices.

    Terms: ``invariance`` and ``contrast``, the two summands with their factors and :math:`1/\mu`;
    the loss is their sum.

    Args:
        mu: :math:`\mu`, positive: the *squared* radius of the ball.

    Raises:
        ValueError: If ``mu`` is not positive.

    Reference: HaoChen et al., NeurIPS 2021, section 3.2 (the ball: its appendix on experiments),
    https://arxiv.org/abs/2106.04156
    """

    def __init__(self, mu: float = 1.0) -> None:
        super().__init__()
        check_positive(mu=mu)
        self.mu = mu

    def sharded_terms(self, z1: Tensor, z2: Tensor, processes: Processes) -> dict[str, Tensor]:
        """Compute the loss and its terms; see :meth:`Criterion.sharded_terms`."""
        squares, products = cross_gram_in_ball(z1, z2, self.mu**0.5, processes)
        n = len(products)
        invariance = -2 * products.mean() / self.mu
        contrast = squares / (n * (n - 1) * self.mu)
        return {"loss": invariance + contrast, "invariance": invariance, "contrast": contrast}
