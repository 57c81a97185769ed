"""Stages of a backbone by hand, what is frozen of them, and the rates of layer-wise decay."""

import math
from collections.abc import Sequence

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn

from duality_ssl.networks.backbones import create_backbone
from duality_ssl.networks.stages import (
    freeze_stages,
    hold_frozen,
    layer_scales,
    split_stages,
)

# how the names of each stage's parameters begin; then of those behind the last stage
RESNET = [("conv1.", "bn1."), *((f"layer{i}.",) for i in range(1, 5))]
STAGES: dict[str, tuple[list[tuple[str, ...]], tuple[str, ...]]] = {
    "resnet_tiny": ([("stem.",), *((f"stages.{i}.",) for i in range(3))], ()),
    "resnet18": (RESNET, ()),
    "resnet18_32": (RESNET, ()),
    "timm/resnet18": (RESNET, ()),
    "convnext_tiny": (
        [
            *(("features.0.",), ("features.1.",), ("features.2.", "features.3.")),
            *(("features.4.", "features.5."), ("features.6.", "features.7.")),
        ],
        ("classifier.0.",),
    ),
    "timm/convnext_tiny": (
        [("stem.",), *((f"stages.{i}.",) for i in range(4))],
        ("head.norm.",),
    ),
    "vit_base_patch14_reg4_dinov2": (
        [
            ("cls_token", "reg_token", "pos_embed", "patch_embed."),
            *((f"blocks.{i}.",) for i in range(11)),
            ("blocks.11.", "norm."),
        ],
        (),
    ),
    "mobilenetv3_small_100": (
        [("conv_stem.", "bn1."), *((f"blocks.{i}.",) for i in range(6))],
        ("conv_head.",),
    ),
}
SMALL = ["resnet_tiny", "resnet18", "test_vit", "test_convnext", "mobilenetv3_small_050"]


def names_of(backbone: nn.Module, parameters: Sequence[nn.Parameter]) -> set[str]:
    names = {parameter: name for name, parameter in backbone.named_parameters()}
    return {names[parameter] for parameter in parameters}


@pytest.mark.parametrize("name", STAGES)
def test_stages_by_hand(name: str) -> None:
    with torch.device("meta"):
        backbone = create_backbone(name)
    expected, behind = STAGES[name]
    every = {name for name, _ in backbone.named_parameters()}
    stages = [names_of(backbone, stage) for stage in split_stages(backbone)]
    assert stages == [{n for n in every if n.startswith(begin)} for begin in expected]
    assert every.difference(*stages) == {n for n in every if behind and n.startswith(behind)}
    assert sum(map(len, stages)) == len(set().union(*stages))


