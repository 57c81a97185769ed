"""Effective rank of features (RankMe), which needs no labels."""

import torch
from torch import Tensor

from duality_ssl.functional import rankme

RANKME_SAMPLES = 25_600
"""Most samples that an effective rank is computed from, as in the paper of RankMe."""


def effective_rank(features: Tensor, max_samples: int = RANKME_SAMPLES) -> float:
    """RankMe of at most ``max_samples`` rows, spread evenly over the set.

    Args:
        features: Features or embeddings of shape ``(N, F)``.
        max_samples: Most rows.

    Returns:
        Effective rank in ``[1, min(N, F)]``.

    Reference: Garrido et al., RankMe, ICML 2023, https://arxiv.org/abs/2210.02885
    """
    if len(features) > max_samples:
        rows = torch.linspace(0, len(features) - 1, max_samples, dtype=torch.float64).round().long()
        features = features[rows.to(features.device)]
    return rankme(features.float()).item()
