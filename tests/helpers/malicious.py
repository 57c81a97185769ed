"""What runs code when it is unpickled: each leaves a trace, the canary."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

# exists once code of a file was run, in whatever folder
CANARY = Path(tempfile.gettempdir(), f"canary-{os.getpid()}")


class Touch:
    """Pickled, it is a call that leaves the canary."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return (Path.touch, (CANARY,))
