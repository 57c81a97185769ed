"""Projectors that end otherwise than in a linear layer: DINO's prototypes, CPLearn's tanh.

Each is built from the notation of :func:`~duality_ssl.networks.projector.parse_projector`.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from duality_ssl.networks.projector import create_projector, parse_projector


class Prototypes(nn.Linear):
    """Cosines ``(N, K)`` of rows ``(N, D)`` and K trained prototypes.

    Both have unit norm in the product, whatever the norms of the weights: it is DINO's last layer
    with a norm fixed to 1.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def forward(self, rows: Tensor) -> Tensor:
        """Multiply normalized rows by normalized prototypes."""
        return F.linear(F.normalize(rows, dim=1), F.normalize(self.weight, dim=1))


def create_prototype_head(
    spec: str, in_features: int, embedding_dim: int | None = None
) -> nn.Sequential:
    """Build DINO's head ``(N, in_features)`` to ``(N, K)``; its last width is K prototypes.

    The linear layers before have biases and a GELU between them, and no batch norm:
    ``"2048-2048-256-65536"`` is the paper's. Their weights start from a truncated normal
    distribution of standard deviation 0.02, their biases from 0.

    Example:
        >>> create_prototype_head("64-32-d", 128, embedding_dim=1000)[-1]
        Prototypes(in_features=32, out_features=1000, bias=False)

    Reference: Caron et al., ICCV 2021, appendix C, https://arxiv.org/abs/2104.14294
    """
    *widths, prototypes = parse_projector(spec, embedding_dim)
    layers: list[nn.Module] = []
    for width in widths:
        linear = nn.Linear(in_features, width)
        nn.init.trunc_normal_(linear.weight, std=0.02)
        nn.init.zeros_(linear.bias)
        layers += [nn.GELU(), linear] if layers else [linear]
        in_features = width
    return nn.Sequential(*layers, Prototypes(in_features, prototypes))


def create_tanh_head(
    spec: str, in_features: int, embedding_dim: int | None = None
) -> nn.Sequential:
    """Build CPLearn's head ``(N, in_features)`` to ``(N, D)`` in [-1, 1]: a projector, BN, tanh.

    ``"2048"`` is the authors': one linear layer.

    Example:
        >>> [type(layer).__name__ for layer in create_tanh_head("64", 128)]
        ['Linear', 'BatchNorm1d', 'Tanh']

    Reference: Sansone et al., ICML 2025, https://arxiv.org/abs/2410.04959
    """
    projector = create_projector(spec, in_features, embedding_dim)
    width = parse_projector(spec, embedding_dim)[-1]
    return nn.Sequential(*projector, nn.BatchNorm1d(width), nn.Tanh())
