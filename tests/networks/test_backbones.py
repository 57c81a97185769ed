"""Backbones by name: shapes, stems, the contract, and what happens to names nobody knows."""

import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from duality_ssl.networks import backbones
from duality_ssl.networks.backbones import (
    available_backbones,
    build_backbone,
    create_backbone,
    register_backbone,
)

TORCHVISION = backbones._torchvision_names()


@pytest.fixture
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a test register backbones without the others seeing them."""
    monkeypatch.setattr(backbones, "_BUILDERS", dict(backbones._BUILDERS))


@pytest.mark.parametrize(
    ("name", "in_channels", "num_features"),
    [
        ("resnet_tiny", 1, 128),
        ("resnet18", 3, 512),
        ("resnet18", 4, 512),
        ("resnet18_32", 1, 512),
        ("convnext_tiny", 1, 768),
        ("convnext_tiny", 3, 768),
        ("timm/resnet18", 1, 512),
        ("resnet10t", 3, 512),
        ("mobilenetv3_small_050", 1, 1024),  # wider after the pooling (1024) than before (288)
        ("vit_tiny_patch16_224", 4, 192),
        ("mixer_s16_224", 3, 512),
    ],
)
def test_features_are_pooled(name: str, in_channels: int, num_features: int) -> None:
    backbone = create_backbone(name, in_channels, image_size=32)
    features = backbone.eval()(torch.randn(2, in_channels, 32, 32))
    assert features.shape == (2, backbone.num_features) == (2, num_features)
    assert features.isfinite().all()


@pytest.mark.parametrize("name", TORCHVISION)
def test_every_torchvision_name_is_built(name: str) -> None:
    with torch.device("meta"):
        backbone = create_backbone(name, in_channels=1)
        assert backbone(torch.empty(2, 1, 64, 64)).shape == (2, backbone.num_features)


def test_torchvision_names_are_discovered() -> None:
    for family in ("resnet", "resnext", "wide_resnet", "convnext"):
        known = set(torchvision.models.list_models(module=torchvision.models, include=f"{family}*"))
        assert known
        assert known <= set(TORCHVISION)
    assert not any(name.startswith(("vit", "vgg", "quantized")) for name in TORCHVISION)


@pytest.mark.parametrize(
    ("name", "sides"),
    [
        pytest.param("resnet18_32", [32, 16, 8, 4], id="resnet18_32"),
        pytest.param("resnet50_32", [32, 16, 8, 4], id="resnet50_32"),
        pytest.param("resnext50_32x4d_32", [32, 16, 8, 4], id="resnext50_32x4d_32"),
        pytest.param("resnet18", [8, 4, 2, 1], id="resnet18"),
    ],
)
def test_map_sizes_at_32_pixels(name: str, sides: list[int]) -> None:
    with torch.device("meta"):
        backbone = create_backbone(name)
        maps: list[Tensor] = []
        for number in range(1, 5):
            getattr(backbone, f"layer{number}").register_forward_hook(
                lambda _, __, output: maps.append(output)
            )
        backbone(torch.empty(2, 3, 32, 32))
    assert [tuple(output.shape[2:]) for output in maps] == [(side, side) for side in sides]


@pytest.mark.parametrize("in_channels", [1, 3], ids=["grey", "colour"])
def test_small_image_stem(in_channels: int) -> None:
    backbone = create_backbone("resnet18_32", in_channels)
    stem = backbone.conv1
    assert (stem.kernel_size, stem.stride, stem.padding) == ((3, 3), (1, 1), (1, 1))
    assert stem.bias is None
    assert isinstance(backbone.maxpool, nn.Identity)
    # He's initialisation of the fan out, as torchvision's own.
    assert stem.weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.15)


@pytest.mark.parametrize("name", ["resnet18", "convnext_tiny"])
def test_stem_for_grey_images_is_torchvisions_but_for_its_channels(name: str) -> None:
    grey, colour = create_backbone(name, in_channels=1), create_backbone(name, in_channels=3)
    stem, original = (
        next(layer for layer in net.modules() if isinstance(layer, nn.Conv2d))
        for net in (grey, colour)
    )
    assert stem.weight.shape == (original.weight.shape[0], 1, *original.weight.shape[2:])
    assert (stem.stride, stem.padding) == (original.stride, original.padding)
    assert stem.weight.std().item() == pytest.approx(original.weight.std().item(), rel=0.1)
    assert (stem.bias is None) == (original.bias is None)


@pytest.mark.parametrize(
    ("name", "classifier"), [("resnet18", "fc."), ("convnext_tiny", "classifier.2.")]
)
def test_torchvision_weights_fit_but_for_the_classifier(name: str, classifier: str) -> None:
    with torch.device("meta"):
        theirs = torchvision.models.get_model(name, weights=None).state_dict()
        ours = create_backbone(name).state_dict()
    expected = {key: value.shape for key, value in theirs.items() if not key.startswith(classifier)}
    assert {key: value.shape for key, value in ours.items()} == expected


def test_residual_branches_of_a_resnet_start_at_zero() -> None:
    blocks = [
        layer for layer in create_backbone("resnet18_32").modules() if hasattr(layer, "downsample")
    ]
    assert len(blocks) == 8
    assert all(block.bn2.weight.eq(0).all() for block in blocks)


def test_timm_prefix_goes_past_torchvision() -> None:
    with torch.device("meta"):
        assert isinstance(create_backbone("resnet18"), torchvision.models.ResNet)
        assert isinstance(create_backbone("timm/resnet18"), timm.models.ResNet)
        assert isinstance(create_backbone("timm/resnet10t"), timm.models.ResNet)


@pytest.mark.parametrize("side", [16, 28, 32])
def test_resnet_tiny_is_small_and_trains_in_bfloat16(side: int) -> None:
    backbone = create_backbone("resnet_tiny", in_channels=1)
    assert 300_000 <= sum(parameter.numel() for parameter in backbone.parameters()) <= 1_000_000
    with torch.autocast("cpu", torch.bfloat16):
        features = backbone(torch.randn(8, 1, side, side))
    features.float().std(dim=0).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in backbone.parameters())


def test_available_backbones_are_unique_and_complete() -> None:
    names = available_backbones()
    assert len(names) == len(set(names))
    assert {
        "resnet_tiny",
        "resnet50",
        "resnet50_32",
        "timm/resnet50",
        "vit_tiny_patch16_224",
    } <= set(names)
    assert len(names) == len(backbones._BUILDERS) + len(TORCHVISION) + len(timm.list_models())


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        pytest.param("resnet_18", "resnet18", id="hyphenated"),
        pytest.param("ResNet18", "resnet18", id="capitals"),
        pytest.param("resnet18_64", "resnet18_32", id="other-stem"),
        pytest.param("convnext_tiny_32", "convnext_tiny", id="stem-of-a-convnext"),
        pytest.param("resnet_tiny_32", "resnet_tiny", id="stem-of-resnet-tiny"),
        pytest.param("vit_tiny", "vit_tiny_patch16_224", id="beginning"),
        pytest.param("timm/resnot18", "timm/resnet18", id="timm"),
        pytest.param("resnet50.a1_in1k", "resnet50", id="tag-of-weights"),
    ],
)
def test_unknown_name_lists_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(ValueError, match="Expected `backbone`") as error:
        create_backbone(name)
    message = str(error.value)
    assert f"but got {name!r}" in message
    assert nearest in message.partition("the nearest names are ")[2].rstrip(".").split(", ")


def test_unknown_name_like_no_other() -> None:
    with pytest.raises(ValueError, match="but got 'qqqqzzzz': no name comes near"):
        create_backbone("qqqqzzzz")


@pytest.mark.parametrize("in_channels", [0, 1.5, "1"], ids=repr)
def test_images_without_channels_are_refused(in_channels: object) -> None:
    for create in (create_backbone, build_backbone):
        with pytest.raises(ValueError, match=f"to be at least 1, but got {in_channels!r}"):
            create("resnet18", in_channels=in_channels)


def pixels(in_channels: int) -> nn.Module:
    module = nn.Flatten()
    module.num_features = in_channels * 4
    return module


@pytest.mark.usefixtures("_own_registry")
def test_own_backbone_is_registered_by_its_name() -> None:
    assert register_backbone(pixels) is pixels
    assert "pixels" in available_backbones()
    backbone = create_backbone("pixels", in_channels=2)
    assert backbone(torch.zeros(3, 2, 2, 2)).shape == (3, backbone.num_features)
    assert register_backbone(pixels) is pixels, "as a notebook's cell that is run twice does"

    def other(in_channels: int) -> nn.Module:
        return pixels(in_channels)

    other.__name__ = "pixels"
    with pytest.raises(ValueError, match="new name, but 'pixels' is taken"):
        register_backbone(other)
    with pytest.raises(ValueError, match="the nearest names are pixels"):
        create_backbone("pixel")


@pytest.mark.usefixtures("_own_registry")
def test_own_backbone_is_registered_by_another_name() -> None:
    assert register_backbone("dots")(pixels) is pixels
    assert register_backbone("dots")(pixels) is pixels
    assert create_backbone("dots", in_channels=2).num_features == 8
    with pytest.raises(ValueError, match="'convnext_tiny' is taken"):
        register_backbone("convnext_tiny")(pixels)


@pytest.mark.usefixtures("_own_registry")
@pytest.mark.parametrize(
    "build",
    [3, torch.Tensor, lambda: None, nn.Conv2d],
    ids=["number", "tensor", "no channels", "more arguments"],
)
def test_what_builds_no_backbone_is_refused(build: object) -> None:
    register_backbone("other")(build)
    with pytest.raises(ValueError, match="'other' to be a function of the number of channels"):
        create_backbone("other")


MODULE = """
from torch import nn

