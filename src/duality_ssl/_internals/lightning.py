"""Private names of Lightning."""

# The type of a checkpoint's path.
from lightning.fabric.utilities.types import _PATH as PathLike

# The launcher that starts the other processes of a machine; without it they cannot be ended.
from lightning.pytorch.strategies.launchers import (
    _SubprocessScriptLauncher as SubprocessScriptLauncher,
)

__all__ = ["PathLike", "SubprocessScriptLauncher"]
