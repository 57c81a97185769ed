"""The teacher: its schedule, its step in float32, and what it leaves out."""

import math

import pytest
import torch
from torch import nn

from duality_ssl.networks.teacher import Teacher


def networks(seed: int = 0) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(seed)
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.BatchNorm1d(3))
    return backbone, nn.Linear(3, 2)


@pytest.mark.parametrize(
    ("step", "total", "expected"),
    [(0, 10, 0.99), (5, 10, 0.995), (10, 10, 1.0), (7, math.inf, 0.99)],
    ids=["first", "half", "last", "endless"],
)
def test_momentum_of_the_teacher_rises_to_1(step: int, total: float, expected: float) -> None:
    assert Teacher(*networks(), 0.99).momentum_at(step, total) == pytest.approx(expected, rel=1e-14)


def test_teacher_is_an_average_of_parameters_and_keeps_its_own_buffers() -> None:
    backbone, projector = networks()
    teacher = Teacher(backbone, projector, 0.9)
    old = [p.clone() for p in teacher.parameters()]
    with torch.no_grad():
        for parameter in [*backbone.parameters(), *projector.parameters()]:
            parameter += torch.randn_like(parameter)
    backbone(torch.randn(8, 4))
    teacher.update(backbone, projector, step=5, total_steps=10)
    new = [*backbone.parameters(), *projector.parameters()]
    for now, before, towards in zip(teacher.parameters(), old, new, strict=True):
        torch.testing.assert_close(now, 0.95 * before + 0.05 * towards)
    assert teacher.backbone[2].num_batches_tracked == 0
    teacher(torch.randn(8, 4))
    assert teacher.backbone[2].num_batches_tracked == 1


def test_teacher_has_no_gradient() -> None:
    teacher = Teacher(*networks(), 0.9)
    images = torch.randn(8, 4, requires_grad=True)
    assert not teacher(images).requires_grad
    assert not any(p.requires_grad for p in teacher.parameters())


def test_teacher_starts_again_from_weights_and_buffers() -> None:
    teacher, (backbone, projector) = Teacher(*networks(), 0.9), networks(seed=1)
    backbone(torch.randn(8, 4))
    teacher.restart(backbone, projector)
    for ours, theirs in ((teacher.backbone, backbone), (teacher.projector, projector)):
        torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("momentum", [-0.1, 1.5, math.nan])
def test_momentum_of_a_teacher_out_of_range_is_refused(momentum: float) -> None:
    with pytest.raises(ValueError, match=r"`teacher_momentum` in \[0, 1\], or not set"):
        Teacher(*networks(), momentum)
