"""Which parameters are decayed and adapted: weights of layers, but for what a network exempts."""

from collections import OrderedDict
from fnmatch import fnmatchcase

import pytest
import torch
from torch import nn
from torch.optim import SGD

from duality_ssl.methods.optimization import parameter_groups
from duality_ssl.networks.backbones import create_backbone
from duality_ssl.optim import LARS


class Everything(nn.Module):
    """One parameter of each kind, named by where it belongs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.linear = nn.Linear(4, 5)
        self.batch_norm = nn.BatchNorm2d(4)
        self.layer_norm = nn.LayerNorm((4, 6, 6))  # its parameters are not vectors
        self.group_norm = nn.GroupNorm(2, 4)
        self.layer_scale = nn.Parameter(torch.ones(4, 1, 1))
        self.temperature = nn.Parameter(torch.ones(()))
        self.bias = nn.Parameter(torch.ones(4, 5))
        self.frozen = nn.Parameter(torch.ones(4, 4), requires_grad=False)
        self.again = self.linear


def test_parameter_groups() -> None:
    module = Everything()
    names = {parameter: name for name, parameter in module.named_parameters()}
    weights, rest = parameter_groups(module, weight_decay=0.1)
    assert [names[p] for p in weights["params"]] == ["conv.weight", "linear.weight"]
    assert {names[p] for p in rest["params"]} == set(names.values()) - {
        "conv.weight",
        "linear.weight",
        "frozen",
    }
    assert (weights["weight_decay"], weights["adapt"]) == (0.1, True)
    assert (rest["weight_decay"], rest["adapt"]) == (0.0, False)
    assert len(rest["params"]) == len(set(rest["params"]))


@pytest.mark.parametrize("name", ["resnet_tiny", "resnet18_32", "convnext_tiny"])
def test_parameter_groups_of_a_backbone_hold_every_parameter_once(name: str) -> None:
    with torch.device("meta"):
        module = create_backbone(name)
    weights, rest = parameter_groups(module, weight_decay=0.1)
    assert len(weights["params"]) + len(rest["params"]) == len(list(module.parameters()))
    assert all(parameter.ndim in (2, 4) for parameter in weights["params"])
    kernels = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    assert len(weights["params"]) == len(kernels)


@pytest.mark.parametrize(
    ("name", "exempt"),
    [
        pytest.param(
            "vit_tiny_patch16_224", {"cls_token", "pos_embed"}, id="class-token-and-positions"
        ),
        pytest.param(
            "vit_base_patch14_reg4_dinov2",
            {"cls_token", "pos_embed", "reg_token"},
            id="register-tokens",
        ),
        pytest.param(
            "deit_tiny_distilled_patch16_224",
            {"cls_token", "dist_token", "pos_embed"},
            id="distillation-token",
        ),
        pytest.param(
            "beit_base_patch16_224",
            {"cls_token", "blocks.*.attn.relative_position_bias_table"},
            id="tables-of-beit",
        ),
        pytest.param(
            "swin_tiny_patch4_window7_224",
            {"layers.*.blocks.*.attn.relative_position_bias_table"},
            id="tables-of-swin",
        ),
        pytest.param(
            "xcit_nano_12_p16_224", {"cls_token", "pos_embed.*"}, id="pattern-instead-of-a-name"
        ),
        pytest.param("resnet18", set(), id="resnet18"),
        pytest.param("timm/resnet18", set(), id="resnet18-of-timm"),
    ],
)
def test_parameter_groups_exempt_what_a_network_of_timm_does(name: str, exempt: set[str]) -> None:
    with torch.device("meta"):
        module = nn.Sequential(
            OrderedDict(backbone=create_backbone(name), projector=nn.Linear(2, 2))
        )
    names = {parameter: name for name, parameter in module.named_parameters()}
    weights, rest = ([names[p] for p in g["params"]] for g in parameter_groups(module, 0.1))
    kernels = {
        f"{name}.weight"
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Conv2d | nn.Linear)
    }

    def exempted(name: str) -> bool:
        return any(fnmatchcase(name, f"backbone.{pattern}") for pattern in exempt)

    assert all(any(fnmatchcase(name, f"backbone.{p}") for name in rest) for p in exempt)
    assert {*weights} == {name for name in kernels if not exempted(name)}


class Own(nn.Module):
    """A module that is not timm's, and says what is exempt in it and below it."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.kept = nn.Parameter(torch.ones(3, 2)), nn.Parameter(torch.ones(3, 2))
        self.frozen = nn.Parameter(torch.ones(3, 2), requires_grad=False)
        self.layer = nn.Linear(2, 3)
        self.again = self.layer

    def no_weight_decay(self) -> list[str]:
        return ["table", "frozen", "again.weight", "absent", "kep"]


def test_parameter_groups_exempt_what_a_module_at_any_depth_names() -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.ModuleDict({"deep": nn.Sequential(Own())}))
    own = module[1]["deep"][0]
    weights, rest = parameter_groups(module, weight_decay=0.1)
    assert {*weights["params"]} == {module[0].weight, own.kept}
    assert {*rest["params"]} == {module[0].bias, own.table, own.layer.weight, own.layer.bias}


@pytest.mark.parametrize("make", [LARS, SGD, torch.optim.AdamW], ids=["LARS", "SGD", "AdamW"])
def test_parameter_groups_suit_every_optimizer(make: type[torch.optim.Optimizer]) -> None:
    module = nn.Linear(2, 3)
    optimizer = make(parameter_groups(module, weight_decay=0.1), lr=0.1)
    module(torch.ones(2, 2)).sum().backward()
    optimizer.step()
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]


def test_parameter_groups_adapt_weights_that_are_not_decayed() -> None:
    module = nn.Linear(4, 4)
    before = module.weight.detach().clone()
    optimizer = LARS(parameter_groups(module, weight_decay=0.0), lr=1.0, momentum=0.0)
    module.weight.grad = torch.randn(4, 4)
    optimizer.step()
    assert (module.weight - before).norm().item() == pytest.approx(
        0.001 * before.norm().item(), rel=1e-4
    )


@pytest.mark.parametrize(
    ("module", "message"),
    [
        pytest.param(nn.Identity(), "Identity to have trainable parameters", id="nothing"),
        pytest.param(nn.Linear(2, 2).requires_grad_(False), "but it has none", id="frozen"),
    ],
)
def test_parameter_groups_refuse(module: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parameter_groups(module, 0.1)
