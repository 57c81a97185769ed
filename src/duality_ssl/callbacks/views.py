"""The augmented views of an image side by side in TensorBoard."""

from collections.abc import Sequence
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.nn.functional import pad

from duality_ssl.batches import training_views


class ViewGrid(Callback):
    """Writes a grid of augmented views at the start of the run, and again every few epochs.

    Images are denormalized with the data module's ``mean`` and ``std``; without them each grid is
    stretched from its least to its greatest value. Without a TensorBoard logger the callback does
    nothing.

    Args:
        num_images: Images in the grid, all views of each.
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
        large, small, _ = training_views(batch)
        views = [view[: self.num_images] for view in (*large, *small)]
        datamodule = getattr(trainer, "datamodule", None)
        mean, std = (getattr(datamodule, name, None) for name in ("mean", "std"))
        grid = view_grid(views, mean, std)
        for board in boards:
            board.experiment.add_image("views", grid, trainer.global_step)


def view_grid(views: Sequence[Tensor], mean: Any = None, std: Any = None) -> Tensor:
    """Arrange views ``(N, C, H, W)`` in a uint8 image ``(3, H', W')``, eight pictures in a row.

    The views of an image are side by side, small ones in a frame. The first channel is shown unless
    C = 3. ``mean`` and ``std`` undo a normalization.
    """
    from torchvision.utils import make_grid  # slow to import

    side = views[0].shape[-1]
    same = [pad(x, (0, side - x.shape[-1], 0, side - x.shape[-1])) for x in views]
    rows = torch.cat(same, dim=3).detach().float().cpu()
    known = mean is not None and std is not None
    if known:
        rows = rows * torch.as_tensor(std).view(-1, 1, 1) + torch.as_tensor(mean).view(-1, 1, 1)
        rows = rows.clamp(0, 1)
    if rows.shape[1] != 3:
        rows = rows[:, :1]
    grid = make_grid(rows, nrow=max(1, 8 // len(views)), normalize=not known, pad_value=1)
    return (grid * 255).round().to(torch.uint8)
