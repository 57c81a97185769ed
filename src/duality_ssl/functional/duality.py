"""Section 3 of the paper: the two criteria and what lies between them."""

from torch import Tensor

from duality_ssl.functional._products import dimension_gram, full_precision, sample_gram


def sample_contrastive(z: Tensor) -> Tensor:
    r"""Sample-contrastive criterion :math:`L_c = \sum_{i \ne j} (z_i \cdot z_j)^2` (section 3).

    Args:
        z: Embeddings of shape ``(N, D)``, of any norm.

    Returns:
        Scalar sum over the ordered pairs of samples, computed on the smaller side.
    """
    return sample_gram(z)[0]


def dimension_contrastive(z: Tensor) -> Tensor:
    r"""Dimension-contrastive criterion :math:`L_{nc} = \sum_{i \ne j} (z^\top z)_{ij}^2` (sec. 3).

    Args:
        z: Embeddings of shape ``(N, D)``, neither centred nor scaled here.

    Returns:
        Scalar sum over the ordered pairs of dimensions, computed on the smaller side.
    """
    return dimension_gram(z)[0]


@full_precision
def fourth_norms(z: Tensor) -> tuple[Tensor, Tensor]:
    r"""Fourth-norm sums of theorem 3.3: :math:`L_{nc} + \mathrm{columns} = L_c + \mathrm{rows}`.

    Args:
        z: Embeddings of shape ``(N, D)``.

    Returns:
        Rows :math:`\sum_i \|z_{i,\cdot}\|^4` and columns :math:`\sum_j \|z_{\cdot,j}\|^4`, scalars.
    """
    squares = z.square()
    return squares.sum(dim=1).square().sum(), squares.sum(dim=0).square().sum()


def norm_regularizer(z: Tensor) -> Tensor:
    r"""Difference of the two criteria, :math:`L_{reg} = L_{nc} - L_c` (equation 9).

    Args:
        z: Embeddings of shape ``(N, D)``.

    Returns:
        Scalar :math:`\sum_i \|z_{i,\cdot}\|^4 - \sum_j \|z_{\cdot,j}\|^4`, of either sign.
    """
    rows, columns = fourth_norms(z)
    return rows - columns


def column_fourth_norm_bounds(n: int, d: int, norm: float = 1.0) -> tuple[float, float]:
    r"""Lemma 3.4, rows of norm a: :math:`\frac{N^2}{D} a^4 \le \sum_j \|z_j\|^4 \le N^2 a^4`.

    Args:
        n: Samples N.
        d: Dimensions D.
        norm: The norm a of every row. For rows of different norms the bounds hold with the root
            mean square of the norms, by Cauchy-Schwarz.

    Returns:
        Lower bound (all columns of one norm, as in a constant matrix) and upper (one column only).
    """
    upper = n**2 * norm**4
    return upper / d, upper


def row_fourth_norm_bounds(n: int, d: int, norm: float = 1.0) -> tuple[float, float]:
    r"""Lemma 3.4, columns of norm a: :math:`\frac{D^2}{N} a^4 \le \sum_i \|z_i\|^4 \le D^2 a^4`.

    Args:
        n: Samples N.
        d: Dimensions D.
        norm: The norm a of every column, or the root mean square of their norms.

    Returns:
        Lower bound (all rows of one norm, as in a constant matrix) and upper (one row only).
    """
    return column_fourth_norm_bounds(d, n, norm)


@full_precision
def sample_contrastive_bounds(dimension: Tensor, n: int, d: int) -> tuple[Tensor, Tensor]:
    r"""Corollary 3.4.1, unit rows: :math:`L_{nc} - N + N^2/D \le L_c \le L_{nc} - N + N^2`.

    Args:
        dimension: :math:`L_{nc}` of embeddings whose rows have unit norm.
        n: Samples N.
        d: Dimensions D.

    Returns:
        Lower and upper bound of :math:`L_c`.
    """
    lower, upper = column_fourth_norm_bounds(n, d)
    return dimension - n + lower, dimension - n + upper


def dimension_contrastive_bounds(sample: Tensor, n: int, d: int) -> tuple[Tensor, Tensor]:
    r"""Corollary 3.4.1, unit columns: :math:`L_c - D + D^2/N \le L_{nc} \le L_c - D + D^2`.

    Args:
        sample: :math:`L_c` of embeddings whose columns have unit norm.
        n: Samples N.
        d: Dimensions D.

    Returns:
        Lower and upper bound of :math:`L_{nc}`.
    """
    return sample_contrastive_bounds(sample, d, n)
