"""DINO's head and CPLearn's: layers, and what is fixed in them."""

import pytest
import torch
from torch import nn

from duality_ssl.networks.heads import Prototypes, create_prototype_head, create_tanh_head


def kinds(head: nn.Sequential) -> list[str]:
    return [type(layer).__name__ for layer in head]


def test_dino_head_has_gelu_and_no_batch_norm() -> None:
    head = create_prototype_head("16-16-8-d", 32, embedding_dim=40)
    assert kinds(head) == ["Linear", "GELU", "Linear", "GELU", "Linear", "Prototypes"]
    widths = [layer.out_features for layer in head if isinstance(layer, nn.Linear)]
    assert widths == [16, 16, 8, 40]
    biases = [layer.bias is not None for layer in head if isinstance(layer, nn.Linear)]
    assert biases == [True, True, True, False]


def test_prototypes_alone_are_a_head() -> None:
    assert kinds(create_prototype_head("40", 32)) == ["Prototypes"]


@pytest.mark.parametrize("scale", [0.01, 100.0])
def test_lengths_of_rows_and_prototypes_change_nothing(scale: float) -> None:
    layer, rows = Prototypes(8, 12), torch.randn(5, 8)
    expected = layer(rows)
    assert expected.abs().max() <= 1 + 1e-6
    torch.testing.assert_close(layer(scale * rows), expected)
    with torch.no_grad():
        layer.weight *= scale
    torch.testing.assert_close(layer(rows), expected)
    (gradient,) = torch.autograd.grad(layer(rows).square().sum(), layer.weight)
    along = (gradient * layer.weight).sum(dim=1)
    torch.testing.assert_close(along, torch.zeros(12), rtol=0, atol=1e-4)


def test_cplearn_head_is_bounded() -> None:
    head = create_tanh_head("2048-d", 16, embedding_dim=24)
    assert kinds(head)[-3:] == ["Linear", "BatchNorm1d", "Tanh"]
    h = head(100 * torch.randn(32, 16)).detach()
    assert h.shape == (32, 24)
    assert h.abs().max() <= 1
    assert h.std().item() == pytest.approx(0.63, abs=0.05)  # of a standard normal variable's tanh
