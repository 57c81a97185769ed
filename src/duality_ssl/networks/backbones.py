"""Backbones by name: images ``(B, C, H, W)`` to pooled features ``(B, num_features)``.

A name is looked up in this order:

1. what `register_backbone` registered, such as ``resnet_tiny``;
2. torchvision's ResNets and ConvNeXts, such as ``wide_resnet50_2`` or ``convnext_tiny``;
3. those ResNets with the suffix ``_32`` for the small-image stem, such as ``resnet18_32``;
4. all names of timm; ``timm/NAME`` is timm's model even if torchvision has one of that name.

Nothing is downloaded, and timm is imported when one of its names is first needed.
"""

from collections.abc import Callable
from functools import cache, partial
from inspect import signature
from typing import Any, overload

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from duality_ssl.registry import import_path, nearest, register

_SMALL_STEM = "_32"
_TIMM = "timm/"

BackboneBuilder = Callable[[int], nn.Module]
_BUILDERS: dict[str, BackboneBuilder] = {}


@overload
def register_backbone(build: BackboneBuilder, /) -> BackboneBuilder: ...
@overload
def register_backbone(name: str, /) -> Callable[[BackboneBuilder], BackboneBuilder]: ...
def register_backbone(build: Any, /) -> Any:
    """Register your own backbone, so that configs can name it.

    A decorator: ``@register_backbone`` registers a function by its own name,
    ``@register_backbone("name")`` by another one. The function takes the number of image channels
    and returns a module that maps ``(B, C, H, W)`` to ``(B, num_features)`` and has an int
    ``num_features``. A ``ValueError`` says that a name is taken by another function.

    Example:
        >>> @register_backbone
        ... def pixels_28(in_channels: int) -> nn.Module:
        ...     module = nn.Flatten()
        ...     module.num_features = in_channels * 28 * 28
        ...     return module
        >>> create_backbone("pixels_28", in_channels=1).num_features
        784
    """
    into = partial(register, _BUILDERS, reserved=_torchvision_names())
    return partial(into, build) if isinstance(build, str) else into(build.__name__, build)


def create_backbone(name: str, in_channels: int = 3, image_size: int | None = None) -> nn.Module:
    """Build a backbone with random weights and no classifier.

    Args:
        name: One of `available_backbones`; the top of this module lists the kinds.
        in_channels: Channels of the images, 1 for grey ones.
        image_size: Side of the images in pixels, for timm models whose parameters depend on it
            (transformers, mixers) if it is not the side in their name; others ignore it.

    Returns:
        A module from ``(B, in_channels, H, W)`` to ``(B, num_features)``, with ``num_features``.

    Raises:
        ValueError: If the name is unknown, ``in_channels`` is not positive, or a registered builder
            breaks its contract.
    """
    if not isinstance(in_channels, int) or in_channels < 1:
        raise ValueError(f"Expected `in_channels` to be at least 1, but got {in_channels!r}.")
    if name in _BUILDERS:
        return _built(name, _BUILDERS[name], in_channels)
    if name in _torchvision_names():
        return _create_torchvision(name, in_channels)
    return _create_timm(name, in_channels, image_size)


def build_backbone(name: str, in_channels: int = 3, image_size: int | None = None) -> nn.Module:
    """Build the backbone of ``model.backbone``: as `create_backbone`, or by dotted path.

    The path is of a function for `register_backbone`, such as ``mine.two_layers``, whose module is
    imported. `create_backbone` takes none, so that a name of any origin imports no code of a user.
    """
    build = None if name in _BUILDERS else import_path(name)
    if build is None:
        return create_backbone(name, in_channels, image_size)
    return _built(name, build, in_channels)


def available_backbones() -> list[str]:
    """List every name that `create_backbone` knows: registered, torchvision's, timm's.

    A timm model with the name of another backbone is listed as ``timm/NAME``.
    """
    import timm

    own = [*sorted(_BUILDERS), *_torchvision_names()]
    return own + [_TIMM + name if name in own else name for name in timm.list_models()]


def _built(name: str, build: BackboneBuilder, in_channels: int) -> nn.Module:
    """Build a backbone and check its contract."""
    try:
        signature(build).bind(in_channels)
    except (TypeError, ValueError):
        raise ValueError(
            f"Expected backbone {name!r} to be a function of the number of channels that builds a "
            f"module, but got {build!r}."
        ) from None
    backbone: Any = build(in_channels)
    width = getattr(backbone, "num_features", None)
    if not isinstance(backbone, nn.Module) or not isinstance(width, int) or width < 1:
        raise ValueError(
            f"Expected backbone {name!r} to be built as a torch.nn.Module with a positive int "
            "`num_features`, the columns of its output, but got a "
            f"{type(backbone).__name__} with {width!r}."
        )
    return backbone


def check_features(features: Any, rows: int, num_features: int) -> None:
    """Raise ``ValueError`` for an output of a backbone that is not ``(rows, num_features)``."""
    shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
    if shape != (rows, num_features):
        raise ValueError(
            "Expected the backbone to return features of shape (N, num_features), here "
            f"{(rows, num_features)}, but got {shape}: pool maps and tokens to one row an image, "
            "and set `num_features` to its length."
        )


