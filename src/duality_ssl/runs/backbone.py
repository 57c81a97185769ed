"""The backbone in a file of its own: what one takes away when a fit ends."""

from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from duality_ssl.distributed import rank
from duality_ssl.runs.checkpoint import LastCheckpoint


class BackboneWriter(Callback):
    """Writes the backbone's weights beside ``last.ckpt`` when a fit ends.

    The file is safetensors, with the keys of torchvision's or timm's network of that name, and says
    of itself which network that is and what images it expects
    (`~duality_ssl.JointEmbedding.about_backbone`). A fit that keeps no ``last.ckpt`` writes none.

    Args:
        filename: Name of the file.

    Raises:
        ValueError: If it is another than that of a ``.safetensors`` file, or a path.
    """

    def __init__(self, filename: str = "backbone.safetensors") -> None:
        if Path(filename).name != filename or Path(filename).suffix != ".safetensors":
            raise ValueError(
                f"Expected `backbone.filename` to be a name in .safetensors, but got {filename!r}."
            )
        self.filename = filename

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a module without ``save_backbone``."""
        if not hasattr(pl_module, "save_backbone"):
            raise ValueError(
                "Expected a method of this package, whose backbone is written, but got "
                f"{type(pl_module).__name__}: leave BackboneWriter out."
            )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file, on the first process; a disk that is full does not fail the fit."""
        kept = [each for each in trainer.checkpoint_callbacks if isinstance(each, LastCheckpoint)]
        if trainer.fast_dev_run or not kept or rank() != 0:  # type: ignore[attr-defined]
            return
        path = Path(kept[0].dirpath or "") / self.filename
        method: Any = pl_module
        try:
            method.save_backbone(path)
        except OSError as error:
            rank_zero_warn(f"The backbone cannot be written to {path}: {error}.")
