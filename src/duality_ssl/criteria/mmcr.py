"""MMCR: centroids of the views that fill the space."""

import torch
from torch import Tensor

from duality_ssl.criteria.base import Criterion, check_positive
from duality_ssl.distributed import SINGLE, Group
from duality_ssl.functional import normalize_rows, nuclear_norm
from duality_ssl.functional.nuclear_norm import nuclear_norms


class MMCR(Criterion):
    r"""Maximum manifold capacity: the nuclear norm of the centroids, made large.

    .. math:: L = -\|C\|_* + \lambda \frac1N \sum_i \|U_i\|_*, \qquad C = \frac1V \sum_v u_v

    of V views, two or more, with rows u of unit norm; :math:`U_i` has the V views of sample i as
    rows. The norm of the centroids is a sum over the batch, not a mean, at most
    :math:`\sqrt{N \min(N, D)}`. It is large where the views of a sample agree and different
    samples do not, so :math:`\lambda` is 0 by default; then the second term is not computed.

    :math:`\|C\|_*` comes from the eigenvalues of the smaller of :math:`C^\top C` and
    :math:`C C^\top`, in float64.

    Terms: ``separation``, the negative nuclear norm of the centroids, and with a weight
    ``compactness``, the mean nuclear norm of a sample's views, without the weight.

    Args:
        compactness: Weight :math:`\lambda`.

    Reference: Yerxa et al., NeurIPS 2023, eq. 1-2, https://arxiv.org/abs/2303.03307

    Example:
        >>> square = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        >>> MMCR()(square, square)["loss"]  # the bound: N = 4, D = 2
        tensor(-2.8284)
    """

    family = "either"
    side = "smaller"

    def __init__(self, compactness: float = 0) -> None:
        super().__init__()
        check_positive(or_zero=True, compactness=compactness)
        self.compactness = compactness

    def terms(self, *views: Tensor, group: Group = SINGLE) -> dict[str, Tensor]:
        u = torch.stack([normalize_rows(z) for z in views], dim=1)
        separation = -nuclear_norm(u.mean(dim=1), group)
        if not self.compactness:
            return {"loss": separation, "separation": separation}
        compactness = group.mean(nuclear_norms(u))
        loss = separation + self.compactness * compactness
        return {"loss": loss, "separation": separation, "compactness": compactness}

    def memory(self, n: int, d: int) -> int:
        local = 3 * 2 * n * d if self.compactness else 0
        return 3 * 2 * n * d + local + 8 * min(n, d) ** 2  # in float64
