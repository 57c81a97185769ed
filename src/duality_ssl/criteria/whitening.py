"""W-MSE: the distance of views after whitening."""

from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from duality_ssl.criteria.base import Criterion
from duality_ssl.functional import normalize_rows, whiten
from duality_ssl.randomness import CRITERION, derive_seed


class WMSE(Criterion):
    r"""Cosine distance of the whitened views.

    .. math:: L = \frac{2}{V (V - 1)} \sum_{v < w} \Bigl(2 - \frac2N \sum_i
        \cos(a_{v,i}, a_{w,i})\Bigr), \qquad a = \bar z L^{-\top}

    of V views, two or more, where :math:`L L^\top` is the unbiased covariance. Each view is
    whitened by itself, in random sub-batches of the batch, the same for all views and drawn anew in
    each step. Whitening is what keeps the embeddings from collapsing. The gradient passes through
    it in both views of a pair.

    A covariance needs more samples than dimensions, so there is no smaller side; twice as many
    are advisable. It is computed in float64. Each process computes all sub-batches.

    Terms: ``invariance``, which is the loss.

    Args:
        w_size: Samples of a sub-batch, more than D, which have to divide the batch. The default is
            the whole batch; the paper takes 128, for D = 64.

    Reference: Ermolov et al., ICML 2021, eq. 4-6, https://arxiv.org/abs/2007.06346

    Example:
        >>> square = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        >>> WMSE()(square, 5 * square + 1, step=0)["loss"].round(decimals=3)  # equal once white
        tensor(0.)
    """

    family = "dimension"
    side = "D x D"

    def __init__(self, w_size: int | None = None) -> None:
        super().__init__()
        if w_size is not None and w_size < 2:
            raise ValueError(f"Expected `w_size` to be at least 2, but got {w_size}.")
        self.w_size = w_size

    @torch.compiler.disable
    def draw(self, step: int, z: Tensor) -> Tensor:
        """Draw the step's order of the samples, of which consecutive ones are a sub-batch."""
        generator = np.random.default_rng(derive_seed(CRITERION, step))
        return torch.from_numpy(generator.permutation(len(z))).to(z.device)

    def terms(self, *views: Tensor, step: int) -> dict[str, Tensor]:
        n, d = views[0].shape
        size = self.w_size or n
        if n % size:
            raise ValueError(
                f"Expected `w_size` to divide the batch, but got {size} and {n} samples: set it to "
                "a divisor, or leave it out for the whole batch."
            )
        if size <= d:
            raise ValueError(
                f"Expected more samples than dimensions to whiten, but got {size} and D={d}: "
                "make the batch or `w_size` larger, or the embeddings narrower."
            )
        order = self.draw(step, views[0])
        parts = (whiten(z[order].unflatten(0, (-1, size))).flatten(0, 1) for z in views)
        units = [normalize_rows(part) for part in parts]
        cosines = [(a * b).sum(dim=1).mean() for a, b in combinations(units, 2)]
        loss = 2 - 2 * torch.stack(cosines).mean()
        return {"loss": loss, "invariance": loss}

    def memory(self, n: int, d: int) -> int:
        return 2 * 5 * 2 * n * d + 2 * 4 * 2 * (n // (self.w_size or n)) * d * d
