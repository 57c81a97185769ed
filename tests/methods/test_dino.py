"""What DINO adds to the training step: prototypes that stay for the first epochs."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from callbacks.test_numbers import fit, tiny
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from duality_ssl.data import SSLDataModule


class Recorded(Callback):
    """The prototypes and the layer before them, at the end of each epoch."""

    def __init__(self) -> None:
        self.prototypes: list[Tensor] = []
        self.others: list[Tensor] = []

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self.prototypes.append(pl_module.projector[-1].weight.detach().clone())
        self.others.append(pl_module.projector[0].weight.detach().clone())


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_prototypes_are_frozen_in_the_first_epochs(tmp_path: Path, frozen: int) -> None:
    module = tiny("DINO", "16-8-24", in_channels=1, frozen_epochs=frozen, weight_decay=0.1)
    data, recorded = SSLDataModule("digits", batch_size=8, subset=16), Recorded()
    settings = {"epochs": 4, "limit_val_batches": 0}
    fit(tmp_path, None, recorded, module=module, data=data, **settings)
    moved = [
        [not torch.equal(a, b) for a, b in itertools.pairwise(weights)]
        for weights in (recorded.prototypes, recorded.others)
    ]
    assert moved[0] == [epoch >= frozen for epoch in range(3)]
    assert all(moved[1])
