"""The paper's notation for projectors, and the layers it stands for."""

import pytest
import torch
from torch import nn

from duality_ssl.networks.projector import create_projector, parse_projector


@pytest.mark.parametrize(
    ("spec", "embedding_dim", "expected"),
    [
        pytest.param("8192-8192-2048", None, [8192, 8192, 2048], id="numbers"),
        pytest.param("8192-8192-2048", 2048, [8192, 8192, 2048], id="numbers-repeated"),
        pytest.param("8192-8192-d", 512, [8192, 8192, 512], id="wide-d"),
        pytest.param("2048-d", 256, [2048, 256], id="shallow-d"),
        pytest.param("d-d-d", 1024, [1024, 1024, 1024], id="d-d-d"),
        pytest.param("64", None, [64], id="linear"),
        pytest.param("d", 64, [64], id="linear-d"),
        pytest.param("2048-2048-n", None, [2048, 2048], id="ends-in-a-norm"),
        pytest.param("512-d-b", 64, [512, 64], id="ends-in-a-bias"),
    ],
)
def test_notation_is_read(spec: str, embedding_dim: int | None, expected: list[int]) -> None:
    assert parse_projector(spec, embedding_dim) == expected


@pytest.mark.parametrize(
    ("spec", "embedding_dim", "message"),
    [
        pytest.param("8192--d", 8, "part 2 of '8192--d' is empty", id="two-hyphens"),
        pytest.param("", None, "part 1 of '' is empty", id="empty"),
        pytest.param("512-", None, "part 2 of '512-' is empty", id="hanging"),
        pytest.param("-5", None, "part 1 of '-5' is empty", id="negative"),
        pytest.param("a-b", None, "part 1 of 'a-b' is 'a'", id="letters"),
        pytest.param("n", None, "part 1 of 'n' is 'n'", id="norm-alone"),
        pytest.param("64-n-n", None, "part 2 of '64-n-n' is 'n'", id="two-norms"),
        pytest.param("0-8", None, "part 1 of '0-8' is '0'", id="zero"),
        pytest.param("08-8", None, "part 1 of '08-8' is '08'", id="leading-zero"),
        pytest.param("8-1048577", None, "part 2 of '8-1048577' is '1048577'", id="too-wide"),
        pytest.param("8 - 8", None, "part 1 of '8 - 8' is '8 '", id="spaces"),
        pytest.param("8.5", None, "part 1 of '8.5' is '8.5'", id="fraction"),
        pytest.param("8-²", None, "part 2 of '8-²' is '²'", id="superscript"),
        pytest.param("d-D", 8, "part 2 of 'd-D' is 'D'", id="capital-d"),
        pytest.param("512-d", None, "`embedding_dim` is not set", id="d-without-value"),
        pytest.param(
            "512-512", 64, "last width of projector '512-512', but got 64", id="contradiction"
        ),
        pytest.param("d-512", 64, "last width of projector 'd-512', but got 64", id="d-not-last"),
        pytest.param(
            "512-d",
            0,
            "`embedding_dim` in 1 ... 1048576, or not set, but got 0",
            id="no-dimension",
        ),
    ],
)
def test_notation_that_cannot_be_read_is_named(
    spec: str, embedding_dim: int | None, message: str
) -> None:
    with pytest.raises(ValueError, match="Expected") as error:
        parse_projector(spec, embedding_dim)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_layers_are_the_papers() -> None:
    projector = create_projector("32-16-d", 128, embedding_dim=8)
    kinds = [type(layer) for layer in projector]
    assert kinds == [
        nn.Linear,
        nn.BatchNorm1d,
        nn.ReLU,
        nn.Linear,
        nn.BatchNorm1d,
        nn.ReLU,
        nn.Linear,
    ]
    linears = [layer for layer in projector if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linears] == [
        (128, 32),
        (32, 16),
        (16, 8),
    ]
    assert all(layer.bias is None for layer in linears)
    assert projector(torch.randn(4, 128)).shape == (4, 8)


def test_embedding_dim_may_be_left_out() -> None:
    assert create_projector("512-512-512", 128, None)[-1].out_features == 512
    assert create_projector("512-512-512", 128)[-1].out_features == 512


def test_one_width_is_one_linear_layer() -> None:
    (layer,) = create_projector("16", 4)
    assert isinstance(layer, nn.Linear)
