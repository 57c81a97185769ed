"""The two augmented views side by side in TensorBoard."""

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from duality_ssl.batches import two_views


class ViewGrid(Callback):
    """Writes a grid of augmented pairs at the start of the run, and again every few epochs.

    Images are denormalized with the data module's ``mean`` and ``std``; without them each grid is
    stretched from its least to its greatest value. Without a TensorBoard logger the callback does
    nothing.

    Args:
        num_images: Pairs in the grid.
        every_n_epochs: Epochs between two grids; 0 for the first only.

    Raises:
        ValueError: If ``num_images`` is below 1 or ``every_n_epochs`` below 0.
    """

    def __init__(self, num_images: int = 16, every_n_epochs: int = 10) -> None:
        if num_images < 1 or every_n_epochs < 0:
            raise ValueError(
                "Expected `num_images` >= 1 and `every_n_epochs` >= 0, but got "
                f"{num_images} and {every_n_epochs}."
            )
        self.num_images, self.every_n_epochs = num_images, every_n_epochs
        self._drawn = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._drawn = False  # the first batch of a resumed run is drawn, too

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        again = self.every_n_epochs and trainer.current_epoch % self.every_n_epochs == 0
        if self._drawn and not (batch_idx == 0 and again):
            return
        self._drawn = True
        boards = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if not boards or not trainer.is_global_zero:
            return
        first, second = (view[: self.num_images] for view in two_views(batch)[:2])
        datamodule = getattr(trainer, "datamodule", None)
        mean, std = (getattr(datamodule, name, None) for name in ("mean", "std"))
        grid = view_grid(first, second, mean, std)
        for board in boards:
            board.experiment.add_image("views", grid, trainer.global_step)


def view_grid(first: Tensor, second: Tensor, mean: Any = None, std: Any = None) -> Tensor:
    """Arrange views ``(N, C, H, W)`` in a uint8 image ``(3, H', W')``, four pairs in a row.

    The first channel is shown unless C = 3. ``mean`` and ``std`` undo a normalization.
    """
    from torchvision.utils import make_grid  # slow to import

    pairs = torch.cat([first, second], dim=3).detach().float().cpu()
    known = mean is not None and std is not None
    if known:
        pairs = pairs * torch.as_tensor(std).view(-1, 1, 1) + torch.as_tensor(mean).view(-1, 1, 1)
        pairs = pairs.clamp(0, 1)
    if pairs.shape[1] != 3:
        pairs = pairs[:, :1]
    grid = make_grid(pairs, nrow=4, normalize=not known, pad_value=1)
    return (grid * 255).round().to(torch.uint8)
