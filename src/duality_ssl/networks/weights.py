"""Save and load the weights of a backbone, without running code of a file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from safetensors.torch import load_file, save
from torch import Tensor, nn

from duality_ssl.files import write_atomically

_PREFIXES = ("", "backbone.", "module.", "module.backbone.")


def save_backbone(
    weights: Mapping[str, Tensor], path: str | Path, about: Mapping[str, Any] | None = None
) -> None:
    """Write the state dict of a backbone to a safetensors file, whole or not at all.

    The metadata ``about``, as from `duality_ssl.JointEmbedding.about_backbone`, is written as JSON
    where it is no string, and left out where it is None.
    """
    given = {str(key): value for key, value in (about or {}).items() if value is not None}
    texts = {k: v if isinstance(v, str) else json.dumps(v, default=str) for k, v in given.items()}
    # copies: the format takes neither channels-last tensors nor tensors that share memory
    tensors = {
        key: weight.detach().cpu().clone(memory_format=torch.contiguous_format)
        for key, weight in weights.items()
    }
    content = save(tensors, metadata={"format": "pt", **texts})
    write_atomically(Path(path), lambda file: file.write(content))


def export_backbone(checkpoint: str | Path, path: str | Path) -> None:
    """Write the backbone in a run's checkpoint to a safetensors file, as the end of a fit does."""
    content = _load(Path(checkpoint))
    weights = _below(_named(content, checkpoint), "backbone.")
    if not weights:
        raise ValueError(
            f"Expected {checkpoint} to be a checkpoint of a run, but it holds no backbone."
        )
    save_backbone(weights, path, content.get("about_backbone"))
    rank_zero_info(f"Wrote the {len(weights)} tensors of the backbone in {checkpoint} to {path}.")


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
    # old files lack these counts, which no forward pass reads
    needed = [key for key in wanted if not key.endswith("num_batches_tracked")]
    missing = [key for key in needed if key not in found]
    if missing:
        raise ValueError(
            f"Expected {path} to hold the {len(needed)} tensors of the backbone, but "
            f"{len(missing)} are missing, {missing[0]} first. Is it another backbone's?"
        )
    taken = {key: found[key] for key in wanted if key in found}
    for key, tensor in taken.items():
        if tensor.shape != wanted[key].shape:
            raise ValueError(
                f"Expected {key} of {path} to have shape {tuple(wanted[key].shape)}, but got "
                f"{tuple(tensor.shape)}. Is it another backbone's, or made for other channels?"
            )
    backbone.load_state_dict({**wanted, **taken})
    rank_zero_info(
        f"Loaded {len(taken)} tensors of the backbone from {path}; "
        f"{len(weights) - len(taken)} others in the file were left out."
    )


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
