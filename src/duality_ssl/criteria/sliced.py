"""Criteria on random directions: the embeddings should be normal along each of them."""

import numpy as np
import torch
from torch import Tensor

from duality_ssl.criteria.base import Criterion, check_positive
from duality_ssl.distributed import SINGLE, Group
from duality_ssl.functional import epps_pulley, quantile_distances
from duality_ssl.functional.precision import rounding_noise
from duality_ssl.randomness import CRITERION, derive_seed


class _Sliced(Criterion):
    """An invariance and a regularization, which looks along random directions."""

    family = "directions"

    def __init__(self, regularization: float, directions: int) -> None:
        super().__init__()
        check_positive(or_zero=True, regularization=regularization)
        if regularization > 1:
            raise ValueError(f"Expected `regularization` to be at most 1, got {regularization}.")
        if directions < 1:
            raise ValueError(f"Expected at least 1 of `directions`, but got {directions}.")
        self.regularization = regularization
        self.directions = directions

    @torch.compiler.disable
    def draw(self, step: int, z: Tensor) -> Tensor:
        """Draw the step's directions for embeddings like z: columns of unit norm, ``(D, K)``.

        They depend on the step alone: alike on all processes and after a resume.
        """
        generator = np.random.default_rng(derive_seed(CRITERION, step))
        directions = generator.standard_normal((z.shape[1], self.directions))
        directions /= np.linalg.norm(directions, axis=0)
        return torch.from_numpy(directions).to(z)

    def _weighted(self, invariance: Tensor, **regularization: Tensor) -> dict[str, Tensor]:
        total = sum(regularization.values(), torch.zeros_like(invariance))
        loss = (1 - self.regularization) * invariance + self.regularization * total
        return {"loss": loss, "invariance": invariance, **regularization}


def _invariance(views: tuple[Tensor, ...], group: Group) -> Tensor:
    """Compute the mean squared distance of the views to their mean: a quarter of the MSE of two."""
    z = torch.stack(views)
    return group.mean((z - z.mean(dim=0)).square())


class LeJEPA(_Sliced):
    r"""Views that agree, and SIGReg: along each direction the embeddings are standard normal.

    .. math:: L = (1 - \lambda) \frac{1}{VND} \sum_v \|z_v - \bar z\|_F^2
        + \lambda \frac{1}{VK} \sum_{v,k} T(z_v a_k)

    of V views, two or more, :math:`\bar z` their mean, with T the statistic of
    :func:`~duality_ssl.functional.epps_pulley` and K random unit directions :math:`a_k`, drawn anew
    in each step. T grows with the batch, so a weight :math:`\lambda` is that of a batch size.

    The cost is linear in N and in D; processes share the samples. As the embeddings collapse the
    gradient of the statistic vanishes.

    Terms: ``invariance`` and ``regularization``, the two sums without their weights.

    Args:
        regularization: Weight :math:`\lambda`, at most 1; that of the invariance is
            :math:`1 - \lambda`.
        directions: Number K of directions.

    Reference: Balestriero & LeCun, 2025, https://arxiv.org/abs/2511.08544

    Example:
        >>> z1, z2 = torch.randn(2, 64, 8)
        >>> sorted(LeJEPA(directions=16)(z1, z2, step=0))
        ['invariance', 'loss', 'regularization']
    """

    def __init__(self, regularization: float = 0.05, directions: int = 1024) -> None:
        super().__init__(regularization, directions)

    def terms(self, *views: Tensor, step: int, group: Group = SINGLE) -> dict[str, Tensor]:
        directions = self.draw(step, views[0])
        statistics = torch.stack([epps_pulley(z @ directions, group) for z in views])
        return self._weighted(_invariance(views, group), regularization=statistics.mean())

    def memory(self, n: int, d: int) -> int:
        return 3 * 2 * n * d + d * self.directions + 2 * 17 * n * self.directions


class VISReg(_Sliced):
    r"""Views that agree, and embeddings of the scale, shape and centre of a standard normal.

    .. math:: L = (1 - \lambda) \frac{1}{VND} \sum_v \|z_v - \bar z\|_F^2
        + \frac{\lambda}{V} \sum_v (\mathrm{scale}_v + \mathrm{shape}_v + \mathrm{center}_v)

    of V views, two or more, :math:`\bar z` their mean. :math:`\mu_j` is the mean and
    :math:`\sigma_j` the biased standard deviation, plus :math:`10^{-6}`, of dimension j. The scale
    is :math:`\frac1D \sum_j (\sigma_j - 1)^2`, the center :math:`\frac1D \sum_j \mu_j^2`. The shape
    is the mean of :func:`~duality_ssl.functional.quantile_distances` of :math:`y a_k`, where
    :math:`y = (z - \mu)/\sigma` without the gradient of :math:`\sigma`, and :math:`a_k` are K
    random unit directions, drawn anew in each step. A dimension that is constant but for rounding
    is 0 in y.

    A process sorts the samples of all along its share of the directions.

    Terms: ``invariance``, ``scale``, ``shape`` and ``center``, means over the views, without their
    weights.

    Args:
        regularization: Weight :math:`\lambda` of each of the three, at most 1; that of the
            invariance is :math:`1 - \lambda`. The paper takes 0.6 for small data sets.
        directions: Number K of directions.

    Reference: Wu et al., 2026, eq. 1-6, https://arxiv.org/abs/2606.02572

    Example:
        >>> z1, z2 = torch.randn(2, 64, 8)
        >>> sorted(VISReg(directions=16)(z1, z2, step=0))
        ['center', 'invariance', 'loss', 'scale', 'shape']
    """

    def __init__(self, regularization: float = 0.9, directions: int = 4096) -> None:
        super().__init__(regularization, directions)

    def terms(self, *views: Tensor, step: int, group: Group = SINGLE) -> dict[str, Tensor]:
        own = self.draw(step, views[0])[:, group.rank :: group.world_size]
        regularizations = zip(*(self._regularizations(z, own, group) for z in views), strict=True)
        scale, shape, center = (torch.stack(each).mean() for each in regularizations)
        invariance = _invariance(views, group)
        return self._weighted(invariance, scale=scale, shape=shape, center=center)

    def _regularizations(
        self, z: Tensor, directions: Tensor, group: Group
    ) -> tuple[Tensor, Tensor, Tensor]:
        mean = group.sum(z.mean(dim=0)) / group.world_size
        deviations = z - mean
        variance = group.sum(deviations.square().mean(dim=0)) / group.world_size
        spread = variance > 0
        std = torch.where(spread, torch.where(spread, variance, 1.0).sqrt(), 0.0) + 1e-6
        constant = std.detach() - 1e-6 <= rounding_noise(mean.detach())
        y = deviations * torch.where(constant, 0.0, 1 / std.detach())
        distances = quantile_distances(group.gather(y) @ directions)
        shape = group.sum(distances.sum()) / self.directions
        return (std - 1).square().mean(), shape, mean.square().mean()

    def memory(self, n: int, d: int) -> int:
        return 5 * 2 * n * d + d * self.directions + 2 * 4 * n * self.directions
