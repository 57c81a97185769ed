"""Weights of a backbone from a file: nothing is unpickled, and no missing key goes unnoticed."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from safetensors.torch import load_file
from torch import Tensor, nn

_PREFIXES = ("", "backbone.", "module.", "module.backbone.")


def load_backbone(backbone: nn.Module, path: str | Path) -> None:
    """Fill a backbone from a checkpoint of this package or from a state dict.

    Args:
        backbone: The network to fill, in place.
        path: A checkpoint (``.ckpt``), or a state dict (``.pt``, ``.pth``, ``.safetensors``). Its
            keys are the backbone's, bare or behind ``backbone.`` or ``module.``; what else the
            file holds (a classifier, a projector) is left out and counted.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a file of weights, or lacks a tensor of the backbone's, or holds
            one of another shape. The backbone is then unchanged.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file of weights {path}.")
    weights = _read(path)
    wanted = backbone.state_dict()
    found = max(
        (_below(weights, prefix) for prefix in _PREFIXES),
        key=lambda candidate: len(wanted.keys() & candidate.keys()),
    )
    # counts that no forward pass reads, which old files lack
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


def _below(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): w for key, w in weights.items() if key.startswith(prefix)}


def _read(path: Path) -> dict[str, Tensor]:
    content: Any
    try:
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can fail in any way
        raise ValueError(
            f"Expected {path} to be a file of weights, but it cannot be read as one: it is "
            f"truncated, or holds more than tensors ({type(error).__name__})."
        ) from error
    for name in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    entries = content.items() if isinstance(content, dict) else ()
    weights = {k: v for k, v in entries if isinstance(k, str) and isinstance(v, Tensor)}
    if not weights:
        raise ValueError(f"Expected {path} to hold a state dict, but it holds no named tensor.")
    return weights
