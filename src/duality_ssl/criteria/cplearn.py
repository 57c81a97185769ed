"""CPLearn: samples are assigned to random codes, all codes equally often."""

from torch import Tensor
from torch.linalg import vecdot

from duality_ssl.criteria.base import Criterion, check_positive
from duality_ssl.distributed import SINGLE, Group
from duality_ssl.functional import code_temperature, divergence_from_uniform, random_codes


class CPLearn(Criterion):
    r"""Both views are assigned to the same of many random codes, and the batch to all of them.

    .. math:: L = \frac12 \sum_v \mathrm{KL}(m_v \| 1/c)
        + \beta \frac12 \bigl(\mathrm{CE}(P_1, P_2) + \mathrm{CE}(P_2, P_1)\bigr)

    with :math:`P_v = \mathrm{softmax}(h_v K / T)`, fixed codes :math:`K \in \{-1, 1\}^{f \times c}`
    that are drawn from a seed, the mean assignment :math:`m_v` over the batch, and
    :math:`\mathrm{CE}(P, Q) = -\frac1N \sum_{ij} P_{ij} \log Q_{ij}`, whose gradient reaches both
    arguments. The divergence is the authors' code's, not the :math:`-\sum q_j \log m_j` of the
    paper's first version.

    Terms: ``divergence``, the mean of the two views' KL, and ``invariance``, that of the two
    cross-entropies; ``loss = divergence + weight * invariance``.

    Args:
        dimensions: Dimensions f of the rows h, which are expected in [-1, 1]:
            ``tanh(BN(linear(features)))``.
        num_codes: Codes c, many more than there are dimensions.
        invariance: Weight :math:`\beta` of the cross-entropies.
        temperature: T, positive; by default that of the authors for batches of 64 rows,
            :func:`~duality_ssl.functional.code_temperature`. It does not follow the batch size.
        seed: Seed of the codes, which are not part of a checkpoint.

    Reference: Sansone et al., ICML 2025, https://arxiv.org/abs/2410.04959, and
    https://github.com/emsansone/CPLearn

    Example:
        >>> criterion = CPLearn(dimensions=8, num_codes=4)
        >>> h = criterion.codes.T.float()  # each row is a code of its own: all costs are zero
        >>> criterion(h, h)["loss"].abs().round(decimals=3)
        tensor(0.)
    """

    family = "codes"

    def __init__(
        self,
        dimensions: int,
        num_codes: int = 16384,
        invariance: float = 1.0,
        temperature: float | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_positive(dimensions=dimensions, num_codes=num_codes)
        check_positive(or_zero=True, invariance=invariance)
        if temperature is None:
            temperature = code_temperature(dimensions, num_codes, n=64)
        check_positive(temperature=temperature)
        self.dimensions, self.num_codes, self.seed = dimensions, num_codes, seed
        self.invariance, self.temperature = invariance, temperature
        # no buffer: distributed data parallel would send it in every step
        self.codes = random_codes(dimensions, num_codes, seed)

    def terms(self, z1: Tensor, z2: Tensor, group: Group = SINGLE) -> dict[str, Tensor]:
        self.codes = self.codes.to(z1.device)
        codes = self.codes.to(z1.dtype)
        log_p1, log_p2 = ((z @ codes / self.temperature).log_softmax(dim=1) for z in (z1, z2))
        p1, p2 = log_p1.exp(), log_p2.exp()
        divergence = (divergence_from_uniform(p1, group) + divergence_from_uniform(p2, group)) / 2
        invariance = -group.mean(vecdot(p1, log_p2) + vecdot(p2, log_p1)) / 2
        loss = divergence + self.invariance * invariance
        return {"loss": loss, "divergence": divergence, "invariance": invariance}

    def memory(self, n: int, d: int) -> int:
        return 2 * 2 * n * d + 9 * n * self.num_codes + d * self.num_codes
