"""The two augmented views side by side in TensorBoard."""

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.nn.functional import pad

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
        self.num_images = num_images
        self.every_n_epochs = every_n_epochs
        self._drawn = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw at the first batch, also in a resumed run."""
        self._drawn = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write the grid, if it is due."""
        again = self.every_n_epochs and trainer.current_epoch % self.every_n_epochs == 0
        if self._drawn and not (batch_idx == 0 and again):
            return
        self._drawn = True
        boards = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if not boards or not trainer.is_global_zero:
            return
        first, second, _ = two_views(batch)
        datamodule = getattr(trainer, "datamodule", None)
        grid = view_grid(
            first[: self.num_images],
            second[: self.num_images],
            getattr(datamodule, "mean", None),
            getattr(datamodule, "std", None),
        )
        for board in boards:
            board.experiment.add_image("views", grid, trainer.global_step)


def view_grid(
    first: Tensor, second: Tensor, mean: Any = None, std: Any = None, columns: int = 4
) -> Tensor:
    """Arrange pairs of images in a grid, the two views of an image beside each other.

    Args:
        first: First views, of shape ``(N, C, H, W)``.
        second: Second views, of the same shape.
        mean: Mean that was subtracted, a number a channel, or None.
        std: Standard deviation that was divided by, a number a channel, or None.
        columns: Pairs in a row.

    Returns:
        Image of shape ``(3, H', W')`` (``(1, H', W')`` for grey), uint8, on the CPU, with a white
        line of one pixel within a pair and of two around it. Of other numbers of channels the first
        is shown.
    """
    from torchvision.utils import make_grid  # slow to import

    views = torch.stack([first, second]).detach().float().cpu()  # (2, N, C, H, W)
    if mean is not None and std is not None:
        shape = (-1, 1, 1)
        views = views * torch.as_tensor(std).view(shape) + torch.as_tensor(mean).view(shape)
    else:
        low, high = views.min(), views.max()
        views = (views - low) / (high - low).clamp(min=1e-12)
    if views.shape[2] not in (1, 3):
        views = views[:, :, :1]
    views = (views.clamp(0, 1) * 255).round().to(torch.uint8)
    white = 255
    left, right = pad(views[0], (0, 1), value=white), views[1]
    pairs = pad(torch.cat([left, right], dim=3), (2, 2, 2, 2), value=white)
    grid: Tensor = make_grid(pairs, columns, padding=0, pad_value=white)
    return grid[: views.shape[2]]  # make_grid repeats a grey channel