class Own(nn.Module):
    """A network of one's own with the children that `split_stages` looks for."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(4, 3), nn.Linear(3, 3)
        self.stages = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))


def test_stages_of_a_network_of_ones_own() -> None:
    own = Own()
    expected = [[*own.stem.parameters()], *([*stage.parameters()] for stage in own.stages)]
    stages = split_stages(own)
    assert [[id(p) for p in stage] for stage in stages] == [[id(p) for p in s] for s in expected]


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "test_vit", "beit_base_patch16_224"])
def test_scales_of_a_transformer_are_those_of_timm_with_a_classifier(name: str) -> None:
    with torch.device("meta"):
        backbone, classifier = create_backbone(name), timm.create_model(name, num_classes=3)
    names = {parameter: name for name, parameter in classifier.named_parameters()}
    theirs = {
        names[parameter]: group["lr_scale"]
        for group in param_groups_layer_decay(classifier, layer_decay=0.75)
        for parameter in group["params"]
    }
    scales = layer_scales(backbone, 0.75)
    ours = {name: scales.get(parameter, 1.0) for name, parameter in backbone.named_parameters()}
    assert ours == pytest.approx({name: theirs[name] for name in ours}, rel=1e-14)


def test_scales_by_hand() -> None:
    resnet, convnext, vit = map(create_backbone, ("resnet_tiny", "test_convnext", "test_vit"))
    scales = layer_scales(resnet, 0.5)
    assert [scales[resnet.get_parameter("stem.0.weight")]] == [1 / 16]
    assert [scales[stage.conv1.weight] for stage in resnet.stages] == [1 / 8, 1 / 4, 1 / 2]
    assert scales[resnet.stages[2].downsample[0].weight] == 1 / 2
    assert {scales[p] for p in resnet.stages[2].parameters()} == {1 / 2}
    scales = layer_scales(convnext, 0.5)
    assert scales[convnext.stem[0].bias] == 1 / 32
    assert {scales[p] for p in convnext.stages[3].parameters()} == {1 / 2}
    assert not scales.keys() & {*convnext.head.norm.parameters()}
    scales = layer_scales(vit, 0.5)
    assert (scales[vit.cls_token], scales[vit.blocks[0].attn.qkv.weight]) == (2**-7, 2**-6)
    assert scales[vit.blocks[5].mlp.fc1.bias] == scales[vit.norm.weight] == 1 / 2


@pytest.mark.parametrize("name", SMALL)
def test_frozen_stages_come_first_and_keep_nothing_for_a_backward_pass(name: str) -> None:
    """Every other stage is trained, and no output of a frozen module has a gradient."""
    size = 160 if name == "test_vit" else 32
    count = len(split_stages(create_backbone(name)))
    for freeze in (1, count // 2, count - 1):
        backbone = create_backbone(name)
        freeze_stages(backbone, freeze)
        hold_frozen(backbone)
        outputs: list[bool] = []

        def keep(_: nn.Module, __: object, output: Tensor, into: list[bool] = outputs) -> None:
            into.append(output.requires_grad)

        for module in backbone.modules():
            if not module.training:
                module.register_forward_hook(keep)
        backbone(torch.randn(2, 3, size, size)).square().sum().backward()
        assert outputs
        assert not any(outputs)
        for number, stage in enumerate(split_stages(backbone)):
            assert all(p.requires_grad == (number >= freeze) for p in stage)
            assert any(p.grad is not None for p in stage) == (number >= freeze)


def test_frozen_modules_are_held_in_evaluation_in_the_copies_too() -> None:
    backbone, copy = create_backbone("resnet_tiny"), create_backbone("resnet_tiny")
    copy.requires_grad_(False)  # as a teacher's
    freeze_stages(backbone, 2)
    hold_frozen(backbone, copy)
    for network in (backbone, copy):
        frozen = {*network.stem.modules(), *network.stages[0].modules()}
        assert {module for module in network.modules() if not module.training} == frozen


def test_stochastic_depth_of_a_frozen_stage_is_off() -> None:
    backbone = create_backbone("convnext_tiny")
    freeze_stages(backbone, 3)
    hold_frozen(backbone)
    parts = backbone.features[:4]
    assert any(type(module).__name__ == "StochasticDepth" for module in parts.modules())
    images = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(parts(images), parts(images), rtol=0, atol=0)
    assert backbone.features[5].training


@pytest.mark.parametrize("name", ["rdnet_tiny", "pit_ti_224", "flatten"])
def test_unknown_stages_are_refused_with_what_works(name: str) -> None:
    with torch.device("meta"):
        backbone = nn.Flatten() if name == "flatten" else create_backbone(name)
    said = f"timm network with `group_matcher`, .* but got {type(backbone).__name__}"
    for refused in (lambda: freeze_stages(backbone, 1), lambda: layer_scales(backbone, 0.5)):
        with pytest.raises(ValueError, match=said):
            refused()
    freeze_stages(backbone, 0)
    assert layer_scales(backbone, 1.0) == {}


@pytest.mark.parametrize("count", [-1, 4, 9])
def test_number_of_frozen_stages_leaves_one_to_train(count: int) -> None:
    backbone = create_backbone("resnet_tiny")
    with pytest.raises(ValueError, match=f"`freeze` in 0 to 3 .* 4 stages, .* but got {count}"):
        freeze_stages(backbone, count)
    assert all(parameter.requires_grad for parameter in backbone.parameters())


@pytest.mark.parametrize("decay", [0.0, -0.5, 1.5, math.nan])
def test_layer_decay_out_of_range_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match="`layer_decay` above 0 and at most 1, but got"):
        layer_scales(create_backbone("resnet_tiny"), decay)
