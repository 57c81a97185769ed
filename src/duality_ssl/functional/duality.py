"""Section 3 of the paper: what lies between the two criteria, and the bounds on it."""

from torch import Tensor

from duality_ssl.functional.precision import full_precision


@full_precision
def fourth_norms(z: Tensor) -> tuple[Tensor, Tensor]:
    r"""Fourth-norm sums of theorem 3.3: :math:`L_{nc} + \mathrm{columns} = L_c + \mathrm{rows}`.

    Returns:
        Rows :math:`\sum_i \|z_{i,\cdot}\|^4` and columns :math:`\sum_j \|z_{\cdot,j}\|^4`, scalars.

    Example:
        >>> fourth_norms(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))  # 5^2 + 25^2 and 10^2 + 20^2
        (tensor(650.), tensor(500.))
    """
    squares = z.square()
    return squares.sum(dim=1).square().sum(), squares.sum(dim=0).square().sum()


def norm_regularizer(z: Tensor) -> Tensor:
    r"""Difference of the two criteria, :math:`L_{reg} = L_{nc} - L_c` (equation 9), of either sign.

    Computed as the scalar :math:`\sum_i \|z_{i,\cdot}\|^4 - \sum_j \|z_{\cdot,j}\|^4`.

    Example:
        >>> norm_regularizer(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))  # L_nc - L_c = 392 - 242
        tensor(150.)
    """
    rows, columns = fourth_norms(z)
    return rows - columns


def column_fourth_norm_bounds(n: int, d: int, norm: float = 1.0) -> tuple[float, float]:
    r"""Lemma 3.4, rows of norm a: :math:`\frac{N^2}{D} a^4 \le \sum_j \|z_j\|^4 \le N^2 a^4`.

    The lower bound is reached by columns of one norm, as in a constant matrix, the upper by one
    column only. ``norm`` is a; for rows of different norms both hold with the root mean square of
    the norms, by Cauchy-Schwarz.

    Example:
        >>> column_fourth_norm_bounds(n=4, d=2)
        (8.0, 16.0)
    """
    upper = n**2 * norm**4
    return upper / d, upper


def row_fourth_norm_bounds(n: int, d: int, norm: float = 1.0) -> tuple[float, float]:
    r"""Lemma 3.4, columns of norm a: :math:`\frac{D^2}{N} a^4 \le \sum_i \|z_i\|^4 \le D^2 a^4`.

    As :func:`column_fourth_norm_bounds`, with rows and columns exchanged.

    Example:
        >>> row_fourth_norm_bounds(n=4, d=2)
        (1.0, 4.0)
    """
    return column_fourth_norm_bounds(d, n, norm)


@full_precision
def sample_contrastive_bounds(dimension: Tensor, n: int, d: int) -> tuple[Tensor, Tensor]:
    r"""Corollary 3.4.1, unit rows: :math:`L_{nc} - N + N^2/D \le L_c \le L_{nc} - N + N^2`.

    Lower and upper bound of :math:`L_c`, where ``dimension`` is :math:`L_{nc}`.

    Example:
        >>> sample_contrastive_bounds(torch.tensor(8.0), n=4, d=2)
        (tensor(12.), tensor(20.))
    """
    lower, upper = column_fourth_norm_bounds(n, d)
    return dimension - n + lower, dimension - n + upper


def dimension_contrastive_bounds(sample: Tensor, n: int, d: int) -> tuple[Tensor, Tensor]:
    r"""Corollary 3.4.1, unit columns: :math:`L_c - D + D^2/N \le L_{nc} \le L_c - D + D^2`.

    Lower and upper bound of :math:`L_{nc}`, where ``sample`` is :math:`L_c`.

    Example:
        >>> dimension_contrastive_bounds(torch.tensor(12.0), n=4, d=2)
        (tensor(11.), tensor(14.))
    """
    return sample_contrastive_bounds(sample, d, n)
