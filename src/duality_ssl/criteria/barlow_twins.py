"""Barlow Twins: the cross-correlation of two views should be the identity."""

from torch import Tensor

from duality_ssl.criteria.base import Criterion, check_positive
from duality_ssl.distributed import SINGLE, Group
from duality_ssl.functional import cross_correlation


class BarlowTwins(Criterion):
    r"""Cross-correlation of the views' dimensions, driven to the identity.

    .. math:: L = s \Bigl(\sum_j (1 - X_{jj})^2 + \lambda \sum_{i \ne j} X_{ij}^2\Bigr), \qquad
        X = \frac{\hat z_1^\top \hat z_2}{N}

    with columns standardised over the batch, each view by its own statistics: biased variance as
    in batch norm, but without its epsilon, so that the loss does not depend on the embeddings'
    scale; a constant column counts as zero. Sums over dimensions, not means.

    With ``N < D`` the off-diagonal sum comes from two ``N x N`` Gram matrices,
    :math:`\|X\|_F^2 = \langle \hat z_1 \hat z_1^\top, \hat z_2 \hat z_2^\top\rangle / N^2`.

    Terms: ``invariance``, the sum over the diagonal, and ``redundancy``, the sum off it, both
    without their weights.

    Args:
        redundancy: Weight :math:`\lambda` of the off-diagonal sum.
        scale: Factor s of the whole loss, positive.

    Reference: Zbontar et al., ICML 2021, eq. 1, https://arxiv.org/abs/2103.03230

    Example:
        >>> square = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        >>> BarlowTwins()(square, square)["loss"]  # the cross-correlation is the identity
        tensor(0.)
    """

    family = "dimension"
    side = "smaller"

    def __init__(self, redundancy: float = 0.005, scale: float = 1.0) -> None:
        super().__init__()
        check_positive(or_zero=True, redundancy=redundancy)
        check_positive(scale=scale)
        self.redundancy = redundancy
        self.scale = scale

    def terms(self, z1: Tensor, z2: Tensor, group: Group = SINGLE) -> dict[str, Tensor]:
        diagonal, redundancy = cross_correlation(z1, z2, group)
        invariance = (1 - diagonal).square().sum()
        loss = self.scale * (invariance + self.redundancy * redundancy)
        return {"loss": loss, "invariance": invariance, "redundancy": redundancy}
