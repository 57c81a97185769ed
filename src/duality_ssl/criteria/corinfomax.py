"""CorInfoMax: log-determinants of covariances that remember earlier batches."""

import math

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from duality_ssl.criteria.base import Criterion, check_positive
from duality_ssl.distributed import SINGLE, Group
from duality_ssl.functional import centered, coding_rate, dimension_gram, normalize_rows
from duality_ssl.functional.precision import to_double


class CorInfoMax(Criterion):
    r"""Log-determinants of both views' moving covariances, and the distance of the views.

    .. math:: L = -\frac1D \bigl(\log\det(R_1 + \epsilon I) + \log\det(R_2 + \epsilon I)\bigr)
        + \alpha \frac{1}{ND} \|u_1 - u_2\|_F^2

    on rows u of unit norm. In each step of training, with 0 and the identity at first,

    .. math:: \mu \leftarrow \lambda\mu + (1 - \lambda) \frac1N \sum_i u_i, \qquad
        R \leftarrow \lambda R + (1 - \lambda) \frac1N \sum_i (u_i - \mu)(u_i - \mu)^\top

    of each view, with the gradient of the new summands alone. In evaluation mode the loss is that
    of the same step, and the state stays. Each micro-batch is a step.

    The log-determinants and the state are float64, which MPS does not have. With
    :math:`\lambda = 0` nothing is remembered, and the determinant is that of the smaller of
    ``N x N`` and ``D x D``, as TCR's; else it is ``D x D``.

    Terms: ``information``, the first summand, and ``invariance``, the mean squared error without
    its weight.

    Args:
        dimensions: Dimensions D of the embeddings.
        invariance: Weight :math:`\alpha`. The paper's grows with D: 250 for 64 dimensions, 1000
            for 128, 2000 for 512.
        forgetting: :math:`\lambda`, less than 1, the share of the past. On ImageNet 0.1.
        epsilon: :math:`\epsilon`, positive.

    Attributes:
        means: :math:`\mu` of both views, shape ``(2, D)``, if something is remembered.
        covariances: R of both views, shape ``(2, D, D)``.

    Reference: Ozsoy et al., NeurIPS 2022, eq. 7-9, https://arxiv.org/abs/2209.07999

    Example:
        >>> criterion = CorInfoMax(dimensions=2, forgetting=0)
        >>> criterion(torch.eye(2), torch.eye(2))["invariance"]
        tensor(0.)
    """

    family = "dimension"
    side = "D x D"
    means: Tensor
    covariances: Tensor

    def __init__(
        self,
        dimensions: int,
        invariance: float = 250,
        forgetting: float = 0.01,
        epsilon: float = 1e-8,
    ) -> None:
        super().__init__()
        check_positive(or_zero=True, invariance=invariance, forgetting=forgetting)
        check_positive(epsilon=epsilon)
        if forgetting >= 1:
            raise ValueError(f"Expected `forgetting` to be less than 1, but got {forgetting}.")
        self.dimensions = dimensions
        self.invariance, self.forgetting, self.epsilon = invariance, forgetting, epsilon
        if forgetting:
            identity = torch.eye(dimensions, dtype=torch.float64)
            self.register_buffer("means", torch.zeros(2, dimensions, dtype=torch.float64))
            self.register_buffer("covariances", identity.repeat(2, 1, 1))

    def terms(self, z1: Tensor, z2: Tensor, group: Group = SINGLE) -> dict[str, Tensor]:
        if z1.shape[1] != self.dimensions:
            raise ValueError(f"Expected D={self.dimensions}, but got embeddings {tuple(z1.shape)}.")
        u1, u2 = (normalize_rows(to_double(z)) for z in (z1, z2))
        invariance = group.mean(mse_loss(u1, u2)).to(z1)
        rates = self._rate(0, u1, group) + self._rate(1, u2, group)
        information = (-rates / self.dimensions).to(z1)
        loss = information + self.invariance * invariance
        return {"loss": loss, "information": information, "invariance": invariance}

    def _rate(self, view: int, u: Tensor, group: Group) -> Tensor:
        """Compute the log-determinant of a view, and remember its covariance."""
        d = self.dimensions
        if not self.forgetting:
            rate = coding_rate(centered(u, group), d * self.epsilon, group)
            return 2 * rate + d * math.log(self.epsilon)
        n, kept = group.world_size * len(u), self.forgetting
        mean = kept * self.means[view].double() + (1 - kept) * group.sum(u.sum(dim=0)) / n
        gram = dimension_gram(u - mean, group)
        covariance = kept * self.covariances[view].double() + (1 - kept) / n * gram
        if self.training:
            self.means[view].copy_(mean.detach())
            self.covariances[view].copy_(covariance.detach())
        return torch.logdet(covariance + self.epsilon * torch.eye(d).to(covariance))

    def memory(self, n: int, d: int) -> int:
        return 2 * 3 * 2 * n * d + 2 * 4 * 2 * d * d
