"""Regression of predictions on targets: BYOL and SimSiam."""

from torch import Tensor

from duality_ssl.criteria.base import Criterion, check_positive
from duality_ssl.distributed import SINGLE, Group
from duality_ssl.functional import normalize_rows


class Regression(Criterion):
    r"""Squared distance of unit-norm predictions from unit-norm targets of the other views.

    .. math:: L = s \cdot \mathrm{mean}_{v \ne w}\,
        \mathrm{mean}_i \Bigl\| \frac{p_i^v}{\|p_i^v\|} - \frac{t_i^w}{\|t_i^w\|} \Bigr\|^2
        = s \cdot \mathrm{mean}_{v \ne w}\, \mathrm{mean}_i
        \bigl(2 - 2 \cos(p_i^v, t_i^w)\bigr)

    over pairs of a view v and a target w of another view; small views have no target. With two
    views and the default s = 2 this is BYOL's loss, the sum of both directions. With s = 1/2 it is
    SimSiam's plus 1, which has the same gradient: ``BYOL = 4 (1 + SimSiam)``.

    Nothing in the loss forbids a collapse: equal embeddings of all images are its minimum, 0.

    Terms: ``distance``, the mean without s.

    Args:
        scale: Factor s, positive.

    Reference: Grill et al., NeurIPS 2020, eq. 2, https://arxiv.org/abs/2006.07733; Chen and He,
    CVPR 2021, eqs. 1 to 4, https://arxiv.org/abs/2011.10566

    Example:
        >>> z = torch.eye(2)
        >>> Regression()(z, z, targets=(z, z))["loss"]
        tensor(0.)
    """

    family = "distillation"

    def __init__(self, scale: float = 2.0) -> None:
        super().__init__()
        check_positive(scale=scale)
        self.scale = scale

    def terms(
        self, *views: Tensor, targets: tuple[Tensor, ...], group: Group = SINGLE
    ) -> dict[str, Tensor]:
        predictions, aims = map(normalize_rows, views), list(map(normalize_rows, targets))
        pairs = [
            (p - t).square().sum(dim=1)
            for v, p in enumerate(predictions)
            for w, t in enumerate(aims)
            if v != w
        ]
        distance = group.mean(sum(pairs[1:], pairs[0])) / len(pairs)
        return {"loss": self.scale * distance, "distance": distance}
