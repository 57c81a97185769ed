"""Offline evaluation at the end of ``trainer.test``: frozen features, ``evaluation.json``."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from duality_ssl.callbacks.outputs import OutputStore, output_path
from duality_ssl.data import SSLDataModule
from duality_ssl.evaluation import OF_NETWORK, QUICK, Settings, check_protocols, evaluate
from duality_ssl.files import write_atomically

_PRINTED = ("linear_top1", "knn_top1", "few_label_top1", "rankme")


class OfflineEvaluation(Callback):
    """Evaluates frozen features when ``trainer.test`` ends and writes ``evaluation.json``.

    Test loader 0 is the training set, un-augmented, loader 1 the validation set. The first process
    gathers all features, runs :func:`duality_ssl.evaluation.evaluate`, logs each number of its
    result as ``test/NAME`` (``test/linear_top1``; accuracies as fractions), and writes the result,
    with the sizes of the sets and the settings, beside the checkpoint (in the run's folder without
    one): ``evaluation.json`` for ``last.ckpt``, ``evaluation-best.json`` for ``best.ckpt``. Without
    labels, or with one class, only label-free measures are logged and written.

    The protocols of `duality_ssl.evaluation.OF_NETWORK` need images as well as features. They run
    if the data module is an `SSLDataModule` and the test has one process, and are left out with a
    warning otherwise.

    Args:
        **settings: Fields of :class:`duality_ssl.evaluation.Settings`.

    Raises:
        ValueError: If the data does not have the two test loaders, features are not finite, or
            there is no such protocol.
    """

    def __init__(self, **settings: Any) -> None:
        self.settings = Settings(**settings)
        check_protocols(self.settings)
        self._train: OutputStore
        self._val: OutputStore

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start with empty stores; require a training and a validation loader."""
        loaders = len(trainer.num_test_batches)
        if loaders != 2:
            raise ValueError(
                "Expected two test loaders, the training set and the validation set, but got "
                f"{loaders}. Return both from `test_dataloader`."
            )
        self._train = OutputStore(("features", "labels"), device="cpu")
        self._val = OutputStore(("features", "labels"), optional=("embeddings",), device="cpu")

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the features of the set that this loader reads."""
        (self._train, self._val)[dataloader_idx].add(outputs, "test_step")

    @torch.inference_mode(False)  # some protocols train on the features
    @torch.no_grad()
    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        train = self._train.gather(pl_module.device)
        val = self._val.gather(pl_module.device)
        path = output_path(trainer, "evaluation.json")
        if not trainer.is_global_zero:
            return
        data = self._images(trainer)
        with trainer.precision_plugin.forward_context():
            results = evaluate(
                train["features"],
                train["labels"],
                val["features"],
                val["labels"],
                val_embeddings=val.get("embeddings"),
                class_names=getattr(data, "class_names", None),
                settings=self.settings,
                device=pl_module.device,
                network=pl_module,
                data=data,
            )
        for name, value in results.items():
            if isinstance(value, float):
                # nothing is synchronized, since the others have returned; this silences the advice
                pl_module.log(f"test/{name}", value, rank_zero_only=True, sync_dist=True)
        record = {
            **results,
            "method": type(pl_module).__name__,
            "checkpoint": Path(trainer.ckpt_path).name if trainer.ckpt_path else None,
            "num_train": len(train["labels"]),
            "num_val": len(val["labels"]),
            "num_features": train["features"].shape[1],
            "settings": asdict(self.settings),
        }
        # a line an entry: one a number would be a million lines for 1000 classes
        lines = (f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in record.items())
        content = "{\n" + ",\n".join(lines) + "\n}\n"
        write_atomically(path, lambda file: file.write(content.encode()))
        figures = (f"{name} {results[name]:.4g}" for name in _PRINTED if name in results)
        rank_zero_info(f"{', '.join(figures)}. Wrote {path}.")

    def _images(self, trainer: Trainer) -> SSLDataModule | None:
        """The images for the protocols of the network; None, with a warning, if there are none."""
        data = getattr(trainer, "datamodule", None)
        if isinstance(data, SSLDataModule) and trainer.world_size == 1:
            return data
        asked_for = [name for name in self.settings.protocols if name not in QUICK]
        if named := [name for name in asked_for if name in OF_NETWORK]:
            rank_zero_warn(
                f"The protocols {', '.join(named)} are left out: they need an SSLDataModule and "
                "one process (--trainer.devices 1)."
            )
        return None
