"""Save, load and export the weights of a backbone, without running code of a file."""

import io
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from lightning.pytorch.utilities import rank_zero_info
from safetensors.torch import load_file, save
from torch import Tensor, nn

from duality_ssl.files import write_atomically
from duality_ssl.networks.targets import LIBRARIES, Network, check_library, onnx_graph
from duality_ssl.registry import nearest

Default = TypeVar("Default")

_PREFIXES = ("", "backbone.", "module.", "module.backbone.")

SUFFIXES = {
    "torchvision": (".pth", ".pt"),
    "timm": (".safetensors",),
    "safetensors": (".safetensors",),
    "onnx": (".onnx",),
}
"""What `export_backbone` writes, and how the names of such files end."""


class Exported(NamedTuple):
    """What `export_backbone` has written."""

    network: Network
    about: dict[str, Any]
    """As `duality_ssl.JointEmbedding.about_backbone`."""
    shapes: list[torch.Size]
    """Of the tensors."""
    left_out: dict[str, int]
    """Tensors of the run's other modules, by module."""


def save_backbone(
    weights: Mapping[str, Tensor], path: str | Path, about: Mapping[str, Any] | None = None
) -> None:
    """Write the state dict of a backbone to a safetensors file, whole or not at all.

    The metadata ``about``, as from `duality_ssl.JointEmbedding.about_backbone`, is written as JSON
    where it is no string, and left out where it is None.
    """
    content = save(_plain(weights), metadata={"format": "pt", **_texts(about or {})})
    write_atomically(Path(path), lambda file: file.write(content))


def export_backbone(
    checkpoint: str | Path, path: str | Path, to: str = "safetensors", teacher: bool = False
) -> Exported:
    """Write the backbone in a run's checkpoint for another library, and say what is left out.

    Args:
        checkpoint: A checkpoint of a run.
        path: The file; its folder is created.
        to: ``torchvision``, a state dict for its network without the last layer; ``timm``, a
            safetensors file for ``timm.create_model(NAME, checkpoint_path=path, num_classes=0)``;
            ``safetensors``, the file that the end of a fit writes, of any network; ``onnx``, the
            network with its weights.
        teacher: Write the teacher's backbone.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        ValueError: If it is no checkpoint of a run, it has no teacher to write, or the library has
            no network that computes the same features with these weights; the message names what
            works instead.
    """
    path = Path(path)
    if to not in SUFFIXES:
        raise ValueError(f"Expected `to` to be one of {', '.join(SUFFIXES)}, but got {to!r}.")
    if path.suffix not in SUFFIXES[to]:
        ends = " or ".join(SUFFIXES[to])
        raise ValueError(f"Expected a file for {to} to end in {ends}, but got {path}.")
    content = _load(Path(checkpoint))
    named = _named(content, checkpoint)
    prefix = "teacher.backbone." if teacher else "backbone."
    weights = _plain(_below(named, prefix))
    if not weights:
        what = "a run with a teacher" if teacher else "a run"
        raise ValueError(
            f"Expected {checkpoint} to be a checkpoint of {what}, but it holds no {prefix[:-1]}."
        )
    about = _mapping(content.get("about_backbone"))
    network = _network(about, _mapping(content.get("hyper_parameters")))
    if to in LIBRARIES:
        check_library(to, network, weights)
    if to == "torchvision":
        buffer = io.BytesIO()
        torch.save(weights, buffer)
        write_atomically(path, lambda file: file.write(buffer.getbuffer()))
    elif to == "onnx":
        graph = onnx_graph(network, weights, _texts(about))
        write_atomically(path, lambda file: file.write(graph))
    else:
        save_backbone(weights, path, about)
    others = Counter(key.partition(".")[0] for key in named if not key.startswith(prefix))
    counts = ", ".join(f"{count} of the {name}" for name, count in others.items()) or "none"
    rank_zero_info(
        f"Wrote the {len(weights)} tensors of the backbone in {checkpoint} to {path}, without the "
        f"prefix '{prefix}'. Left out, as pretraining alone uses them: {counts}."
    )
    return Exported(network, about, [weight.shape for weight in weights.values()], dict(others))