def check_images(backbone: Any, in_channels: int, channels: int, size: int | None) -> None:
    """Raise ``ValueError`` for images that a backbone cannot take; ``size`` in pixels."""
    if channels != in_channels:
        raise ValueError(
            f"Expected images of {in_channels} channels, but the data has {channels}. "
            f"Set --model.in_channels {channels}."
        )
    patches: Any = getattr(backbone, "patch_embed", None)  # of a transformer
    if size and getattr(patches, "strict_img_size", False) and size not in patches.img_size:
        raise ValueError(
            f"Expected images of {patches.img_size[0]} pixels, but the data has {size}. "
            f"Set --model.image_size {size}, or --data.image_size {patches.img_size[0]}."
        )


@cache
def _torchvision_names() -> tuple[str, ...]:
    """Torchvision's ResNets and ConvNeXts, then the ResNets with the small-image suffix."""
    families = ["resne*", "wide_resnet*", "convnext*"]
    names = torchvision.models.list_models(module=torchvision.models, include=families)
    return (*names, *(f"{name}{_SMALL_STEM}" for name in names if "convnext" not in name))


def _create_torchvision(name: str, in_channels: int) -> nn.Module:
    """Build a ResNet or ConvNeXt without its last layer, its stem fit to the images."""
    build = torchvision.models.get_model_builder(name.removesuffix(_SMALL_STEM))
    if name.startswith("convnext"):
        model = build(weights=None)
        model.num_features = model.classifier[-1].in_features
        model.classifier[-1] = nn.Identity()  # the norm before it stays, as in timm's ConvNeXts
        if in_channels != 3:
            stem = model.features[0][0]
            stem = nn.Conv2d(in_channels, stem.out_channels, stem.kernel_size, stem.stride)
            nn.init.trunc_normal_(stem.weight, std=0.02)
            stem.bias = nn.Parameter(torch.zeros(stem.out_channels))
            model.features[0][0] = stem
        return model
    # every residual branch starts at zero, as in the released code of VICReg and Barlow Twins
    model = build(weights=None, zero_init_residual=True)
    model.num_features = model.fc.in_features
    model.fc = nn.Identity()
    width = model.conv1.out_channels
    if name.endswith(_SMALL_STEM):
        model.conv1 = nn.Conv2d(in_channels, width, kernel_size=3, padding=1, bias=False)
        model.maxpool = nn.Identity()
    else:
        model.conv1 = nn.Conv2d(in_channels, width, 7, stride=2, padding=3, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    return model


def _create_timm(name: str, in_channels: int, image_size: int | None) -> nn.Module:
    """Build a timm model, or raise the ``ValueError`` that lists the nearest names."""
    import timm

    bare = name.removeprefix(_TIMM)
    if bare not in timm.list_models():
        untagged = name.partition(".")[0]  # the tag of "resnet50.a1_in1k" names weights
        near = nearest(untagged, available_backbones(), count=5)
        hint = f"the nearest names are {', '.join(near)}" if near else "no name comes near"
        raise ValueError(
            "Expected `backbone` to be a registered name, a torchvision ResNet or ConvNeXt, a timm "
            "model, or for a method the dotted path of a function in a module that Python finds, "
            f"but got {name!r}: {hint}."
        )
    arguments: dict[str, Any] = {"pretrained": False, "num_classes": 0, "in_chans": in_channels}
    try:
        # timm drops an `img_size` of None; convolutional nets accept no other
        model = timm.create_model(bare, **arguments, img_size=image_size)
    except TypeError as error:
        if "img_size" not in str(error):
            raise
        model = timm.create_model(bare, **arguments)
    # some widen the features after the pooling (MobileNetV3); `num_features` is the width before
    model.num_features = getattr(model, "head_hidden_size", model.num_features)
    return model


@register_backbone
def resnet_tiny(in_channels: int) -> nn.Module:
    """Build the residual net for a CPU: 0.31 M parameters, 128 features, images of 16 to 32 pixels.

    Widths 32-64-128, one basic block each, maps of 16-8-4 for 16 pixels. Its residual branches do
    *not* start at zero, unlike those of the large ResNets: with one block a stage, 100 steps of
    SimCLR on the digits then end 3 points lower in linear and 10 in 5-label accuracy.
    """
    stem = nn.Conv2d(in_channels, 32, kernel_size=3, padding=1, bias=False)
    stages = nn.Sequential(BasicBlock(32, 32))
    for narrow, wide in ((32, 64), (64, 128)):
        halve = nn.Conv2d(narrow, wide, kernel_size=1, stride=2, bias=False)
        shortcut = nn.Sequential(halve, nn.BatchNorm2d(wide))
        stages.append(BasicBlock(narrow, wide, stride=2, downsample=shortcut))
    network: Any = nn.Sequential()
    network.stem = nn.Sequential(stem, nn.BatchNorm2d(32), nn.ReLU(inplace=True))
    network.stages, network.pool = stages, nn.AdaptiveAvgPool2d(1)
    network.flatten = nn.Flatten()
    network.num_features = 128
    # with channels last a convolution on a CPU does not reorder its input: a sixth faster
    return network.to(memory_format=torch.channels_last)
