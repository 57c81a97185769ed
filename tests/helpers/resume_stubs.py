"""What tests of interrupted runs share: how results are compared, to the bit."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def unequal(ours: Any, theirs: Any, name: str = "") -> list[str]:
    """Names of the leaves in which two nested results differ in a bit or in type."""
    if type(ours) is not type(theirs):
        return [f"{name}: {ours!r} {theirs!r}"]
    if isinstance(ours, Mapping):
        if ours.keys() != theirs.keys():
            return [f"{name}: {ours.keys() ^ theirs.keys()}"]
        return [leaf for key in ours for leaf in unequal(ours[key], theirs[key], f"{name}/{key}")]
    if isinstance(ours, list | tuple):
        if len(ours) != len(theirs):
            return [f"{name}: {len(ours)} {len(theirs)}"]
        pairs = enumerate(zip(ours, theirs, strict=True))
        return [leaf for i, (a, b) in pairs for leaf in unequal(a, b, f"{name}/{i}")]
    if isinstance(ours, torch.Tensor):
        same = ours.dtype == theirs.dtype and ours.shape == theirs.shape
        # bits: NaN is itself, and 0 is not -0
        same = same and ours.numpy().tobytes() == theirs.numpy().tobytes()
        return [] if same else [f"{name}: {ours} {theirs}"]
    return [] if repr(ours) == repr(theirs) else [f"{name}: {ours!r} {theirs!r}"]


def scalars(run: Path) -> dict[str, set[tuple[int, float]]]:
    """Steps and values that TensorBoard shows of a run."""
    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    return {
        tag: {(event.step, event.value) for event in events.Scalars(tag)}
        for tag in events.Tags()["scalars"]
    }
