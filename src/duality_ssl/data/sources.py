"""Registry of image sources, and those that fit into memory."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from inspect import isabstract
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, Self, TypeVar, overload

import numpy as np
import torch
from torch import Tensor

from duality_ssl.data import formats
from duality_ssl.data.pickles import read_pickle
from duality_ssl.registry import did_you_mean, import_path, register

Split = Literal["pretrain", "train", "val"]


class Images(Protocol):
    """A set of images with labels; where the pixels are is the implementation's business."""

    @property
    def labels(self) -> Tensor:
        """Classes, long, shape ``(N,)``; -1 where there is none."""

    def __len__(self) -> int:
        """Number of images."""

    def subset(self, indices: Tensor) -> Self:
        """Some of the images."""

    def unlabelled(self) -> Self:
        """The same images without their labels."""


@dataclass(frozen=True)
class ArrayImages:
    """Images in memory.

    Args:
        images: ``uint8``, shape ``(N, C, H, W)``.
        labels: Classes, shape ``(N,)``; None for a set without any.

    Raises:
        ValueError: If a shape or the dtype is another.
    """

    images: Tensor
    labels: Tensor = None  # type: ignore[assignment]  # given as None, kept as a tensor of -1

    def __post_init__(self) -> None:
        """Check, and fill in the labels."""
        if self.images.ndim != 4 or self.images.dtype != torch.uint8:
            raise ValueError(
                "Expected `images` to be uint8 of shape (N, C, H, W), but got "
                f"{self.images.dtype} of shape {tuple(self.images.shape)}."
            )
        labels = torch.full((len(self.images),), -1) if self.labels is None else self.labels
        if labels.shape != self.images.shape[:1]:
            raise ValueError(
                f"Expected one label an image, but got {len(self.images)} images and labels of "
                f"shape {tuple(labels.shape)}."
            )
        object.__setattr__(self, "labels", labels.long())

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, indices: Tensor) -> "ArrayImages":
        """Some of the images."""
        return ArrayImages(self.images[indices], self.labels[indices])

    def unlabelled(self) -> "ArrayImages":
        """The same images without their labels."""
        return ArrayImages(self.images)


