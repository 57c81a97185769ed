"""Weights of a backbone from a file: nothing is unpickled, and no missing key goes unnoticed."""

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from safetensors import SafetensorError
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
    missing = [key for key in wanted if key not in found]
    if missing:
        raise ValueError(
            f"Expected {path} to hold the {len(wanted)} tensors of the backbone, but "
            f"{len(missing)} are missing, {missing[0]} first. Is it another backbone's?"
        )
    for key, tensor in wanted.items():
        if found[key].shape != tensor.shape:
            raise ValueError(
                f"Expected {key} of {path} to have shape {tuple(tensor.shape)}, but got "
                f"{tuple(found[key].shape)}. Is it another backbone's, or made for other channels?"
            )
    backbone.load_state_dict({key: found[key] for key in wanted})
    rank_zero_info(
        f"Loaded {len(wanted)} tensors of the backbone from {path}; "
        f"{len(weights) - len(wanted)} others in the file were left out."
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
    except (SafetensorError, UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise ValueError(
            f"Expected {path} to be a file of weights, but it cannot be read as one: it is "
            f"truncated, or holds more than tensors ({type(error).__name__})."
        ) from error
    content = content.get("state_dict", content) if isinstance(content, dict) else {}
    weights = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    if not weights:
        raise ValueError(f"Expected {path} to hold a state dict, but it holds no tensor.")
    return weights
