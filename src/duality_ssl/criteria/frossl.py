"""FroSSL: views that agree, and a flat spectrum by Frobenius norms."""

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from duality_ssl.criteria.base import Criterion, check_positive
from duality_ssl.distributed import SINGLE, Group
from duality_ssl.functional import matrix_entropy, normalize_columns


class FroSSL(Criterion):
    r"""Frobenius norms of the views' Gram matrices, and the distance of each view to their mean.

    .. math:: L = \sum_v 2 \log\frac{\|y_v^\top y_v\|_F}{\mathrm{tr}(y_v^\top y_v)}
        + \lambda \frac{V}{N} \sum_v \|y_v - \bar y\|_F^2

    of V views, two or more, with columns scaled to unit norm, but not centred; :math:`\bar y` is
    the mean of the views. The first sum is that of the negative
    :func:`~duality_ssl.functional.matrix_entropy`. The second is V D times the sum of the mean
    squared errors, as in lightly.

    :math:`\|y^\top y\|_F = \|y y^\top\|_F` is computed on the smaller side.

    Terms: ``invariance`` and ``regularization``, the second and the first sum, without the weight.

    Args:
        invariance: Weight :math:`\lambda`.

    Reference: Skean et al., ECCV 2024, https://arxiv.org/abs/2310.02903

    Example:
        >>> square = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        >>> FroSSL()(square, square)["loss"]  # -2 log 2: both spectra are flat
        tensor(-1.3863)
    """

    family = "either"
    side = "smaller"

    def __init__(self, invariance: float = 1) -> None:
        super().__init__()
        check_positive(or_zero=True, invariance=invariance)
        self.invariance = invariance

    def terms(self, *views: Tensor, group: Group = SINGLE) -> dict[str, Tensor]:
        y = [normalize_columns(z, group=group) for z in views]
        mean = torch.stack(y).mean(dim=0)
        distances = torch.stack([mse_loss(view, mean) for view in y]).sum()
        invariance = len(y) * mean.shape[1] * group.mean(distances)
        regularization = -torch.stack([matrix_entropy(view, group) for view in y]).sum()
        loss = self.invariance * invariance + regularization
        return {"loss": loss, "invariance": invariance, "regularization": regularization}

    def memory(self, n: int, d: int) -> int:
        return 5 * 2 * n * d + min(n, d) ** 2
