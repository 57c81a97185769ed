"""Features of the frozen network on training and validation images, computed or read back."""

import hashlib
import zipfile
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

import duality_ssl
from duality_ssl.callbacks.outputs import OutputStore
from duality_ssl.data import FileImages, SSLDataModule
from duality_ssl.files import write_atomically

Features = dict[str, Tensor]
"""The tensors that `duality_ssl.evaluation.evaluate` takes; none but on the first process."""


class FeatureStores:
    """Collects the outputs of test steps on the training, and on the validation images."""

    def __init__(self) -> None:
        names = ("features", "labels")
        self.train = OutputStore(names, device="cpu")
        self.val = OutputStore(names, optional=("embeddings",), device="cpu")

    def add(self, outputs: Any, loader: int) -> None:
        """Keep the outputs of a step for a batch of loader 0 or 1."""
        (self.train, self.val)[loader].add(outputs, "test_step")

    def gather(self, device: torch.device) -> Features:
        """Gather the rows of all processes, in rank order, on the first one."""
        train, val = self.train.gather(device), self.val.gather(device)
        return {f"train_{name}": rows for name, rows in train.items()} | {
            f"val_{name}": rows for name, rows in val.items()
        }


def compute_features(trainer: Trainer, module: LightningModule, data: SSLDataModule) -> Features:
    """Compute the features of a data module's test images; the processes share the work."""
    stores = FeatureStores()
    for number, loader in enumerate(data.test_dataloader()):
        for index, batch in enumerate(loader):
            batch = data.transfer_batch_to_device(batch, module.device, number)
            batch = data.on_after_batch_transfer(batch, number)
            with trainer.precision_plugin.test_step_context():
                stores.add(module.test_step(batch, index, number), number)
    return stores.gather(module.device)


class FeatureCache:
    """Features kept beside a checkpoint, in ``features-cache/``, one file a data set.

    A file is used for the checkpoint, images, precision and version of the package that it was
    computed with. If one of them is another, or the file is damaged, it is computed again and
    replaced. Every process calls the methods; the first one reads and writes.

    Args:
        trainer: Trainer of the test; without a checkpoint nothing is kept.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self._keys: dict[str, str] = {}

    def read(self, name: str, data: SSLDataModule) -> Features | None:
        """Read the features of a data set; None if they are not there."""
        found = self._read(name, data) if self.trainer.is_global_zero else {}
        there: bool = self.trainer.strategy.broadcast(found is not None)
        return found if there else None

    def write(self, name: str, features: Features) -> None:
        """Keep the features of a data set that were not there when they were read."""
        if not features or name not in self._keys:
            return
        arrays = {
            key: (rows.float() if rows.is_floating_point() else rows).numpy()
            for key, rows in features.items()
        }
        arrays["key"] = np.array(self._keys[name])
        try:
            write_atomically(
                self._path(name), lambda file: np.savez(file, allow_pickle=False, **arrays)
            )
        except OSError as error:
            rank_zero_warn(f"The features cannot be kept in {self._path(name)}: {error}.")

    def _read(self, name: str, data: SSLDataModule) -> Features | None:
        if not self.trainer.ckpt_path:
            return None
        try:
            self._keys[name] = self._key(data)
            with np.load(self._path(name), allow_pickle=False) as file:
                if str(file["key"]) != self._keys[name]:
                    return None
                found = {key: torch.from_numpy(file[key]) for key in file if key != "key"}
        except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
            return None
        rank_zero_info(f"The features of {name} are those of an earlier test: {self._path(name)}.")
        return found

    def _path(self, name: str) -> Path:
        checkpoint = Path(str(self.trainer.ckpt_path))
        return checkpoint.parent / "features-cache" / f"{checkpoint.stem}-{name}.npz"

    def _key(self, data: SSLDataModule) -> str:
        """Digest of everything that decides the features."""
        digest = hashlib.sha256(self._checkpoint_digest)
        shown = data.image_size, data.mean, data.std, data.on_bad_image
        for said in (duality_ssl.__version__, self.trainer.precision, shown):
            digest.update(repr(said).encode())
        for loader in data.test_dataloader():
            images = loader.dataset.images  # type: ignore[attr-defined]  # of either data set
            digest.update(images.labels.numpy().tobytes())
            if isinstance(images, FileImages):
                files = (images.path(i).stat() for i in range(len(images)))
                seen = [(file.st_size, file.st_mtime_ns) for file in files]
                digest.update(images.paths.tobytes() + repr(seen).encode())
            else:
                digest.update(images.images.numpy().tobytes())
        return digest.hexdigest()

    @cached_property
    def _checkpoint_digest(self) -> bytes:
        with Path(str(self.trainer.ckpt_path)).open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
