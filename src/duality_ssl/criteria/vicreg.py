"""VICReg, its form on correlations, and two that turn it, step by step, into a contrastive one."""

from torch import Tensor
from torch.nn.functional import mse_loss

from duality_ssl.criteria.base import Criterion, check_positive
from duality_ssl.distributed import SINGLE, Group
from duality_ssl.functional import (
    centered,
    covariance_logsumexp,
    sample_logsumexp,
    squared_correlation,
    squared_covariance,
    variance_hinge,
)
from duality_ssl.functional.logsumexp import logsumexp_memory


class VICReg(Criterion):
    r"""Variance, invariance and covariance of two views.

    .. math:: L = \lambda \frac{1}{ND}\|z_1 - z_2\|_F^2 + \mu \frac{v(z_1) + v(z_2)}{2}
        + \nu \bigl(c(z_1) + c(z_2)\bigr)

    with :math:`v = \frac1D \sum_j \max(0, 1 - \sqrt{\mathrm{var}_j + 10^{-4}})`, the variance
    unbiased, and :math:`c = \frac1D \sum_{i \ne j} C_{ij}^2` of the covariance
    :math:`C = z^\top z / (N - 1)` of column-centred z. This is the authors' released code: the
    variance term is halved, the covariance term is divided by ``D`` and not halved, the invariance
    is a mean over N *and* D (the paper's text sums over D and does not halve).

    With ``N < D`` the covariance term comes from the ``N x N`` Gram matrix (equation 9 of Garrido
    et al.): O(N² D) instead of O(N D²), and no ``D x D`` matrix.

    Terms: ``invariance``, ``variance`` and ``covariance`` without their weights.

    Args:
        invariance: Weight :math:`\lambda`.
        variance: Weight :math:`\mu`.
        covariance: Weight :math:`\nu`.

    Reference: Bardes et al., ICLR 2022, eq. 6, https://arxiv.org/abs/2105.04906

    Example:
        >>> square = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        >>> VICReg()(square, square)["loss"]  # uncorrelated, with a standard deviation over 1
        tensor(0.)
    """

    family = "dimension"
    side = "smaller"

    def __init__(self, invariance: float = 25, variance: float = 25, covariance: float = 1) -> None:
        super().__init__()
        weights = {"invariance": invariance, "variance": variance, "covariance": covariance}
        check_positive(or_zero=True, **weights)
        self.invariance, self.variance, self.covariance = invariance, variance, covariance

    def terms(self, z1: Tensor, z2: Tensor, group: Group = SINGLE) -> dict[str, Tensor]:
        variance = (variance_hinge(z1, group) + variance_hinge(z2, group)) / 2
        covariance = squared_covariance(z1, group) + squared_covariance(z2, group)
        return self._weighted(group.mean(mse_loss(z1, z2)), variance, covariance)

    def _weighted(self, inv: Tensor, var: Tensor, cov: Tensor) -> dict[str, Tensor]:
        loss = self.invariance * inv + self.variance * var + self.covariance * cov
        return {"loss": loss, "invariance": inv, "variance": var, "covariance": cov}


class VIbCReg(VICReg):
    r"""VICReg on the correlations of the dimensions in the place of their covariances.

    .. math:: L = \lambda \frac{1}{ND}\|z_1 - z_2\|_F^2 + \mu \bigl(v(z_1) + v(z_2)\bigr)
        + \nu \bigl(c(z_1) + c(z_2)\bigr), \qquad
        c(z) = \frac{1}{D^2} \sum_{i \ne j} (\hat z^\top \hat z)_{ij}^2

    where :math:`\hat z` has centred columns of unit norm and v is :class:`VICReg`'s hinge. Unlike
    VICReg's the variance term is not halved, and c is divided by D squared. This is the authors'
    released code. Their projector ends in an iterative normalization, which is not a part of it.

    With ``N < D`` c comes from the ``N x N`` Gram matrix.

    Terms: ``invariance``, ``variance`` and ``covariance`` without their weights.

    Args:
        invariance: Weight :math:`\lambda`.
        variance: Weight :math:`\mu`.
        covariance: Weight :math:`\nu`.

    Reference: Lee & Aune, 2021, section 3, https://arxiv.org/abs/2109.00783

    Example:
        >>> square = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        >>> VIbCReg()(square, square)["loss"]  # uncorrelated, with a standard deviation over 1
        tensor(0.)
    """

    def __init__(
        self, invariance: float = 25, variance: float = 25, covariance: float = 200
    ) -> None:
        super().__init__(invariance, variance, covariance)

    def terms(self, z1: Tensor, z2: Tensor, group: Group = SINGLE) -> dict[str, Tensor]:
        variance = variance_hinge(z1, group) + variance_hinge(z2, group)
        covariance = squared_correlation(z1, group) + squared_correlation(z2, group)
        return self._weighted(group.mean(mse_loss(z1, z2)), variance, covariance)


