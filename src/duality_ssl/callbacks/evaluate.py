"""Offline evaluation at the end of ``trainer.test``: frozen features, ``evaluation.json``."""

import json
from dataclasses import asdict
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from duality_ssl.callbacks.outputs import OutputStore, output_path, weights_file
from duality_ssl.evaluation import Settings, evaluate
from duality_ssl.files import write_atomically

_PRINTED = ("linear_top1", "knn_top1", "few_label_top1", "rankme")


class OfflineEvaluation(Callback):
    """Evaluates frozen features when ``trainer.test`` ends and writes ``evaluation.json``.

    Test loader 0 is the training set, un-augmented, loader 1 the validation set. The first process
    gathers all features, runs :func:`duality_ssl.evaluation.evaluate`, logs ``test/linear_top1``,
    ``test/knn_top1``, ``test/few_label_top1``, ``test/few_label_std``, ``test/rankme`` (validation
    embeddings, or features if the step returns none) and ``test/rankme_features`` (accuracies as
    fractions), and writes them, with the sizes of the sets and the settings, beside the checkpoint
    (in the run's folder without one): ``evaluation.json`` for ``last.ckpt``,
    ``evaluation-best.json`` for ``best.ckpt``. Without labels, or with one class, only the ranks
    are logged and written.

    Args:
        **settings: Fields of :class:`duality_ssl.evaluation.Settings`.

    Raises:
        ValueError: If the data does not have the two test loaders, or features are not finite.
    """

    def __init__(self, **settings: Any) -> None:
        self.settings = Settings(**settings)
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

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        train = self._train.gather(pl_module.device)
        val = self._val.gather(pl_module.device)
        path = output_path(trainer, "evaluation.json")
        if not trainer.is_global_zero:
            return
        weights = weights_file(trainer)
        results = evaluate(
            train["features"],
            train["labels"],
            val["features"],
            val["labels"],
            val_embeddings=val.get("embeddings"),
            settings=self.settings,
            device=pl_module.device,
        )
        for name, value in results.items():
            # nothing is synchronized, since the others have returned; this silences the advice
            pl_module.log(f"test/{name}", value, rank_zero_only=True, sync_dist=True)
        record = {
            **results,
            "method": type(pl_module).__name__,
            "checkpoint": weights.name if weights else None,
            "num_train": len(train["labels"]),
            "num_val": len(val["labels"]),
            "num_features": train["features"].shape[1],
            "settings": asdict(self.settings),
        }
        content = json.dumps(record, indent=2) + "\n"
        write_atomically(path, lambda file: file.write(content.encode()))
        figures = (f"{name} {results[name]:.4g}" for name in _PRINTED if name in results)
        rank_zero_info(f"{', '.join(figures)}. Wrote {path}.")
