"""The teacher: a moving average of the network's weights, which makes the targets."""

import copy
import math

import torch
from torch import Tensor, nn

from duality_ssl._internals.torch import foreach_lerp_


class Teacher(nn.Module):
    r"""A backbone and a projector that follow those in training, without gradient.

    .. math:: \theta_t \leftarrow m_k \theta_t + (1 - m_k) \theta, \qquad
        m_k = 1 - (1 - m_0) \frac{1 + \cos(\pi k / K)}{2}

    after optimizer step k = 0, ..., K - 1. Parameters are averaged, buffers are not: in a fit the
    teacher is in train mode, so that its batch norms normalize with their own batch and keep their
    own running statistics.

    Args:
        backbone: Backbone to copy.
        projector: Projector to copy.
        momentum: :math:`m_0`, in [0, 1].

    Raises:
        ValueError: If the momentum is out of its range.

    Source: section 3.1 of Grill et al., NeurIPS 2020 (BYOL), https://arxiv.org/abs/2006.07733; MoCo
    v3 and DINO have the same schedule. MoCo v3 moves the teacher before it computes keys, which is
    the same as after the optimizer step before.
    """

    def __init__(self, backbone: nn.Module, projector: nn.Module, momentum: float) -> None:
        super().__init__()
        if not 0 <= momentum <= 1:
            raise ValueError(
                f"Expected `teacher_momentum` in [0, 1], or not set, but got {momentum}."
            )
        self.momentum = momentum
        self.backbone, self.projector = copy.deepcopy(backbone), copy.deepcopy(projector)
        self.requires_grad_(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Compute embeddings ``(N, D)`` of images ``(N, C, H, W)``."""
        embeddings: Tensor = self.projector(self.backbone(images))
        return embeddings

    @torch.no_grad()
    def update(
        self, backbone: nn.Module, projector: nn.Module, step: int, total_steps: float
    ) -> None:
        """Move towards the network after optimizer step number ``step`` of ``total_steps``.

        With ``math.inf`` steps the momentum is constant. Weights in half precision would not move:
        a step of 0.01 is rounded away.
        """
        own: list[Tensor] = list(self.parameters())
        new: list[Tensor] = [*backbone.parameters(), *projector.parameters()]
        foreach_lerp_(own, new, 1 - self.momentum_at(step, total_steps))

    def momentum_at(self, step: int, total_steps: float) -> float:
        """The momentum of a step, from the first one's to 1."""
        return 1 - (1 - self.momentum) * (1 + math.cos(math.pi * step / total_steps)) / 2

    def restart(self, backbone: nn.Module, projector: nn.Module) -> None:
        """Take over weights and buffers, as of a network that was just loaded."""
        self.backbone.load_state_dict(backbone.state_dict())
        self.projector.load_state_dict(projector.state_dict())