def load_backbone(backbone: nn.Module, path: str | Path) -> None:
    """Fill a backbone from a checkpoint of this package or from a state dict.

    Args:
        backbone: The network to fill, in place.
        path: A checkpoint (``.ckpt``), or a state dict (``.pt``, ``.pth``, ``.safetensors``). Its
            keys are the backbone's, bare or after ``backbone.`` or ``module.``; other tensors are
            left out and counted.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a file of weights, or a tensor of the backbone is missing or of
            another shape. The backbone is then unchanged.
    """
    path = Path(path)
    weights = _named(_load(path), path)
    wanted = backbone.state_dict()
    found = max(
        (_below(weights, prefix) for prefix in _PREFIXES),
        key=lambda candidate: len(wanted.keys() & candidate.keys()),
    )
    taken = {key: found[key] for key in wanted if key in found}
    missing = [key for key in wanted if key not in found]
    # old files lack these counts, which no forward pass reads
    needed = [key for key in missing if not key.endswith("num_batches_tracked")]
    if needed:
        near = nearest(needed[0], weights) or list(weights)[:3]
        raise ValueError(
            f"Expected {path} to hold the {len(wanted)} tensors of the backbone, but "
            f"{f'{len(needed)} are' if taken else 'none is there: all are'} missing, {needed[0]} "
            f"first. The nearest in the file: {', '.join(near)}. Is it another backbone's?"
        )
    for key, tensor in taken.items():
        if tensor.shape != wanted[key].shape:
            raise ValueError(
                f"Expected {key} of {path} to have shape {tuple(wanted[key].shape)}, but got "
                f"{tuple(tensor.shape)}. Is it another backbone's, or made for other channels?"
            )
    backbone.load_state_dict({**wanted, **taken})
    rank_zero_info(
        f"Loaded {len(taken)} of the backbone's {len(wanted)} tensors from {path}. Missing: "
        f"{len(missing)} (counts of batches). Others in the file, left out: "
        f"{len(weights) - len(taken)}."
    )


def _plain(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies: safetensors takes neither channels-last tensors nor tensors that share memory."""
    return {
        key: weight.detach().cpu().clone(memory_format=torch.contiguous_format)
        for key, weight in weights.items()
    }


def _texts(about: Mapping[str, Any]) -> dict[str, str]:
    given = {str(key): value for key, value in about.items() if value is not None}
    return {k: v if isinstance(v, str) else json.dumps(v, default=str) for k, v in given.items()}


def _mapping(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}


def _network(about: Mapping[str, Any], arguments: Mapping[str, Any]) -> Network:
    """The network that a checkpoint describes; a dotted path in it is a name like any other."""
    said, size = {**arguments, **about}, arguments.get("image_size")
    return Network(
        name=str(said.get("backbone")),
        in_channels=_whole(said.get("in_channels"), 3),
        image_size=_whole(size, None),
        side=_whole(size or about.get("image_size"), 224),
    )


def _whole(value: Any, default: Default) -> int | Default:
    return value if isinstance(value, int) else default


def _below(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): w for key, w in weights.items() if key.startswith(prefix)}


def _load(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no file of weights {path}. Name a checkpoint, or a backbone's state dict."
        )
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can fail in any way
        raise ValueError(
            f"Expected {path} to be a file of weights, but it cannot be read as one: it is "
            f"truncated, or holds more than tensors ({type(error).__name__})."
        ) from error


def _named(content: Any, path: str | Path) -> dict[str, Tensor]:
    """The named tensors in the content of a file."""
    for name in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    entries = content.items() if isinstance(content, dict) else ()
    weights = {k: v for k, v in entries if isinstance(k, str) and isinstance(v, Tensor)}
    if not weights:
        raise ValueError(f"Expected {path} to hold a state dict, but it holds no named tensor.")
    return weights
