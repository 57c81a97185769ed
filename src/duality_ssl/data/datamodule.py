"""The one data module: two augmented views for pretraining, plain images for the rest."""

import time
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import Dataset

from duality_ssl.data import transforms
from duality_ssl.data.augment import Augmentation, View, ViewChanges
from duality_ssl.data.file_images import FileImages, FolderDataset
from duality_ssl.data.folder import Folder
from duality_ssl.data.layout import Labels
from duality_ssl.data.loader import ArrayDataset, Batch, BatchLoader, PlainBatch, outlive_signals
from duality_ssl.data.sampler import EvalBatches, TrainBatches
from duality_ssl.data.sources import Images, ImageSource, Split, create_source
from duality_ssl.distributed import process_group, world_size
from duality_ssl.randomness import SUBSET, derive_seed

_DEFAULT_VIEW = View()
_AS_THE_FIRST = ViewChanges()


def draw_subset(labels: Tensor, subset: int | float, seed: int) -> Tensor:
    """Choose some samples at random, each class in proportion as far as whole samples allow.

    Args:
        labels: Classes, shape ``(N,)``; all -1 draws without regard to classes.
        subset: How many, or which fraction (a float in (0, 1]).
        seed: The same seed draws the same samples.

    Returns:
        Sorted indices.

    Raises:
        ValueError: If there is nothing to draw, or less than asked for.
    """
    n = len(labels)
    if isinstance(subset, bool) or not isinstance(subset, int | float):
        raise ValueError(f"Expected `data.subset` to be a count or a fraction, but got {subset!r}.")
    if isinstance(subset, float) and not 0 < subset <= 1:
        raise ValueError(
            f"Expected a fractional `data.subset` to be in (0, 1], but got {subset}: write a count "
            "without a decimal point."
        )
    count = round(subset * n) if isinstance(subset, float) else subset
    if not 1 <= count <= n:
        raise ValueError(
            f"Expected `data.subset` to be 1 to {n} images, or a fraction that is, but got "
            f"{subset}."
        )
    generator = torch.Generator().manual_seed(derive_seed(SUBSET, seed))
    order = torch.randperm(n, generator=generator)
    # The r-th of a class with m samples gets the key (r + 1/2) / m: the smallest keys are spread
    # over the classes in proportion.
    by_class = labels[order].argsort(stable=True)
    _, sizes = labels.unique(return_counts=True)
    rank = torch.arange(n) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    keys = (rank + 0.5) / sizes.repeat_interleave(sizes)
    return order[by_class][keys.argsort(stable=True)[:count]].sort().values


