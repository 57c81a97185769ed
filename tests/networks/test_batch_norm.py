"""Batch norm over processes equals that of one process with all rows, also in timm's networks."""

import copy
from collections.abc import Callable

import pytest
import timm
import torch
from helpers.gloo_processes import Processes
from timm.layers import BatchNormAct2d, SplitBatchNorm2d, convert_sync_batchnorm
from torch import Tensor, nn

from duality_ssl import distributed
from duality_ssl.networks.backbones import create_backbone
from duality_ssl.networks.batch_norm import SyncBatchNorm, synchronize_batch_norm


@pytest.fixture(scope="module")
def two(gloo_processes: Callable[[int], Processes]) -> Processes:
    return gloo_processes(2)


def _batch_norm(norm: nn.Module, shape: tuple[int, ...]) -> dict[str, Tensor]:
    """Output, gradients and buffers of a batch norm in which this process has its rows."""
    group = distributed.process_group()
    module = nn.Sequential(copy.deepcopy(norm)).double()
    for parameter, value in zip(module.parameters(), (0.5, 2.0), strict=False):
        nn.init.constant_(parameter, value)
    if group.world_size > 1:
        synchronize_batch_norm(module, torch.device("cpu"))
        assert isinstance(module[0], SyncBatchNorm)
    generator = torch.Generator().manual_seed(0)
    x, weights = torch.randn(2, *shape, dtype=torch.float64, generator=generator)
    rows = shape[0] // group.world_size
    own = (10 + x)[group.own(rows)].requires_grad_()
    out = module(own)
    (out * weights[group.own(rows)]).sum().backward()
    assert own.grad is not None
    parts = {"out": out.detach(), "grad": own.grad}
    sums = {f"d{name}": p.grad for name, p in module.named_parameters() if p.grad is not None}
    state = {name: value.double() for name, value in module.state_dict().items()}
    gathered = {name: distributed.all_gather_rows(part) for name, part in parts.items()}
    summed = {name: distributed.all_reduce_sum(part) for name, part in sums.items()}
    evaluated = {"evaluated": module.eval()(x).detach()}
    return {**gathered, **summed, **state, **evaluated}


NORMS = [
    pytest.param(kind(5, **options), (6, 5, 4, 2)[:dims], id=f"{dims}d-{options}")
    for kind, dims in [(nn.BatchNorm1d, 2), (nn.BatchNorm1d, 3), (nn.BatchNorm2d, 4)]
    for options in [
        *({}, {"affine": False}, {"momentum": None}),
        *({"track_running_stats": False}, {"eps": 0.1}),
    ]
]
TIMMS_NORMS = [
    pytest.param(BatchNormAct2d(5, **options), (6, 5, 4, 2), id=f"timm-{case}")
    for case, options in {
        "relu": {},
        "activation-with-a-weight": {"act_layer": nn.PReLU},
        "no-activation": {"apply_act": False},
        "drop": {"drop_layer": nn.Softsign},  # no dropout, which each process draws for itself
    }.items()
]


@pytest.mark.parametrize(("norm", "shape"), [*NORMS, *TIMMS_NORMS])
def test_batch_norm_is_that_of_all_rows(
    two: Processes, norm: nn.Module, shape: tuple[int, ...]
) -> None:
    expected = _batch_norm(norm, shape)
    for result in two.run(_batch_norm, norm, shape):
        assert result.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(result[name], value, rtol=1e-12, atol=1e-12, msg=name)


def _assert_network_is_that_of_all_rows(name: str) -> None:
    """Compare a network in which this process has its rows with one that has them all."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    one = create_backbone(name, image_size=32).double()
    network = copy.deepcopy(one)
    synchronize_batch_norm(network, torch.device("cpu"))
    images = torch.randn(8, 3, 32, 32, dtype=torch.float64, generator=generator)
    weights = torch.randn(8, one.num_features, dtype=torch.float64, generator=generator)
    own = distributed.process_group().own(4)
    expected, out = one(images), network(images[own])
    (expected * weights).sum().backward()
    (out * weights[own]).sum().backward()
    for parameter in network.parameters():
        parameter.grad = distributed.all_reduce_sum(parameter.grad)
    torch.testing.assert_close(out, expected[own], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(network.state_dict(), one.state_dict(), rtol=1e-9, atol=1e-9)
    # the gradient of a bias before another batch norm is rounding: one scale for all
    scale = max(parameter.grad.abs().max().item() for parameter in one.parameters())
    for (key, ours), theirs in zip(network.named_parameters(), one.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-11 * scale, msg=key)
    evaluated = network.eval()(images)
    torch.testing.assert_close(evaluated, one.eval()(images), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("test_resnet", id="BatchNorm2d"),
        pytest.param("levit_128s", id="BatchNorm1d"),
        pytest.param("test_efficientnet", id="BatchNormAct2d"),
        pytest.param("densenet121", id="BatchNormAct2d-before-convolutions"),
    ],
)
def test_networks_of_timm_are_those_of_all_rows(two: Processes, name: str) -> None:
    two.run(_assert_network_is_that_of_all_rows, name)


@pytest.mark.slow
def test_sync_batchnorm_takes_a_network_of_every_family_of_timm() -> None:
    for family in timm.list_modules():
        with torch.device("meta"):
            network = create_backbone(f"timm/{timm.list_models(module=family)[0]}")
        names = [*network.state_dict()]
        synchronize_batch_norm(network, torch.device("cpu"))
        assert [*network.state_dict()] == names
        assert not any(
            isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in network.modules()
        )


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize(
    "convert", [nn.Identity(), convert_sync_batchnorm], ids=["as-built", "converted-by-timm"]
)
def test_lightning_leaves_timms_activation_where_it_is(
    device: str, convert: Callable[[nn.Module], nn.Module]
) -> None:
    """PyTorch's own conversion, which is Lightning's, drops it without a word."""
    network = nn.Sequential(BatchNormAct2d(3))
    images = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    expected = network.eval()(images)
    assert nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(network))(images).min() < 0
    network = convert(network)
    synchronize_batch_norm(network, torch.device(device))
    torch.testing.assert_close(nn.SyncBatchNorm.convert_sync_batchnorm(network)(images), expected)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_batch_norm_that_may_do_more_is_refused(device: str) -> None:
    network = nn.Sequential(nn.Sequential(SplitBatchNorm2d(3)))
    with pytest.raises(ValueError, match=r"SplitBatchNorm2d, .* --trainer.sync_batchnorm false"):
        synchronize_batch_norm(network, torch.device(device))
