"""Variance, covariance and cross-correlation of dimensions over the batch."""

import torch
from torch import Tensor

from duality_ssl.distributed import SINGLE, Group
from duality_ssl.functional._kernels import covariance as kernels
from duality_ssl.functional._kernels.dispatch import accelerated
from duality_ssl.functional.gram import dimension_contrastive, off_diagonal, sample_gram
from duality_ssl.functional.normalization import centered, standardize_columns
from duality_ssl.functional.precision import full_precision


@full_precision
@accelerated(kernels.variance, kernels.variance_gradient)
def variance(z: Tensor, group: Group = SINGLE) -> Tensor:
    r"""Variance of each dimension, :math:`v_j = \frac{1}{N - 1}\sum_i (z_{ij} - \bar z_j)^2`.

    Unbiased, from ``z`` of shape ``(n, D)``, ``N >= 2``, to shape ``(D,)``.

    Example:
        >>> variance(torch.tensor([[1.0, 2.0], [3.0, 2.0]]))
        tensor([2., 0.])
    """
    n = group.world_size * len(z)
    return group.sum(centered(z, group).square().sum(dim=0)) / (n - 1)


@full_precision
def variance_hinge(z: Tensor, group: Group = SINGLE) -> Tensor:
    r"""Hinge on the standard deviation, :math:`\frac1D\sum_j \max(0, 1 - \sqrt{v_j + 10^{-4}})`.

    A scalar in [0, 0.99] from ``z`` of shape ``(n, D)``; the :func:`variance` is unbiased, as in
    VICReg's released code.

    Reference: Bardes et al., *VICReg*, ICLR 2022, eq. 1, https://arxiv.org/abs/2105.04906

    Example:
        >>> variance_hinge(torch.tensor([[1.0, 2.0], [3.0, 2.0]]))  # the mean of 0 and 0.99
        tensor(0.4950)
    """
    return torch.relu(1 - torch.sqrt(variance(z, group) + 1e-4)).mean()


@full_precision
# for 65,536 entries or more the kernel runs in place of the body: same value, same gradient
@accelerated(kernels.squared_covariance, kernels.squared_covariance_gradient)
def squared_covariance(z: Tensor, group: Group = SINGLE) -> Tensor:
    r"""VICReg's covariance term of one view, :math:`\frac{1}{D}\sum_{i \ne j} C_{ij}^2`.

    A scalar from ``z`` of shape ``(n, D)``, divided by D as in VICReg's released code, not by
    ``D (D - 1)``. The covariance :math:`C = \bar z^\top \bar z / (N - 1)` is that of the centred
    embeddings. With ``N < D`` it is never computed: the sum comes from the ``N x N`` matrix
    (equation 9).

    Reference: Bardes et al., *VICReg*, ICLR 2022, eq. 3-4, https://arxiv.org/abs/2105.04906

    Example:
        >>> squared_covariance(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))  # C is 2 everywhere
        tensor(4.)
    """
    n, d = group.world_size * len(z), z.shape[1]
    return dimension_contrastive(centered(z, group), group) / ((n - 1) ** 2 * d)


@full_precision
def squared_correlation(z: Tensor, group: Group = SINGLE) -> Tensor:
    r"""VIbCReg's covariance term of one view, :math:`\frac{1}{D^2}\sum_{i \ne j} R_{ij}^2`.

    A scalar in [0, 1) from ``z`` of shape ``(n, D)``, divided by D squared. The correlation
    :math:`R = \hat z^\top \hat z` is that of the dimensions, see :func:`standardize_columns`. With
    ``N < D`` it is never computed: the sum comes from the ``N x N`` matrix.

    Reference: Lee & Aune, *VIbCReg*, 2021, section 3, https://arxiv.org/abs/2109.00783

    Example:
        >>> squared_correlation(torch.tensor([[1.0, 4.0], [3.0, 2.0]]))  # R is 1 and -1
        tensor(0.5000)
    """
    return dimension_contrastive(standardize_columns(z, group=group), group) / z.shape[1] ** 2


@full_precision
def cross_correlation(z1: Tensor, z2: Tensor, group: Group = SINGLE) -> tuple[Tensor, Tensor]:
    r"""Correlations :math:`X_{ij}` of dimension i in one view with j in the other (Barlow Twins).

    The views of shape ``(n, D)`` are standardised here, see :func:`standardize_columns`. With
    ``N < D`` the matrix is never computed: :math:`\|\hat z_1^\top \hat z_2\|_F^2 = \langle
    \hat z_1 \hat z_1^\top, \hat z_2 \hat z_2^\top\rangle` for the standardised embeddings.

    Returns:
        The diagonal :math:`X_{jj}`, shape ``(D,)``, and the scalar :math:`\sum_{i \ne j} X_{ij}^2`.

    Reference: Zbontar et al., ICML 2021, eq. 2, https://arxiv.org/abs/2103.03230

    Example:
        >>> z = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        >>> cross_correlation(z, z.flip(1))  # each dimension is the other one in the other view
        (tensor([0., 0.]), tensor(2.))
    """
    h1, h2 = (standardize_columns(z, group=group) for z in (z1, z2))
    if group.world_size * len(h1) >= h1.shape[1]:
        correlation = group.sum(h1.T @ h2)
        return correlation.diagonal(), off_diagonal(correlation).square().sum()
    diagonal = group.sum((h1 * h2).sum(dim=0))
    squares = group.sum((sample_gram(h1, group) * sample_gram(h2, group)).sum())
    return diagonal, squares - diagonal.square().sum()