class VICRegExp(VICReg):
    r"""VICReg with the log-sum-exp of SimCLR in the place of the sum of squares.

    .. math:: c_{\exp}(z) = \frac1D \sum_i \log \sum_{j \ne i} e^{C_{ij}/\tau}

    The other terms and the conventions are :class:`VICReg`'s; a mean over D, not halved over views,
    of a sum over the ``D - 1`` others. The gradient of a log-sum-exp is a normalised softmax, far
    weaker than that of a sum of squares, so VICReg's weight of 1 would let the dimensions collapse.

    Args:
        invariance: Weight of the mean squared error between the views.
        variance: Weight of the hinge on the standard deviations.
        covariance: Weight of :math:`c_{\exp}(z_1) + c_{\exp}(z_2)`.
        temperature: :math:`\tau`, positive.

    Reference: Garrido et al., ICLR 2023, eq. 11-12, https://arxiv.org/abs/2206.02574

    Example:
        >>> square = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        >>> VICRegExp()(square, square)["loss"]  # the logarithm of e to the one covariance, 0
        tensor(0.)
    """

    side = "D x D"
    min_dimensions = 2

    def __init__(
        self,
        invariance: float = 25,
        variance: float = 25,
        covariance: float = 2.5,
        temperature: float = 0.1,
    ) -> None:
        super().__init__(invariance, variance, covariance)
        check_positive(temperature=temperature)
        self.temperature = temperature

    def terms(self, z1: Tensor, z2: Tensor, group: Group = SINGLE) -> dict[str, Tensor]:
        variance = (variance_hinge(z1, group) + variance_hinge(z2, group)) / 2
        lse1 = covariance_logsumexp(z1, self.temperature, group)
        lse2 = covariance_logsumexp(z2, self.temperature, group)
        return self._weighted(group.mean(mse_loss(z1, z2)), variance, lse1 + lse2)

    def memory(self, n: int, d: int) -> int:
        return 4 * 2 * n * d + 2 * logsumexp_memory(d)


class VICRegCtr(VICRegExp):
    r"""VICReg-exp on the transpose: VICReg made contrastive.

    .. math:: c_{ctr}(z) = \frac1N \sum_i \log \sum_{j \ne i} e^{G_{ij}/\tau}, \qquad
        G = \frac{\bar z \bar z^\top}{D - 1}

    where each *dimension* of :math:`\bar z` is centred over the batch, as in VICReg (table 1), and
    the rows are not. The hinge acts on the standard deviation of each row of :math:`\bar z` over
    its D dimensions (unbiased, over ``D - 1``), so that a constant batch costs all of it. Rows then
    have a norm of about :math:`\sqrt D` and the entries of G are about cosines. With the weights
    :math:`\nu = \lambda\tau (D - 1)/D` and rows of that norm the loss is, up to a constant,
    :math:`2\nu` times DCL of the centred embeddings with negatives within each view.

    Args:
        invariance: Weight :math:`\lambda` of the mean squared error between the views.
        variance: Weight of the hinge on the samples' standard deviations.
        covariance: Weight :math:`\nu` of :math:`c_{ctr}(z_1) + c_{ctr}(z_2)`.
        temperature: :math:`\tau`, positive.

    Reference: Garrido et al., ICLR 2023, eq. 13 and table 1, https://arxiv.org/abs/2206.02574

    Example:
        >>> square = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        >>> VICRegCtr()(square, square)["variance"]  # half of the samples have equal entries
        tensor(0.4950)
    """

    family = "sample"
    side = "N x N"

    def __init__(
        self,
        invariance: float = 25,
        variance: float = 25,
        covariance: float = 3.75,
        temperature: float = 0.15,
    ) -> None:
        super().__init__(invariance, variance, covariance, temperature)

    def terms(self, z1: Tensor, z2: Tensor, group: Group = SINGLE) -> dict[str, Tensor]:
        c1, c2 = centered(z1, group), centered(z2, group)
        variance = group.mean((variance_hinge(c1.T) + variance_hinge(c2.T)) / 2)
        lse1 = sample_logsumexp(c1, self.temperature, group)
        lse2 = sample_logsumexp(c2, self.temperature, group)
        return self._weighted(group.mean(mse_loss(z1, z2)), variance, lse1 + lse2)

    def memory(self, n: int, d: int) -> int:
        return 4 * 2 * n * d + 2 * logsumexp_memory(n)