class SSLDataModule(LightningDataModule):
    """Images of a source for self-supervised pretraining and for probing what it learnt.

    Training batches are, on the device, ``([view1, view2], labels)`` with views of shape
    ``(B, C, S, S)``; all others ``([images], labels)`` without augmentation. A label is -1 where
    there is none. All draws are functions of (seed, epoch, batch or sample): neither the number of
    workers or processes nor an interruption changes a run.

    The probe's set is the pretraining set if that has labels, and the source's labelled images if
    those are others (STL-10), unless ``probe_source`` names another. It is normalised as the
    pretraining images are.

    Args:
        source: Name of the image source: digits, fashion_mnist, cifar10, cifar100, stl10, folder,
            imagenet, or one registered with `register_source`; or the dotted path of a class
            (``mine.Stripes``), whose module is imported.
        root: Folder of the source's files.
        batch_size: Batch of one process.
        image_size: Side of the views in pixels; the source's own by default.
        num_workers: Processes that load; images in memory need none.
        subset: Count, or fraction as a float, of the pretraining set to use, drawn by the seed and
            evenly over its classes.
        probe_source: Name of the source of the probe's images, if another.
        probe_root: Folder of the probe's files.
        view1: How the first view is drawn.
        view2: What the second view has otherwise than the first; nothing by default.
        on_bad_image: What to do about a file that cannot be read: "error" stops and names it,
            "skip" takes another in training, leaves it out in evaluation, and counts.
        predict_split: Which of the probe's splits `predict` goes through.
        labels: Whether the folders of image files are classes: "auto" goes by their layout (see
            `Folder`), "folder" takes the first folder of each path as its class, "none" takes all
            images without labels. A probe's set of its own always has labels.
        seed: Seed of order, subset, held-out images and augmentation, 0 or more.

    Raises:
        ValueError: If an argument is out of range or a source unknown, at once; if the set is
            smaller than one batch or a batch is one image, when its loader is made.
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
        view2: ViewChanges = _AS_THE_FIRST,
        on_bad_image: Literal["error", "skip"] = "error",
        predict_split: Literal["train", "val"] = "val",
        labels: Labels = "auto",
        seed: int = 0,
    ) -> None:
        super().__init__()
        _at_least("batch_size", batch_size, 1)
        _at_least("num_workers", num_workers, 0)
        _at_least("seed", seed, 0)
        if image_size is not None:
            _at_least("image_size", image_size, 1)
        _one_of("on_bad_image", on_bad_image, ("error", "skip"))
        _one_of("predict_split", predict_split, ("train", "val"))
        _one_of("labels", labels, ("auto", "folder", "none"))
        self.source = source
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.subset = subset
        self.views = (view1, view2.of(view1))
        self.on_bad_image: Literal["error", "skip"] = on_bad_image
        self.predict_split: Literal["train", "val"] = predict_split
        self.labels = labels
        self.seed = seed
        self._pretrain = create_source(source, root)
        self._probe: ImageSource = self._pretrain
        self._names_probe = probe_source is not None or probe_root is not None
        if self._names_probe:
            self._probe = create_source(probe_source or source, probe_root)
        self._set_up_folders()
        self.channels = self._pretrain.channels
        self.image_size = self._pretrain.image_size if image_size is None else image_size
        if self._probe.channels > self.channels:
            raise ValueError(
                f"Expected `data.probe_source` to be grey as `{source}` is, but `{probe_source}` "
                "is RGB: a network for one channel cannot see it."
            )
        self.host_seconds = {"decode": 0.0, "augment": 0.0}
        """Spent on training batches so far: files read and decoded, and augmenting by the host."""
        self._cache: dict[tuple[bool, Split], Images] = {}

    def _set_up_folders(self) -> None:
        """Tell the sources that read folders what the seed is, and whether folders are classes."""
        folders = [s for s in (self._pretrain, self._probe) if isinstance(s, Folder)]
        if self.labels != "auto" and not folders:
            raise ValueError(
                f"Expected `data.labels` to be auto with the source `{self.source}`, but got "
                f"{self.labels!r}: it says how folders of images are read."
            )
        for folder in folders:
            folder.seed = self.seed
            if self.labels == "folder" or (self.labels == "none" and folder is self._pretrain):
                folder.labels = self.labels

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of each channel that images are normalised with, for values in [0, 1]."""
        return self._pretrain.mean

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of each channel that images are normalised with, likewise."""
        return self._pretrain.std

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
        """Read (or list) what the stage needs, so that a missing file is found before a model."""
        if self._names_probe and self.num_classes is None:
            named = self._probe.root or self._probe
            raise ValueError(
                "Expected `data.probe_source` and `data.probe_root` to name labelled images, "
                f"but those of `{named}` have no labels: sort them into train/<class>/ and "
                "val/<class>/, or name another set."
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
                "Expected `data.batch_size` to be 2 or more for training, which compares images "
                f"with each other, but got {self.batch_size}."
            )
        images, wanted = len(self._pretrain_images()), self.batch_size * processes
        if images < wanted:
            most = images // processes
            remedy = f"set `data.batch_size` to {most} or less" if most > 1 else "add images"
            raise ValueError(
                f"Expected at least one batch of {wanted} images (`data.batch_size` "
                f"{self.batch_size}, {processes} processes), but the pretraining set "
                f"`{self.source}` has {images}: {remedy}."
            )

    def train_dataloader(self) -> BatchLoader:
        """Batches of the pretraining set for two views; the last, smaller one is left out."""
        self.check_batch(world_size())
        images = self._pretrain_images()
        overfit = bool(getattr(self.trainer, "overfit_batches", 0))
        sampler = TrainBatches(images, self.batch_size, self.seed, shuffle=not overfit)
        return self._loader(images, sampler)

    def val_dataloader(self) -> list[BatchLoader]:
        """The validation set; before it the probe's training set if pretraining uses another.

        The probe learns from its set here, which is therefore in an order drawn by the seed.
        """
        probe = [self._eval_loader("train", self.seed)] if self._has_probe_set else []
        return [*probe, self._eval_loader("val")]

    def test_dataloader(self) -> list[BatchLoader]:
        """The probe's training and validation sets, not augmented."""
        return [self._eval_loader("train"), self._eval_loader("val")]

    def predict_dataloader(self) -> BatchLoader:
        """The probe's split that ``predict_split`` names, not augmented."""
        return self._eval_loader(self.predict_split)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Turn a `Batch` into ``(list of float images, labels)`` on its device."""
        if not isinstance(batch, Batch):
            return batch
        if batch.seed is None:
            images = self._converted(self._plain(batch.images[0]))
            return PlainBatch(images, batch.labels, batch.paths)
        started = time.perf_counter()
        generator = torch.Generator().manual_seed(batch.seed)
        cropped = len(batch.images) > 1
        crops = batch.images if cropped else (batch.images[0],) * 2
        views = [
            self._converted(augment(images, generator, cropped=cropped, group=process_group()))
            for augment, images in zip(self._augmentations, crops, strict=True)
        ]
        self.host_seconds["augment"] += time.perf_counter() - started
        self.host_seconds["decode"] += batch.decode_seconds
        return views, batch.labels

    @cached_property
    def _augmentations(self) -> tuple[Augmentation, ...]:
        size, mean, std = self.image_size, self.mean, self.std
        return tuple(Augmentation(view, size, mean, std) for view in self.views)

    def _converted(self, images: Tensor) -> Tensor:
        """In the precision of a network that is not float32: Lightning has converted bytes only."""
        if self.trainer is None:
            return images
        converted: Tensor = self.trainer.precision_plugin.convert_input(images)
        return converted

    @torch.no_grad()
    def _plain(self, images: Tensor) -> Tensor:
        """Normalised; resized to a square of the views' size, grey as RGB, where need be."""
        height, width = images.shape[2:]
        images = images.float().div_(255)
        if (height, width) != (self.image_size, self.image_size):
            whole = torch.tensor([[0, 0, height, width]])
            images = transforms.resized_crop(images, whole.expand(len(images), 4), self.image_size)
        if images.shape[1] < self.channels:
            images = images.repeat(1, self.channels, 1, 1)
        return transforms.normalize(images, self.mean, self.std)

    @property
    def _has_probe_set(self) -> bool:
        """Whether probing uses labelled images that pretraining does not."""
        return not self.probe_is_pretrain and self.num_classes is not None

    def _pretrain_images(self) -> Images:
        key: tuple[bool, Split] = (True, "pretrain")
        if key not in self._cache:
            images = self._pretrain.load("pretrain")
            if self.subset is not None:
                images = images.subset(draw_subset(images.labels, self.subset, self.seed))
            # Labels of other classes than the probe's would only be mistaken for them.
            self._cache[key] = images if self.probe_is_pretrain else images.unlabelled()
        return self._cache[key]

    def _probe_images(self, split: Literal["train", "val"]) -> Images:
        if split == "train" and not self._has_probe_set:
            return self._pretrain_images()  # with its subset: the probe knows no other labels
        if (False, split) not in self._cache:
            self._cache[False, split] = self._probe.load(split)
        return self._cache[False, split]

    def _eval_loader(self, split: Literal["train", "val"], seed: int | None = None) -> BatchLoader:
        images = self._probe_images(split)
        if len(images) < world_size():
            raise ValueError(
                f"Expected at least one image a process ({world_size()}) in the split `{split}`, "
                f"but it has {len(images)}."
            )
        return self._loader(images, EvalBatches(images, self.batch_size, seed))

    def _loader(self, images: Images, sampler: TrainBatches | EvalBatches) -> BatchLoader:
        dataset: Dataset[Any] = (
            FolderDataset(images, self.image_size, self.views, self.seed, self.on_bad_image)
            if isinstance(images, FileImages)
            else ArrayDataset(images)  # type: ignore[arg-type]
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


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"Expected `data.{name}` to be {' or '.join(allowed)}, but got {value!r}.")
