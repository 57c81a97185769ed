"""Networks of torchvision and timm that take a backbone's weights, and its graph in ONNX."""

import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torchvision
from torch import Tensor, nn

from duality_ssl.networks.backbones import create_backbone

LIBRARIES = ("torchvision", "timm")
_TOLERANCE = 1e-5


class Network(NamedTuple):
    """What `create_backbone` needs to build a backbone again, and the images to try it on."""

    name: str
    in_channels: int
    image_size: int | None
    """For networks whose parameters depend on it."""
    side: int
    """Of the images in pixels."""

    def build(self, weights: Mapping[str, Tensor]) -> nn.Module:
        """Build the backbone with these weights; ``ValueError`` if they are another one's."""
        backbone = create_backbone(self.name, self.in_channels, self.image_size)
        try:
            backbone.load_state_dict(weights)
        except RuntimeError as error:
            raise ValueError(
                f"Expected a checkpoint with a {self.name}, as it says, but it does not hold the "
                f"tensors of {self.name}."
            ) from error
        return backbone.eval()

    def images(self) -> Tensor:
        """Two random images, the same on every call."""
        generator = torch.Generator().manual_seed(0)
        return torch.randn(2, self.in_channels, self.side, self.side, generator=generator)


def check_library(library: str, network: Network, weights: Mapping[str, Tensor]) -> None:
    """Check that a library's network of that name takes the weights and computes the same features.

    Its last layer left out, it has the same tensors, by name and shape, and its features of two
    random images agree to 1e-5 of the largest.

    Args:
        library: ``torchvision`` or ``timm``.
        network: The backbone.
        weights: Its state dict.

    Raises:
        ValueError: If the library has no such network; the message names what works instead.
    """
    obstacle = _obstacle(library, network, weights)
    if obstacle is None:
        return
    others = [each for each in LIBRARIES if each != library]
    works = [each for each in others if _obstacle(each, network, weights) is None]
    works += ["safetensors", *(["onnx"] if _is_buildable(network, weights) else [])]
    ways = " or ".join(f"--to {each}" for each in works)
    raise ValueError(f"{obstacle}. Export it with {ways}.")


def _obstacle(library: str, network: Network, weights: Mapping[str, Tensor]) -> str | None:
    """Why a library has no network for the weights; None if it has one."""
    bare = network.name.removeprefix("timm/")
    if bare not in _names(library):
        stem = bare.removesuffix("_32")
        other = f": its {stem} has another first layer" if stem in _names(library) else ""
        return f"{library} has no network {network.name}{other}"
    if library == "torchvision" and network.in_channels != 3:
        return (
            f"torchvision's {bare} takes images of 3 channels, and this backbone takes "
            f"{network.in_channels}"
        )
    theirs = _build(library, bare, network)
    wanted, given = ({k: x.shape for k, x in s.items()} for s in (theirs.state_dict(), weights))
    if wanted != given:
        differs = min({*wanted.items()} ^ {*given.items()})[0]
        return f"{library}'s {bare} has other tensors than this backbone ({differs} differs)"
    theirs.load_state_dict(weights)
    models = network.build(weights), theirs.eval()
    with torch.no_grad():
        ours, others = (model(network.images()) for model in models)
    if (ours - others).abs().max() > _TOLERANCE * ours.abs().max():
        return f"{library}'s {bare} computes other features with these weights"
    return None


def _names(library: str) -> list[str]:
    if library == "timm":
        import timm

        return list(timm.list_models())
    return list(torchvision.models.list_models(module=torchvision.models))


def _build(library: str, name: str, network: Network) -> Any:
    """Build a library's own network, without its last layer."""
    if library == "timm":
        return create_backbone(f"timm/{name}", network.in_channels, network.image_size)
    model = torchvision.models.get_model(name, weights=None)
    if hasattr(model, "fc"):
        model.fc = nn.Identity()
    elif isinstance(getattr(model, "classifier", None), nn.Sequential):
        model.classifier[-1] = nn.Identity()
    return model


def _is_buildable(network: Network, weights: Mapping[str, Tensor]) -> bool:
    try:
        network.build(weights)
    except ValueError:
        return False
    return True


def onnx_graph(network: Network, weights: Mapping[str, Tensor], about: Mapping[str, str]) -> bytes:
    """Translate a backbone to ONNX, from ``images`` ``(batch, C, H, W)`` to ``features``.

    The batch may have any size; H and W are ``network.side``.

    Args:
        network: The backbone.
        weights: Its state dict.
        about: Metadata of the graph.

    Returns:
        Content of the file.

    Raises:
        ValueError: If ``create_backbone`` does not know the network, or packages are missing.
    """
    try:
        import onnxscript  # noqa: F401 the translation needs it
    except ImportError as error:
        raise ValueError(
            "Expected the packages onnx and onnxscript for --to onnx: pip install "
            "'duality_ssl[onnx]'."
        ) from error
    backbone = network.build(weights)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the translation, about itself
        program: Any = torch.onnx.export(
            backbone,
            (network.images(),),
            input_names=["images"],
            output_names=["features"],
            dynamic_shapes=({0: "batch"},),
            dynamo=True,
            verbose=False,
        )
    program.model.metadata_props.update(about)
    content: bytes = program.model_proto.SerializeToString()
    return content
