"""Gram matrices, and the paper's two criteria: sums of their squares off the diagonal."""

import torch
from torch import Tensor

from duality_ssl.distributed import SINGLE, Group
from duality_ssl.functional._kernels import gram as kernels
from duality_ssl.functional._kernels.dispatch import accelerated
from duality_ssl.functional.precision import full_precision


@full_precision
@accelerated(kernels.sample_gram, kernels.sample_gram_gradient)
def sample_gram(z: Tensor, group: Group = SINGLE) -> Tensor:
    r"""Products of samples, :math:`z z^\top`: this process's rows of the matrix, ``(n, N)``.

    Example:
        >>> sample_gram(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        tensor([[ 5., 11.],
                [11., 25.]])
    """
    return z @ group.gather(z).T


@full_precision
@accelerated(kernels.dimension_gram, kernels.dimension_gram_gradient)
def dimension_gram(z: Tensor, group: Group = SINGLE) -> Tensor:
    r"""Products of dimensions, :math:`z^\top z`: the whole ``(D, D)`` matrix on every process.

    Example:
        >>> dimension_gram(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        tensor([[10., 14.],
                [14., 20.]])
    """
    return group.sum(z.T @ z)


@full_precision
def sample_contrastive(z: Tensor, group: Group = SINGLE) -> Tensor:
    r"""Sample-contrastive criterion :math:`L_c = \sum_{i \ne j} (z_i \cdot z_j)^2` (section 3).

    A scalar from ``z`` of shape ``(n, D)`` and any norm, a sum over the ordered pairs of samples.
    With ``N > D`` it is computed from the ``D x D`` matrix by theorem 3.3.

    Example:
        >>> sample_contrastive(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))  # 2 * 11^2
        tensor(242.)
    """
    if group.world_size * len(z) <= z.shape[1]:
        return group.sum(off_diagonal(sample_gram(z, group), group).square().sum())
    norms = z.square().sum(dim=1)
    return dimension_gram(z, group).square().sum() - group.sum(norms.square().sum())


@full_precision
def dimension_contrastive(z: Tensor, group: Group = SINGLE) -> Tensor:
    r"""Dimension-contrastive criterion :math:`L_{nc} = \sum_{i \ne j} (z^\top z)_{ij}^2` (sec. 3).

    A scalar from ``z`` of shape ``(n, D)``, neither centred nor scaled here, a sum over the ordered
    pairs of dimensions. With ``N < D`` it is computed from the ``N x N`` matrix by theorem 3.3.

    Example:
        >>> dimension_contrastive(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))  # 2 * 14^2
        tensor(392.)
    """
    if group.world_size * len(z) >= z.shape[1]:
        return off_diagonal(dimension_gram(z, group)).square().sum()
    norms = group.sum(z.square().sum(dim=0))
    return group.sum(sample_gram(z, group).square().sum()) - norms.square().sum()


@full_precision
def cross_gram(a: Tensor, b: Tensor, group: Group = SINGLE) -> tuple[Tensor, Tensor]:
    r"""Products of the rows of two ``(n, D)`` matrices: of partners, and squared of all others.

    Row i of ``b`` is the partner of row i of ``a``. With ``N > D`` the sum is computed from two
    ``D x D`` matrices: :math:`\|a b^\top\|_F^2 = \langle a^\top a, b^\top b\rangle`.

    Returns:
        The products :math:`a_i \cdot b_i` of this process's rows, shape ``(n,)``, and the scalar
        :math:`\sum_{i \ne j} (a_i \cdot b_j)^2` over the rows of all processes.

    Example:
        >>> cross_gram(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.eye(2))
        (tensor([1., 4.]), tensor(13.))
    """
    if group.world_size * len(a) <= a.shape[1]:
        products = a @ group.gather(b).T
        partners = products.diagonal(group.own(len(a)).start)
        return partners, group.sum(off_diagonal(products, group).square().sum())
    partners = (a * b).sum(dim=1)
    squares = (dimension_gram(a, group) * dimension_gram(b, group)).sum()
    return partners, squares - group.sum(partners.square().sum())


def off_diagonal(matrix: Tensor, group: Group = SINGLE) -> Tensor:
    """Set the diagonal of a square matrix to zero, of which this process has the rows ``(n, N)``.

    Example:
        >>> off_diagonal(torch.ones(2, 2))
        tensor([[0., 1.],
                [1., 0.]])
    """
    rows = len(matrix)
    return torch.diagonal_scatter(matrix, matrix.new_zeros(rows), group.own(rows).start)
