r"""How alike two representations of the same images are, on the smaller side.

Both measures compare the ``N x N`` similarities of the images under one representation with those
under the other. Because :math:`\langle X X^\top, Y Y^\top \rangle = \|X^\top Y\|_F^2`,
neither needs that matrix where the dimensions are fewer. They are computed in float64: RSA is a
difference of means, which cancels in float32.

Source: Luthra et al., *On the alignment between supervised and self-supervised contrastive
learning*, ICLR 2026, https://arxiv.org/abs/2510.08852, which compares two runs by both.
"""

from torch import Tensor

from duality_ssl.functional.normalization import centered, normalize_rows
from duality_ssl.functional.precision import to_double


def linear_cka(x: Tensor, y: Tensor) -> Tensor:
    r"""Linear centred kernel alignment of two representations of the same images.

    .. math:: \frac{\|\bar X^\top \bar Y\|_F^2}{\|\bar X^\top \bar X\|_F\, \|\bar Y^\top \bar Y\|_F}

    of the centred features: the cosine of the centred Gram matrices. It does not change under
    rotations and scaling of either representation.

    Args:
        x: Features of shape ``(N, D)``, row i of image i; centred here, rows keep their norms.
        y: Features of the same images, shape ``(N, D')``.

    Returns:
        Scalar in [0, 1], in float64; NaN if all rows of one are equal.

    Reference: Kornblith et al., ICML 2019, section 3, https://arxiv.org/abs/1905.00414

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> round(linear_cka(x, 5 - 2 * x).item(), 3)
        1.0
    """
    x, y = centered(to_double(x)), centered(to_double(y))
    return _cross(x, y) / (_cross(x, x) * _cross(y, y)).sqrt()


def rsa(x: Tensor, y: Tensor) -> Tensor:
    r"""Representational similarity: correlation of the cosines under two representations.

    The Pearson correlation, over the pairs of different images, of their cosine distance under one
    representation with that under the other. With unit rows and :math:`M = N (N - 1)`,

    .. math:: m_X = \frac{\|\sum_i x_i\|^2 - N}{M}, \qquad q_{XY} = \frac{\|X^\top Y\|_F^2 - N}{M},
        \qquad \frac{q_{XY} - m_X m_Y}{\sqrt{(q_{XX} - m_X^2)(q_{YY} - m_Y^2)}}.

    Args:
        x: Features of shape ``(N, D)``, ``N >= 3``, row i of image i; rows are normalised here.
        y: Features of the same images, shape ``(N, D')``.

    Returns:
        Scalar in [-1, 1], in float64; NaN if all cosines of one are equal.

    Reference: Kriegeskorte et al., *Representational similarity analysis*, 2008

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> round(rsa(x, 3 * x).item(), 3)
        1.0
    """
    x, y = normalize_rows(to_double(x)), normalize_rows(to_double(y))
    covariance = _cosine_covariance(x, y)
    return covariance / (_cosine_covariance(x, x) * _cosine_covariance(y, y)).sqrt()


def _cross(x: Tensor, y: Tensor) -> Tensor:
    """Squared Frobenius norm of the matrix of products of the columns, on the smaller side."""
    if len(x) ** 2 <= x.shape[1] * y.shape[1]:
        return ((x @ x.T) * (y @ y.T)).sum()
    return (x.T @ y).square().sum()


def _cosine_covariance(x: Tensor, y: Tensor) -> Tensor:
    """Covariance, over the pairs of different rows, of their products in ``x`` and in ``y``."""
    pairs = len(x) * (len(x) - 1)
    norms_x, norms_y = x.square().sum(dim=1), y.square().sum(dim=1)
    mean_x = (x.sum(dim=0).square().sum() - norms_x.sum()) / pairs
    mean_y = (y.sum(dim=0).square().sum() - norms_y.sum()) / pairs
    return (_cross(x, y) - (norms_x * norms_y).sum()) / pairs - mean_x * mean_y
