"""Features in a file, written at the end of ``trainer.predict``."""

from typing import Any

import numpy as np
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from duality_ssl.callbacks.outputs import OutputStore, gather_strings, output_path
from duality_ssl.files import write_atomically


class FeatureWriter(Callback):
    """Writes features, embeddings and labels of all of ``trainer.predict`` to one file.

    ``features`` ``(N, F)`` and, if the step returns them, ``embeddings`` ``(N, D)`` are float32,
    ``labels`` ``(N,)`` int64 (-1 is unlabelled); ``paths`` ``(N,)`` are those of image files. The
    file is a NumPy archive without pickles, read with ``numpy.load("features.npz")``, beside the
    checkpoint (in the run's folder without one). Rows are in the order of the predict loader; with
    several processes, those of the first come first.

    Args:
        filename: Name of the file; ``-NAME`` is added for a checkpoint other than ``last.ckpt``.
    """

    def __init__(self, filename: str = "features.npz") -> None:
        self.filename = filename
        self._store: OutputStore
        self._paths: list[str] = []

    def on_predict_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._store = OutputStore(("features", "labels"), optional=("embeddings",), device="cpu")
        self._paths = []

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._store.add(outputs, "predict_step")
        self._paths += getattr(batch, "paths", ())

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        rows = self._store.gather(pl_module.device)
        paths = gather_strings(self._paths, pl_module.device) if self._paths else []
        path = output_path(trainer, self.filename)
        if not trainer.is_global_zero:
            return
        arrays = {
            name: (value.float() if value.is_floating_point() else value).numpy()
            for name, value in rows.items()
        }
        if paths:
            arrays["paths"] = np.array(paths)
        write_atomically(path, lambda file: np.savez(file, allow_pickle=False, **arrays))
        rank_zero_info(f"Wrote {len(arrays['labels'])} samples to {path}.")