class Net(nn.Flatten):
    def __init__(self, in_channels):
        super().__init__()
        self.num_features = in_channels * 4

def net(in_channels):
    return Net(in_channels)

def broken(in_channels):
    return nn.Flatten()

number = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of a module with networks in it."""
    (tmp_path / "networks_of_mine.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "networks_of_mine", raising=False)
    return "networks_of_mine"


@pytest.mark.parametrize("name", ["net", "Net"], ids=["function", "class"])
def test_backbone_at_a_dotted_path(name: str, module: str) -> None:
    assert build_backbone(f"{module}.{name}", in_channels=2).num_features == 8
    with pytest.raises(ValueError, match="Expected `backbone`"):
        create_backbone(f"{module}.{name}")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nett", r"no 'nett' in 'networks_of_mine'\. Did you mean net"),
        ("number", "function of the number of channels that builds a module, but got 3"),
        ("nn.Conv2d", "function of the number of channels that builds a module, but got"),
        ("broken", "'networks_of_mine.broken' to be built as .* `num_features`"),
        ("sub.net", "There is no 'sub' in 'networks_of_mine'"),
    ],
)
def test_dotted_path_of_something_else(name: str, said: str, module: str) -> None:
    with pytest.raises(ValueError, match=said):
        build_backbone(f"{module}.{name}")


@pytest.mark.parametrize("name", ["no_module_at_all.net", "resnet50.a1_in1k", "resnet50.a-b"])
def test_dotted_path_without_a_module_is_an_unknown_name(name: str) -> None:
    with pytest.raises(ValueError, match="a module that Python finds, but got") as built:
        build_backbone(name)
    with pytest.raises(ValueError, match="Expected `backbone`") as created:
        create_backbone(name)
    assert str(built.value) == str(created.value)


@pytest.mark.usefixtures("_own_registry")
def test_names_of_torchvision_are_taken() -> None:
    def resnet18(in_channels: int) -> nn.Module:
        return pixels(in_channels)

    with pytest.raises(ValueError, match="'resnet18' is taken"):
        register_backbone(resnet18)


@pytest.mark.usefixtures("_own_registry")
@pytest.mark.parametrize("width", [None, "4", 4.0, 0], ids=repr)
def test_own_backbone_without_num_features_is_refused(width: object) -> None:
    @register_backbone
    def broken(in_channels: int) -> nn.Module:
        module = nn.Flatten()
        if width is not None:
            module.num_features = width
        return module

    with pytest.raises(ValueError, match=f"a positive int `num_features`.* with {width!r}"):
        create_backbone("broken")


@pytest.mark.usefixtures("_own_registry")
def test_own_backbone_that_is_no_module_is_refused() -> None:
    @register_backbone
    def broken(in_channels: int) -> nn.Module:
        return torch.relu

    with pytest.raises(ValueError, match=r"as a torch\.nn\.Module .* but got a builtin"):
        create_backbone("broken")


def test_timm_is_imported_only_for_its_own_names() -> None:
    code = (
        "import sys; from duality_ssl.networks.backbones import create_backbone as create; "
        "create('resnet_tiny', 1); create('resnet18_32'); assert 'timm' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
