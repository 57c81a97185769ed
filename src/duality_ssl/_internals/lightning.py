"""Private names of Lightning."""

from lightning import Trainer

# The type of a checkpoint's path.
from lightning.fabric.utilities.types import _PATH as PathLike

# The launcher that starts the other processes of a machine; without it they cannot be ended.
from lightning.pytorch.strategies.launchers import (
    _SubprocessScriptLauncher as SubprocessScriptLauncher,
)

__all__ = ["PathLike", "SubprocessScriptLauncher", "has_sync_batchnorm"]


def has_sync_batchnorm(trainer: Trainer) -> bool:
    """Whether a trainer has ``sync_batchnorm=True``, which no public attribute says.

    Without it timm's norms would lose their activation and a fit on CPUs would fail.
    """
    return getattr(trainer.strategy, "_layer_sync", None) is not None
