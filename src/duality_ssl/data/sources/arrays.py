"""Sets of small images that live in memory: scikit-learn's digits and sets of torchvision."""

import gzip
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from duality_ssl.data.datasets import ArrayImages
from duality_ssl.data.sources.base import ImageSource, Split, register_source


@register_source("digits")
class Digits(ImageSource):
    """Scikit-learn's 1797 handwritten digits of 8 x 8 pixels; nothing to download.

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
        from sklearn.datasets import load_digits  # heavy, and used by this source only
        from sklearn.model_selection import train_test_split

        pixels, labels = load_digits(return_X_y=True)
        train, val = train_test_split(
            np.arange(len(labels)), test_size=360, stratify=labels, random_state=0
        )
        chosen = val if split == "val" else train
        images = np.round(pixels[chosen].reshape(-1, 1, 8, 8) * (255 / 16)).astype(np.uint8)
        return ArrayImages(torch.from_numpy(images), torch.from_numpy(labels[chosen]))


class TorchvisionSource(ImageSource):
    """A set of ``torchvision.datasets``, which reads, checks and downloads the files.

    CIFAR and STL-10 are compared with their published checksums (md5) each time, before anything is
    unpickled. "val" are the test images.
    """

    dataset: ClassVar[str]
    """Name of the class in ``torchvision.datasets``."""
    folder: ClassVar[str]
    """Folder of the files, relative to the root."""
    arguments: ClassVar[dict[Split, dict[str, Any]]] = {
        "pretrain": {"train": True},
        "train": {"train": True},
        "val": {"train": False},
    }
    """What the class is told for each split."""

    def read(self, split: Split) -> Any:
        """The split as torchvision's data set; ``FileNotFoundError`` without its files."""
        from filelock import FileLock  # heavy, and used by these sources only
        from torchvision import datasets

        root = self._given_root(f"{self.folder}/")
        if self.download:
            root.mkdir(parents=True, exist_ok=True)
        # the processes of a run start together, and one of them downloads
        with FileLock(root / ".download.lock") if self.download else nullcontext():
            try:
                return getattr(datasets, self.dataset)(
                    root, **self.arguments[split], download=self.download
                )
            except Exception as error:  # a failed check; a damaged file raises anything
                reason = " ".join(str(error).split())
                raise FileNotFoundError(
                    f"Expected {self.dataset} in `{root / self.folder}`, but its files are missing "
                    f"or damaged ({reason}): set `data.root` to the folder that holds "
                    f"{self.folder}/, or `data.download` to true to download them."
                ) from None


@register_source("fashion_mnist")
class FashionMNIST(TorchvisionSource):
    """Fashion-MNIST: 60,000 + 10,000 grey images of 28 x 28 pixels.

    Reads torchvision's layout, ``FashionMNIST/raw/*-ubyte``, or a folder with the four gzipped
    files, as Debian's package ``dataset-fashion-mnist`` has them, which is the default root.
    """

    channels = 1
    image_size = 28
    mean = (0.2860,)
    std = (0.3530,)
    default_root = Path("/usr/share/datasets/fashion-mnist")
    dataset = "FashionMNIST"
    folder = "FashionMNIST/raw"
    class_names = (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    )

    def load(self, split: Split) -> ArrayImages:
        """The images of a split."""
        prefix = "t10k" if split == "val" else "train"
        root = self._given_root(f"{self.folder}/")
        files = [root / f"{prefix}-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1")]
        if files[0].is_file():
            images, labels = map(_read_gzipped_idx, files)
        else:
            data = self.read(split)
            images, labels = data.data, data.targets
        return ArrayImages(images.unsqueeze(1), labels)


def _read_gzipped_idx(path: Path) -> Tensor:
    """The bytes of a gzipped IDX file (MNIST's format), in the shape that its header says."""
    try:
        content = bytearray(gzip.decompress(path.read_bytes()))
        shape = np.frombuffer(content, dtype=">u4", count=content[3], offset=4).tolist()
        data = torch.frombuffer(content, dtype=torch.uint8, offset=4 + 4 * len(shape))
        return data.view(shape)
    except Exception as error:  # a damaged file raises anything
        raise ValueError(f"Cannot read `{path}`: {error}. Fetch the file again.") from None


class _CIFAR(TorchvisionSource):
    channels = 3
    image_size = 32

    def load(self, split: Split) -> ArrayImages:
        """The images of a split."""
        data = self.read(split)
        return ArrayImages(
            torch.from_numpy(data.data).permute(0, 3, 1, 2), torch.tensor(data.targets)
        )


@register_source("cifar10")
class CIFAR10(_CIFAR):
    """CIFAR-10: 50,000 + 10,000 images of 32 x 32 pixels, in ``cifar-10-batches-py/``."""

    mean = (0.4914, 0.4822, 0.4465)
    std = (0.2470, 0.2435, 0.2616)
    dataset = "CIFAR10"
    folder = "cifar-10-batches-py"
    class_names = tuple("airplane automobile bird cat deer dog frog horse ship truck".split())  # noqa: SIM905


@register_source("cifar100")
class CIFAR100(_CIFAR):
    """CIFAR-100: 50,000 + 10,000 images of 32 x 32 pixels, in ``cifar-100-python/``."""

    mean = (0.5071, 0.4865, 0.4409)
    std = (0.2673, 0.2564, 0.2762)
    dataset = "CIFAR100"
    folder = "cifar-100-python"
    class_names = tuple(
        """
        apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus
        butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch
        crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo
        keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain
        mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain
        plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
        skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone
        television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
        """.split()  # noqa: SIM905
    )


@register_source("stl10")
class STL10(TorchvisionSource):
    """STL-10: 100,000 unlabelled images for pretraining, 5,000 + 8,000 labelled, 96 x 96 pixels.

    In ``stl10_binary/``; the unlabelled images take 2.8 GB of memory.
    """

    channels = 3
    image_size = 96
    mean = (0.4467, 0.4398, 0.4066)
    std = (0.2603, 0.2566, 0.2713)
    pretrain_is_train = False
    dataset = "STL10"
    folder = "stl10_binary"
    arguments: ClassVar[dict[Split, dict[str, Any]]] = {
        "pretrain": {"split": "unlabeled"},
        "train": {"split": "train"},
        "val": {"split": "test"},
    }
    class_names = tuple("airplane bird car cat deer dog horse monkey ship truck".split())  # noqa: SIM905

    def load(self, split: Split) -> ArrayImages:
        """The images of a split."""
        data = self.read(split)
        images = torch.from_numpy(data.data)
        if split == "pretrain":
            return ArrayImages(images)
        return ArrayImages(images, torch.from_numpy(data.labels))
