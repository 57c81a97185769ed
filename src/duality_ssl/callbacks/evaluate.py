"""Offline evaluation at the end of ``trainer.test``: frozen features, ``evaluation.json``."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from duality_ssl.callbacks.frozen import FeatureCache, Features, FeatureStores, compute_features
from duality_ssl.callbacks.outputs import output_path, weights_file
from duality_ssl.data import SSLDataModule, TransferSet
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
        sets: Further data sets to evaluate the same network on, with the same protocols: the entry
            ``sets`` of the results, logged as ``test/SET/NAME``. All processes share the work on
            the features.
        cache: Keep the features beside the checkpoint, in ``features-cache/``: the next test of
            the same checkpoint and images takes them from there, without a forward pass.
        teacher: Evaluate the teacher's backbone and projector in place of the network's; the files
            are ``evaluation-teacher.json`` and ``evaluation-teacher-best.json``.
        **settings: Fields of :class:`duality_ssl.evaluation.Settings`.

    Raises:
        ValueError: If the data does not have the two test loaders, features are not finite, there
            is no such protocol, two data sets have one name, or there is no teacher to evaluate.
    """

    def __init__(
        self,
        sets: Sequence[TransferSet] = (),
        cache: bool = True,
        teacher: bool = False,
        **settings: Any,
    ) -> None:
        self.sets = {each.title: each for each in sets}
        self.cache = cache
        self.teacher = teacher
        self.settings = Settings(**settings)
        check_protocols(self.settings)
        if len(self.sets) < len(sets):
            titles = ", ".join(each.title for each in sets)
            raise ValueError(
                f"Expected different names in `evaluation.sets`, but got {titles}: set `name`."
            )
        self._stores: FeatureStores
        self._cache: FeatureCache | None = None
        self._cached: Features | None = None
        self._transfer: dict[str, SSLDataModule] = {}
        self._swapped = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Read the further data sets, so that missing files are found at once."""
        data = getattr(trainer, "datamodule", None)
        if stage == "test" and self.teacher and getattr(pl_module, "teacher", None) is None:
            raise ValueError(
                f"Expected a method with a teacher for --evaluation.teacher, but "
                f"{type(pl_module).__name__} has none here."
            )
        if stage != "test" or not self.sets:
            return
        if not isinstance(data, SSLDataModule):
            raise ValueError(
                "Expected an SSLDataModule with `evaluation.sets`, whose images are prepared as "
                f"its own, but got {type(data).__name__}."
            )
        self._transfer = {name: each.images(data) for name, each in self.sets.items()}

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the features of an earlier test if they are kept; then no batch is loaded."""
        data: Any = getattr(trainer, "datamodule", None)
        loaders: Any = trainer.test_dataloaders
        self._swap(pl_module)
        self._cache = self._cached = None
        if not (self.cache and trainer.ckpt_path and isinstance(data, SSLDataModule)):
            return
        if [len(loader) for loader in loaders] != trainer.num_test_batches:
            return  # a part of the images
        self._cache = FeatureCache(trainer)
        self._cached = self._cache.read(self._named("test"), data)
        for loader in loaders if self._cached is not None else ():
            loader.load_state_dict({**loader.state_dict(), "batches": len(loader)})

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start with empty stores; require a training and a validation loader."""
        loaders = len(trainer.num_test_batches)
        if loaders != 2:
            raise ValueError(
                "Expected two test loaders, the training set and the validation set, but got "
                f"{loaders}. Return both from `test_dataloader`."
            )
        self._stores = FeatureStores()

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
        self._stores.add(outputs, dataloader_idx)

    @torch.inference_mode(False)  # protocols train on the features
    @torch.no_grad()
    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        features = self._cached
        if features is None:
            features = self._stores.gather(pl_module.device)
            if self._cache is not None:
                self._cache.write(self._named("test"), features)
        others = {
            name: self._features_of(name, trainer, pl_module, data)
            for name, data in self._transfer.items()
        }
        path = output_path(trainer, f"{self._named('evaluation')}.json")
        if not trainer.is_global_zero:
            return
        weights = weights_file(trainer)
        results = self._evaluate(trainer, pl_module, getattr(trainer, "datamodule", None), features)
        _log(pl_module, "test", results)
        sets = {}
        for name, data in self._transfer.items():
            sets[name] = self._evaluate(trainer, pl_module, data, others[name])
            _log(pl_module, f"test/{name}", sets[name])
            rank_zero_info(f"{name}: {_summary(sets[name])}.")
        record = {
            **results,
            **({"sets": sets} if sets else {}),
            "method": type(pl_module).__name__,
            "checkpoint": weights.name if weights else None,
            **({"teacher": True} if self.teacher else {}),
            "num_features": features["train_features"].shape[1],
            "settings": asdict(self.settings),
        }
        # a line an entry: one a number would be a million lines for 1000 classes
        lines = (f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in record.items())
        content = "{\n" + ",\n".join(lines) + "\n}\n"
        write_atomically(path, lambda file: file.write(content.encode()))
        rank_zero_info(f"{_summary(results)}. Wrote {path}.")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the network back in the place of its teacher."""
        self._swap(pl_module, back=True)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._swap(pl_module, back=True)

    def _swap(self, module: Any, back: bool = False) -> None:
        """Exchange the network and its teacher, or put them back; nothing without a teacher."""
        if self.teacher and self._swapped == back:
            module.backbone, module.teacher.backbone = module.teacher.backbone, module.backbone
            module.projector, module.teacher.projector = module.teacher.projector, module.projector
            self._swapped = not back

    def _named(self, name: str) -> str:
        """The name of a file about the network, or about its teacher."""
        return f"{name}-teacher" if self.teacher else name

    def _features_of(
        self, name: str, trainer: Trainer, module: LightningModule, data: SSLDataModule
    ) -> Features:
        """Read or compute the features of a further data set, on all processes."""
        kept = self._named(name)
        features = self._cache.read(kept, data) if self._cache is not None else None
        if features is None:
            features = compute_features(trainer, module, data)
            if self._cache is not None:
                self._cache.write(kept, features)
        return features

    def _evaluate(
        self, trainer: Trainer, module: LightningModule, data: Any, features: Features
    ) -> dict[str, Any]:
        """Run the protocols on one data set, and count its samples."""
        images = isinstance(data, SSLDataModule) and trainer.world_size == 1
        asked_for = [name for name in self.settings.protocols if name not in QUICK]
        named = [name for name in asked_for if name in OF_NETWORK]
        if named and not images:
            rank_zero_warn(
                f"The protocols {', '.join(named)} are left out: they need an SSLDataModule and "
                "one process (--trainer.devices 1)."
            )
        return {
            **evaluate(
                **features,
                class_names=getattr(data, "class_names", None),
                settings=self.settings,
                device=module.device,
                network=module,
                data=data if images else None,
            ),
            "num_train": len(features["train_labels"]),
            "num_val": len(features["val_labels"]),
        }


def _log(module: LightningModule, prefix: str, results: dict[str, Any]) -> None:
    for name, value in results.items():
        if isinstance(value, float):
            # nothing is synchronized, since the others have returned; this silences the advice
            module.log(f"{prefix}/{name}", value, rank_zero_only=True, sync_dist=True)


def _summary(results: dict[str, Any]) -> str:
    return ", ".join(f"{name} {results[name]:.4g}" for name in _PRINTED if name in results)