class ImageSource(ABC):
    """Where images come from: a registered subclass is a value of ``data.source``.

    Args:
        root: Folder of the files, for sources that have any.
    """

    channels: ClassVar[int]
    """1 (grey) or 3 (RGB)."""
    image_size: ClassVar[int]
    """Side that images are brought to where the user asks for none, in pixels."""
    mean: ClassVar[tuple[float, ...]]
    """Mean of each channel over the training set, values in [0, 1]."""
    std: ClassVar[tuple[float, ...]]
    """Standard deviation of each channel over the training set, values in [0, 1]."""
    default_root: ClassVar[Path | None] = None
    """Where the files are if the user does not say."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = self.default_root if root is None else Path(root).expanduser()

    @property
    @abstractmethod
    def class_names(self) -> tuple[str, ...] | None:
        """Names of the classes of "train" and "val"; None for a source without labels."""

    @property
    def pretrain_is_train(self) -> bool:
        """Whether pretraining uses the labelled training images."""
        return self.class_names is not None

    @abstractmethod
    def load(self, split: Split) -> Images:
        """The images of a split: "train" and "val" have labels, "pretrain" may have."""

    def _root(self, layout: str) -> Path:
        """The root, or an error that says what should be in it."""
        if self.root is None:
            raise ValueError(f"Expected `data.root`, a folder with {layout}, but got none.")
        if not self.root.is_dir():
            raise FileNotFoundError(
                f"Expected `data.root` to be a folder with {layout}, but "
                f"{formats.describe(self.root)}."
            )
        return self.root


_SOURCES: dict[str, type[ImageSource]] = {}
_T = TypeVar("_T", bound=type[ImageSource])


@overload
def register_source(source: _T, /) -> _T: ...
@overload
def register_source(name: str, /) -> Callable[[_T], _T]: ...
def register_source(source: Any, /) -> Any:
    """Let ``data.source`` name an `ImageSource` of one's own.

    A class decorator: ``@register_source`` registers a class by its own name,
    ``@register_source("name")`` by another one.

    Raises:
        ValueError: If the name is taken, or the class is no `ImageSource`. The same class may come
            again, as it does when a notebook's cell is run twice.
    """
    if isinstance(source, str):
        return partial(_register, source)
    return _register(None, source)


def _register(name: str | None, source: Any) -> Any:
    _check_source(source)
    register(_SOURCES, name or source.__name__, source)
    return source


def _check_source(source: Any) -> None:
    if not isinstance(source, type) or not issubclass(source, ImageSource) or isabstract(source):
        raise ValueError(
            "Expected an image source to be a subclass of ImageSource with `class_names` and "
            f"`load`, but got {source!r}."
        )


def available_sources() -> list[str]:
    """Names that ``data.source`` may have, besides dotted paths."""
    return sorted(_SOURCES)


def create_source(name: str, root: Path | str | None = None) -> ImageSource:
    """Build the source of a name; reads nothing yet.

    Args:
        name: One of `available_sources`, or the dotted path of an `ImageSource`, such as
            ``mine.Stripes``, whose module is imported.
        root: Folder of the files, for sources that have any.

    Raises:
        ValueError: If there is none; says the nearest names.
    """
    source = _SOURCES[name] if name in _SOURCES else import_path(name)
    if source is None:
        module = name.rpartition(".")[0]
        hint = f" There is no module {module!r}." if module else did_you_mean(name, _SOURCES)
        raise ValueError(
            f"Unknown image source {name!r}.{hint} Available: {', '.join(available_sources())}, or "
            "the dotted path of a class."
        )
    _check_source(source)
    built: ImageSource = source(None if root is None else Path(root))
    return built


def _labels(labels: Tensor, classes: Sequence[str], where: Path) -> Tensor:
    """The labels, if each is the number of a class."""
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(classes):
        raise ValueError(
            f"Expected labels 0 to {len(classes) - 1} in `{where}`, but got "
            f"{int(labels.min())} to {int(labels.max())}. Fetch the files again."
        )
    return labels


@register_source("digits")
class Digits(ImageSource):
    """Scikit-learn's 1797 handwritten digits of 8 x 8 pixels; nothing to fetch.

    1437 for training and 360 for validation, by a fixed stratified split. Views are 16 x 16: the
    resized crop scales up.
    """

    channels = 1
    image_size = 16
    mean = (0.3054,)
    std = (0.3760,)
    class_names = tuple("0123456789")

    def load(self, split: Split) -> ArrayImages:
        """The images of a split."""
        from sklearn.datasets import load_digits  # heavy, and of use to this source alone
        from sklearn.model_selection import train_test_split

        pixels, labels = load_digits(return_X_y=True)
        train, val = train_test_split(
            np.arange(len(labels)), test_size=360, stratify=labels, random_state=0
        )
        chosen = val if split == "val" else train
        images = np.round(pixels[chosen].reshape(-1, 1, 8, 8) * (255 / 16)).astype(np.uint8)
        return ArrayImages(torch.from_numpy(images), torch.from_numpy(labels[chosen]))


@register_source("fashion_mnist")
class FashionMNIST(ImageSource):
    """Fashion-MNIST: 60,000 + 10,000 grey images of 28 x 28 pixels.

    Reads torchvision's layout (``FashionMNIST/raw/*-ubyte``) and a plain folder of the four files,
    gzipped or not, as in Debian's package ``dataset-fashion-mnist``, where it looks by default.
    """

    channels = 1
    image_size = 28
    mean = (0.2860,)
    std = (0.3530,)
    default_root = Path("/usr/share/datasets/fashion-mnist")
    class_names = (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    )

    def load(self, split: Split) -> ArrayImages:
        """The images of a split; "val" are the test images."""
        prefix = "t10k" if split == "val" else "train"
        names = (f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte")
        if self.root == self.default_root and not self.default_root.is_dir():
            raise FileNotFoundError(
                f"Found no Fashion-MNIST in `{self.root}`: install Debian's package "
                "dataset-fashion-mnist, or set `data.root` to a folder with FashionMNIST/raw/."
            )
        root = self._root("FashionMNIST/raw/ or the four *-ubyte.gz files")
        what = "the files of Fashion-MNIST"
        folder = formats.find_folder(root, ("FashionMNIST/raw", "raw", "."), names, what)
        images = formats.read_idx(folder / names[0])
        labels = formats.read_idx(folder / names[1])
        if images.ndim != 3 or labels.shape != images.shape[:1]:
            raise ValueError(
                f"Expected as many labels as images in `{folder}`, but got shapes "
                f"{images.shape} and {labels.shape}. Fetch the files again."
            )
        classes = _labels(torch.from_numpy(labels).long(), self.class_names, folder / names[1])
        return ArrayImages(torch.from_numpy(images).unsqueeze(1), classes)


class _Cifar(ImageSource):
    """Common ground of the two CIFAR: torchvision's layout, read without unpickling code."""

    channels = 3
    image_size = 32
    folder: ClassVar[str]
    train_files: ClassVar[tuple[str, ...]]
    test_files: ClassVar[tuple[str, ...]]
    label_key: ClassVar[str]

    @property
    @abstractmethod
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes."""

    def _find(self) -> Path:
        files = (*self.train_files, *self.test_files)
        root = self._root(f"{self.folder}/ (the python version)")
        return formats.find_folder(root, (self.folder, "."), files, "the python version of CIFAR")

    def load(self, split: Split) -> ArrayImages:
        """The images of a split; "val" are the test images."""
        folder = self._find()
        files = self.test_files if split == "val" else self.train_files
        batches = [formats.read_cifar_batch(folder / name, self.label_key) for name in files]
        images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
        return ArrayImages(images, _labels(labels, self.class_names, folder))


@register_source("cifar10")
class CIFAR10(_Cifar):
    """CIFAR-10: 50,000 + 10,000 images of 32 x 32 pixels, in ``cifar-10-batches-py/``."""

    mean = (0.4914, 0.4822, 0.4465)
    std = (0.2470, 0.2435, 0.2616)
    folder = "cifar-10-batches-py"
    train_files = tuple(f"data_batch_{i}" for i in range(1, 6))
    test_files = ("test_batch",)
    label_key = "labels"
    class_names = (
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    )


@register_source("cifar100")
class CIFAR100(_Cifar):
    """CIFAR-100: 50,000 + 10,000 images of 32 x 32 pixels, in ``cifar-100-python/``."""

    mean = (0.5071, 0.4865, 0.4409)
    std = (0.2673, 0.2564, 0.2762)
    folder = "cifar-100-python"
    train_files = ("train",)
    test_files = ("test",)
    label_key = "fine_labels"

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """Names of the hundred fine classes, from the file ``meta``; numbers without it."""
        meta = self._find() / "meta"
        names = read_pickle(meta).get("fine_label_names") if meta.is_file() else None
        return tuple(names) if names else tuple(map(str, range(100)))


@register_source("stl10")
class STL10(ImageSource):
    """STL-10: 100,000 unlabelled images for pretraining, 5,000 + 8,000 labelled, 96 x 96 pixels.

    Reads the binary files, in ``stl10_binary/``.
    """

    channels = 3
    image_size = 96
    mean = (0.4467, 0.4398, 0.4066)
    std = (0.2603, 0.2566, 0.2713)
    pretrain_is_train = False
    class_names = (
        "airplane",
        "bird",
        "car",
        "cat",
        "deer",
        "dog",
        "horse",
        "monkey",
        "ship",
        "truck",
    )

    def load(self, split: Split) -> ArrayImages:
        """The images of a split; "val" are the test images."""
        prefix = {"pretrain": "unlabeled", "train": "train", "val": "test"}[split]
        files: tuple[str, ...] = (f"{prefix}_X.bin", f"{prefix}_y.bin")
        files = files[:1] if split == "pretrain" else files
        root = self._root("stl10_binary/")
        folder = formats.find_folder(root, ("stl10_binary", "."), files, "the files of STL-10")
        images = formats.read_stl10_images(folder / files[0])
        if split == "pretrain":
            return ArrayImages(images)
        labels = np.fromfile(folder / files[1], dtype=np.uint8).astype(np.int64) - 1  # from 1
        if len(labels) != len(images):
            raise ValueError(
                f"Expected as many labels as images in `{folder}`, but {files[1]} has "
                f"{len(labels)} and {files[0]} {len(images)}. Fetch the files again."
            )
        return ArrayImages(
            images, _labels(torch.from_numpy(labels), self.class_names, folder / files[1])
        )
