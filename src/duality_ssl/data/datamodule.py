"""The data module: augmented views for pretraining, plain images for everything else."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import Dataset

from duality_ssl.data.augment.pipeline import plain
from duality_ssl.data.augment.view import SmallView, View, ViewChanges
from duality_ssl.data.augment.views import Views
from duality_ssl.data.datasets import (
    ArrayDataset,
    Batch,
    FileDataset,
    FileImages,
    Images,
    PlainBatch,
)
from duality_ssl.data.loader import BatchLoader, outlive_signals
from duality_ssl.data.sampler import EvalBatches, TrainBatches, draw_subset, hold_out
from duality_ssl.data.sources import Split, create_source
from duality_ssl.data.sources.base import Labels
from duality_ssl.distributed import world_size

_DEFAULT_VIEW = View()
_SAME = ViewChanges()
_SMALL = SmallView()


class SSLDataModule(LightningDataModule):
    """Images of a source for self-supervised pretraining and for probing what was learnt.

    Training batches are, on the device, ``(views, labels)`` with views of shape ``(B, C, S, S)``,
    two by default; all others are ``([images], labels)`` without augmentation. A label is -1 where
    there is none. All draws are functions of (seed, epoch, batch or sample): neither the
    number of workers or processes nor an interruption changes a run.

    The probe's set is the pretraining set if that is labelled, or else the source's labelled images
    (STL-10), unless ``probe_source`` names another. It is normalised as the pretraining images are.

    Args:
        source: Name of the image source: digits, fashion_mnist, cifar10, cifar100, stl10, folder,
            imagenet, or one registered with `register_source`; or the dotted path of a class
            (``mine.Stripes``), whose module is imported.
        root: Folder of the source's files.
        batch_size: Batch of one process.
        image_size: Side of the views in pixels; the source's own by default.
        num_workers: Processes that load; images in memory need none.
        subset: Count, or fraction as a float, of the pretraining set to use, drawn by the seed and
            in proportion over its classes.
        probe_source: Name of the source of the probe's images, if another.
        probe_root: Folder of the probe's files.
        view1: Distributions of the first view.
        view2: Differences of the second view from the first; none by default.
        views: Large views of an image, 2 or more, drawn as view 1, 2, 1, 2, ...
        small_views: Further views, cropped to a smaller size, for criteria that take more than two.
        small_view: Size of the small views, and their differences from the first view.
        on_bad_image: What to do about a file that cannot be read: "error" stops and names it,
            "skip" takes another one in training, leaves it out in evaluation, and counts.
        predict_split: The split of the probe's set that `predict` uses.
        labels: Whether the folders of image files are classes: "auto" decides by their layout (see
            `Folder`), "folder" takes the first folder of each path as its class, "none" takes all
            images without labels. A probe set of its own always has labels.
        download: Whether to download missing files of CIFAR, STL-10 or Fashion-MNIST to ``root``.
        seed: Seed of order, subset, held-out images and augmentation, 0 or more.
        validation: Part of the training images that is held out and takes the place of the
            validation split, drawn by the seed and in proportion over the classes: to choose
            hyper-parameters on. 0 leaves the splits as they are.

    Raises:
        ValueError: If an argument is out of range or a source unknown; if the set is smaller than a
            batch, or a batch is one image, when its loader is made.
    """

    def __init__(
        self,
        source: str = "digits",
        root: Path | str | None = None,
        batch_size: int = 256,
        image_size: int | None = None,
        num_workers: int = 0,
        subset: int | float | None = None,
        probe_source: str | None = None,
        probe_root: Path | str | None = None,
        view1: View = _DEFAULT_VIEW,
        view2: ViewChanges = _SAME,
        views: int = 2,
        small_views: int = 0,
        small_view: SmallView = _SMALL,
        on_bad_image: Literal["error", "skip"] = "error",
        predict_split: Literal["train", "val"] = "val",
        labels: Labels = "auto",
        download: bool = False,
        seed: int = 0,
        validation: float = 0,
    ) -> None:
        super().__init__()
        _at_least("batch_size", batch_size, 1)
        _at_least("num_workers", num_workers, 0)
        _at_least("seed", seed, 0)
        _at_least("views", views, 2)
        _at_least("small_views", small_views, 0)
        if image_size is not None:
            _at_least("image_size", image_size, 1)
        if not 0 <= validation < 1:
            raise ValueError(
                f"Expected `data.validation` to be a fraction, 0 or more, but got {validation}."
            )
        self.source = source
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.subset = subset
        self.on_bad_image: Literal["error", "skip"] = on_bad_image
        self.predict_split: Literal["train", "val"] = predict_split
        self.seed = seed
        self.validation = validation
        options: dict[str, Any] = {"download": download, "labels": labels, "seed": seed}
        self._pretrain = self._probe = create_source(source, root, **options)
        self._names_probe = probe_source is not None or probe_root is not None
        if self._names_probe:
            options["labels"] = "auto" if labels == "none" else labels
            self._probe = create_source(probe_source or source, probe_root, **options)
        self.mean, self.std = self._pretrain.mean, self._pretrain.std
        """Mean and deviation of each channel, for values in [0, 1], to normalise with."""
        self.channels = self._pretrain.channels
        self.image_size = self._pretrain.image_size if image_size is None else image_size
        if self._probe.channels > self.channels:
            raise ValueError(
                f"Expected `data.probe_source` to be grey as `{source}` is, but "
                f"`{probe_source}` is RGB."
            )
        pair, looks = (view1, view2.of(view1)), (self.image_size, self.mean, self.std)
        self._views = Views(pair, views, small_views, small_view, *looks)
        self._cache: dict[Split, Images] = {}

    @property
    def views(self) -> tuple[View, ...]:
        """Distributions of the large views."""
        return self._views.large

    @property
    def num_views(self) -> int:
        """Number of views of a training image, large and small."""
        return len(self._views)

    @property
    def small_size(self) -> int | None:
        """Side of the small views in pixels; None without them."""
        return self._views.sizes[-1] if self._views.small else None

    @property
    def has_labels(self) -> bool:
        """Whether training batches have labels."""
        return self.probe_is_pretrain and self.num_classes is not None

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names of the probe's classes; None without labels."""
        return self._probe.class_names

    @property
    def num_classes(self) -> int | None:
        """Number of the probe's classes; None without labels."""
        names = self.class_names
        return None if names is None else len(names)

    @property
    def probe_is_pretrain(self) -> bool:
        """Whether the pretraining batches carry the probe's labels."""
        return self._probe is self._pretrain and self._pretrain.pretrain_is_train

    def setup(self, stage: str | None = None) -> None:
        """Read (or list) the images of the stage, so that missing files are found at once."""
        if self._names_probe and self.num_classes is None:
            raise ValueError(
                "Expected `data.probe_source` and `data.probe_root` to name labelled images, but "
                f"those of `{self._probe.root}` have no labels: sort them into train/<class>/ and "
                "val/<class>/."
            )
        if stage in ("fit", None):
            self._pretrain_images()
        if stage == "test" or (stage != "predict" and self._has_probe_set):
            self._probe_images("train")
        self._probe_images(self.predict_split if stage == "predict" else "val")

    def check_batch(self, processes: int) -> None:
        """Raise ``ValueError`` unless the set fills a batch of this many processes."""
        if self.batch_size < 2:
            raise ValueError(
                "Expected `data.batch_size` to be 2 or more for training, but got "
                f"{self.batch_size}."
            )
        images, wanted = len(self._pretrain_images()), self.batch_size * processes
        if images < wanted:
            raise ValueError(
                f"Expected at least one batch of {wanted} images (`data.batch_size` "
                f"{self.batch_size}, {processes} processes), but the pretraining set "
                f"`{self.source}` has {images}: lower `data.batch_size` or add images."
            )

    def train_dataloader(self) -> BatchLoader:
        """Batches of the pretraining set to augment; a smaller last batch is dropped."""
        self.check_batch(world_size())
        images = self._pretrain_images()
        overfit = bool(getattr(self.trainer, "overfit_batches", 0))
        sampler = TrainBatches(images, self.batch_size, self.seed, shuffle=not overfit)
        return self._loader(images, sampler)

    def val_dataloader(self) -> list[BatchLoader]:
        """The validation set; before it the probe's training set if pretraining uses another one.

        The probe learns from that set here, in an order drawn by the seed.
        """
        probe = [self._eval_loader("train", self.seed)] if self._has_probe_set else []
        return [*probe, self._eval_loader("val")]

    def test_dataloader(self) -> list[BatchLoader]:
        """The probe's training and validation sets, not augmented."""
        return [self._eval_loader("train"), self._eval_loader("val")]

    def predict_dataloader(self) -> BatchLoader:
        """The split of the probe's set that ``predict_split`` names, not augmented."""
        return self._eval_loader(self.predict_split)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Turn a `Batch` into ``(list of float images, labels)`` on its device."""
        if not isinstance(batch, Batch):
            return batch
        if batch.seed is None:
            shape = self.image_size, self.channels
            images = plain(batch.images[0], *shape, self.mean, self.std)
            return PlainBatch(self._converted(images), batch.labels, batch.paths)
        views = self._views.of(batch.images, batch.seed)
        return [self._converted(view) for view in views], batch.labels

    def _converted(self, images: Tensor) -> Tensor:
        """In the precision of the network: Lightning has converted the bytes only."""
        if self.trainer is None:
            return images
        converted: Tensor = self.trainer.precision_plugin.convert_input(images)
        return converted

    @property
    def _has_probe_set(self) -> bool:
        """Whether probing uses labelled images that pretraining does not."""
        return not self.probe_is_pretrain and self.num_classes is not None

    def _pretrain_images(self) -> Images:
        if "pretrain" not in self._cache:
            images = self._load("pretrain")
            if self.subset is not None:
                images = images.subset(draw_subset(images.labels, self.subset, self.seed))
            if not self.probe_is_pretrain:  # other labels would be mistaken for the probe's
                images = replace(images, labels=torch.full_like(images.labels, -1))
            self._cache["pretrain"] = images
        return self._cache["pretrain"]

    def _probe_images(self, split: Literal["train", "val"]) -> Images:
        if split == "train" and not self._has_probe_set:
            return self._pretrain_images()  # with its subset
        if split not in self._cache:
            self._cache[split] = self._load(split)
        return self._cache[split]

    def _load(self, split: Split) -> Images:
        """A split; the training images without those that are held out for validation."""
        source = self._pretrain if split == "pretrain" else self._probe
        parted: Split = "train" if self._has_probe_set else "pretrain"
        if not self.validation or split not in (parted, "val"):
            return source.load(split)
        images = (self._probe if self._has_probe_set else self._pretrain).load(parted)
        held = hold_out(images.labels, self.validation, self.seed)
        return images.subset(held if split == "val" else ~held)

    def _eval_loader(self, split: Literal["train", "val"], seed: int | None = None) -> BatchLoader:
        images = self._probe_images(split)
        if len(images) < world_size():
            raise ValueError(
                f"Expected at least one image per process ({world_size()}) in the split `{split}`, "
                f"but it has {len(images)}."
            )
        return self._loader(images, EvalBatches(images, self.batch_size, seed))

    def _loader(self, images: Images, sampler: TrainBatches | EvalBatches) -> BatchLoader:
        dataset: Dataset[Any] = (
            FileDataset(
                images,
                self.image_size,
                (*self._views.large, *self._views.small),
                self.seed,
                self.on_bad_image,
                self._views.sizes,
            )
            if isinstance(images, FileImages)
            else ArrayDataset(images)
        )
        return BatchLoader(
            dataset,
            batch_size=None,
            sampler=sampler,
            num_workers=self.num_workers,
            worker_init_fn=outlive_signals,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )


def _at_least(name: str, value: int, low: int) -> None:
    if not isinstance(value, int) or value < low:
        raise ValueError(
            f"Expected `data.{name}` to be a whole number, {low} or more, but got {value!r}."
        )
