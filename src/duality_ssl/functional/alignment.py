"""How near the two views of an image lie, and how evenly all images, on the unit sphere."""

import math

from torch import Tensor

from duality_ssl.functional.logsumexp import logsumexp_of_others
from duality_ssl.functional.normalization import normalize_rows
from duality_ssl.functional.precision import full_precision


@full_precision
def alignment(z1: Tensor, z2: Tensor) -> Tensor:
    r"""Mean squared distance of the two views, :math:`\frac1N \sum_i \|u_{1i} - u_{2i}\|^2`.

    Args:
        z1: Embeddings of the first view, shape ``(N, D)``; rows are normalised here to norm 1,
            :math:`u = z / \|z\|`.
        z2: Embeddings of the second view, shape ``(N, D)``.

    Returns:
        Scalar in [0, 4], 0 if the views of every image agree: :math:`2 - 2 \cos`, averaged.

    Reference: Wang & Isola, ICML 2020, section 4.1, exponent 2, https://arxiv.org/abs/2005.10242

    Example:
        >>> alignment(torch.eye(2), torch.tensor([[5.0, 0.0], [0.0, -5.0]]))  # 0 and 4
        tensor(2.)
    """
    return (normalize_rows(z1) - normalize_rows(z2)).square().sum(dim=1).mean()


@full_precision
def uniformity(z: Tensor, t: float = 2.0) -> Tensor:
    r"""Logarithm of the mean Gaussian potential of all pairs on the unit sphere.

    .. math:: \log \frac{1}{N (N - 1)} \sum_{i \ne j} e^{-t \|u_i - u_j\|^2}, \qquad
        u = z / \|z\|

    Since :math:`\|u_i - u_j\|^2 = 2 - 2 u_i \cdot u_j`, this is a log-sum-exp of the cosines at the
    temperature :math:`1 / (2 t)`, the repulsion of DCL, computed in tiles.

    Args:
        z: Embeddings of shape ``(N, D)``, ``N >= 2``; rows are normalised here.
        t: Sharpness of the potential, positive.

    Returns:
        Scalar in ``[-4 t, 0]``, 0 if all rows have one direction; the lower the more uniform, about
        :math:`-2 t` for random directions in many dimensions.

    Reference: Wang & Isola, ICML 2020, section 4.1, https://arxiv.org/abs/2005.10242

    Example:
        >>> uniformity(torch.tensor([[1.0, 0.0], [-3.0, 0.0]]))  # opposite: a distance of 2
        tensor(-8.)
    """
    repulsion = logsumexp_of_others(normalize_rows(z), 1 / (2 * t))
    return repulsion.logsumexp(dim=0) - math.log(len(z) * (len(z) - 1)) - 2 * t
