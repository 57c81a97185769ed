"""Estimate the memory that projector, predictor and criterion need, before the first step."""

import os
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn

from duality_ssl.criteria import Criterion


class Estimate(NamedTuple):
    """Bytes at the peak of a training step, the end of the forward pass."""

    parameters: int
    """Numbers in the weights of the projector, and of the predictor if there is one."""
    weights: int
    """Their weights, gradients and optimizer state, and the teacher's projector."""
    activations: int
    """What they keep of all views for the backward pass."""
    criterion: int
    """Gathered embeddings and what the criterion computes from them."""

    @property
    def total(self) -> int:
        """Sum of weights, activations and criterion."""
        return self.weights + self.activations + self.criterion


def estimate(
    projector: nn.Module,
    criterion: Criterion,
    batch_size: int,
    *,
    world_size: int = 1,
    activation_bytes: int = 4,
    state_tensors: int = 1,
    views: int = 2,
    predictor: nn.Module | None = None,
    teacher: nn.Module | None = None,
) -> Estimate:
    """Estimate the memory of one training step, beside the backbone's.

    With P weights and, in each of B rows of V views, a hidden layer of w numbers kept twice (for
    the batch norm and for the layer after it): ``P (2 + state) + V B (sum of 2 w + D)`` numbers and
    the criterion's, see :meth:`Criterion.memory`. Weights in lower precision, as autocast makes
    them, count once more; a teacher's projector counts its weights alone.

    Args:
        projector: Linear layers, in order, and the layers between them.
        criterion: The criterion.
        batch_size: Images of one process, B.
        world_size: Number of processes that share the batch.
        activation_bytes: Bytes of a number in the projector's activations.
        state_tensors: Tensors that the optimizer keeps for each weight.
        views: Views of an image, V.
        predictor: Layers behind the projector.
        teacher: Projector of the teacher.
    """
    heads = [projector] if predictor is None else [projector, predictor]
    parameters = [p for head in heads for p in head.parameters()]
    count = sum(p.numel() for p in parameters)
    number = max((p.element_size() for p in parameters), default=4)
    cast = activation_bytes < number
    # distributed data parallel sends gradients in buckets, another copy of them
    copies = 2 + state_tensors + (world_size > 1)
    weights = count * (number * copies + (activation_bytes if cast else 0))

    if teacher is not None:
        weights += sum(p.numel() * p.element_size() for p in teacher.parameters())

    kept, d = 0, 0
    for head in heads:
        linears = [layer for layer in head.modules() if isinstance(layer, nn.Linear)]
        *hidden, d = [layer.out_features for layer in linears] or [0]
        kept += 2 * sum(hidden) + d
    activations = views * batch_size * kept * activation_bytes

    n = batch_size * world_size
    embeddings = views * n * d
    full = max(4, activation_bytes)  # criteria compute in float32 at least
    extra = full * (criterion.memory(n, d) + 3 * (views - 2) * n * d)
    extra += full * embeddings * (activation_bytes < full)
    extra += activation_bytes * embeddings * (world_size > 1)
    return Estimate(count, weights, activations, extra)


def free_memory(device: torch.device) -> int | None:
    """Return the free bytes of a device; None where the system does not tell."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    meminfo = Path("/proc/meminfo")
    if device.type == "cpu" and meminfo.is_file():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    if device.type == "cpu" and "SC_AVPHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


class MemoryEstimate(Callback):
    """Logs before the first step how much memory projector and criterion need.

    Warns if this is more than the device has free, and names the setting to change. The backbone is
    not counted.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Estimate the memory, compare it with what is free, and log it."""
        module: Any = pl_module
        data = getattr(trainer, "datamodule", None)
        batch_size = getattr(data, "batch_size", None)
        if batch_size is None or not isinstance(getattr(module, "projector", None), nn.Module):
            return
        defaults = trainer.optimizers[0].defaults if trainer.optimizers else {}
        state = 2 if "betas" in defaults else int(bool(defaults.get("momentum")))
        need = estimate(
            module.projector,
            module.criterion,
            batch_size,
            world_size=trainer.world_size,
            activation_bytes=_activation_bytes(str(trainer.precision)),
            state_tensors=state,
            views=getattr(data, "num_views", 2),
            predictor=getattr(module, "predictor", None),
            teacher=getattr(getattr(module, "teacher", None), "projector", None),
        )
        rank_zero_info(describe(need))
        free = free_memory(pl_module.device)
        there = need.parameters * next(module.projector.parameters()).element_size()
        if free is not None and need.total - there > free:
            rank_zero_warn(advice(need, free + there, pl_module.device))


def _activation_bytes(precision: str) -> int:
    return 4 if precision.startswith("32") else 8 if precision.startswith("64") else 2


def describe(need: Estimate) -> str:
    """The estimate in one line."""
    return (
        f"Projector of {need.parameters / 1e6:,.1f} M weights: {_size(need.weights)} with "
        f"gradients and optimiser state, {_size(need.activations)} of activations; criterion: "
        f"{_size(need.criterion)}."
    )


def advice(need: Estimate, free: int, device: torch.device) -> str:
    """What to change where the estimate does not fit."""
    settings = ["--model.projector to narrower layers", "--data.batch_size lower"]
    if need.weights < need.activations + need.criterion:
        settings.reverse()
    return (
        f"Projector and criterion need about {_size(need.total)} "
        f"({_size(need.weights)} for weights, gradients and optimiser state, "
        f"{_size(need.activations)} for activations, {_size(need.criterion)} for the criterion), "
        f"but {device} has {_size(free)} free, and the backbone comes on top. "
        f"Set {settings[0]}, or {settings[1]}."
    )


def _size(count: int) -> str:
    """Bytes in GiB, or in MiB where that is little."""
    gib = count / 2**30
    return f"{gib:,.1f} GiB" if gib >= 0.95 else f"{count / 2**20:,.0f} MiB"
