"""Total coding rate: spread the batch over as many dimensions as it can fill."""

from torch import Tensor

from duality_ssl.criteria.base import Criterion, check_positive
from duality_ssl.distributed import SINGLE, Group
from duality_ssl.functional import coding_rate, normalize_rows


class TCR(Criterion):
    r"""Negative total coding rate of the views, and the cosine of their positives.

    .. math:: L = -\frac{R(z_1) + R(z_2)}{2} - \lambda \frac1N \sum_i \cos(z_{1,i}, z_{2,i}),
        \qquad R(z) = \frac12 \log\det\Bigl(I + \frac{D}{N \epsilon^2} z^\top z\Bigr)

    on rows of unit norm, in nats. A spread batch has a high rate, hence the sign. The determinant
    is that of the smaller of ``N x N`` and ``D x D``.

    Terms: ``invariance``, the mean of the negative cosines, and ``coding_rate``, the mean of the
    two views' rates; ``loss = weight * invariance - coding_rate``.

    Args:
        invariance: Weight :math:`\lambda` of the cosines.
        distortion: :math:`\epsilon^2`, positive.

    Reference: Li et al., *Neural manifold clustering and embedding*, 2022,
    https://arxiv.org/abs/2201.10000

    Example:
        >>> square = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        >>> TCR()(square, square)["invariance"].round(decimals=3)  # minus the mean cosine
        tensor(-1.)
    """

    family = "dimension"
    side = "smaller"

    def __init__(self, invariance: float = 100, distortion: float = 0.2) -> None:
        super().__init__()
        check_positive(or_zero=True, invariance=invariance)
        check_positive(distortion=distortion)
        self.invariance = invariance
        self.distortion = distortion

    def terms(self, z1: Tensor, z2: Tensor, group: Group = SINGLE) -> dict[str, Tensor]:
        h1, h2 = normalize_rows(z1), normalize_rows(z2)
        invariance = -group.mean((h1 * h2).sum(dim=1))
        rate1, rate2 = (coding_rate(h, self.distortion, group) for h in (h1, h2))
        rate = (rate1 + rate2) / 2
        loss = self.invariance * invariance - rate
        return {"loss": loss, "invariance": invariance, "coding_rate": rate}
