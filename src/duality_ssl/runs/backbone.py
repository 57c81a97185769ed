"""The trained backbone as a file of its own."""

from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from duality_ssl.distributed import rank
from duality_ssl.runs.checkpoint import LastCheckpoint


class BackboneWriter(Callback):
    """Writes the backbone's weights beside ``last.ckpt`` when a fit ends.

    The file is safetensors, with the keys of torchvision's or timm's network of that name. Its
    metadata names the network and the images that it expects
    (`~duality_ssl.JointEmbedding.about_backbone`). A fit without ``last.ckpt`` writes none.

    Args:
        filename: Name of the file.
        teacher: Write the teacher's backbone, where there is a teacher.

    Raises:
        ValueError: If it is a path, or does not end in ``.safetensors``.
    """

    def __init__(self, filename: str = "backbone.safetensors", teacher: bool = False) -> None:
        if Path(filename).name != filename or Path(filename).suffix != ".safetensors":
            raise ValueError(
                f"Expected `backbone.filename` to be a NAME.safetensors, but got {filename!r}."
            )
        self.filename, self.teacher = filename, teacher

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file on rank 0; a full disk does not fail the fit."""
        kept = [each for each in trainer.checkpoint_callbacks if isinstance(each, LastCheckpoint)]
        if trainer.fast_dev_run or not kept or rank() != 0:  # type: ignore[attr-defined]
            return
        path = Path(kept[0].dirpath or "") / self.filename
        method: Any = pl_module
        try:
            method.save_backbone(path, teacher=self.teacher)
        except OSError as error:
            rank_zero_warn(f"The backbone cannot be written to {path}: {error}.")
