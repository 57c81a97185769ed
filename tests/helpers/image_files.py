"""Small data sets in the exact on-disk formats of the real ones."""

import gzip
import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torchvision import datasets

from duality_ssl.data.sources import CIFAR10, CIFAR100


def pixels(n: int, *shape: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


def write_idx(path: Path, array: NDArray[np.uint8]) -> None:
    """MNIST's format: magic number with type and rank, big-endian sizes, bytes."""
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">u4").tobytes()
    content = header + array.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_fashion_mnist(folder: Path, suffix: str = "", n: int = 6) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for seed, split in enumerate(("train", "t10k")):
        write_idx(folder / f"{split}-images-idx3-ubyte{suffix}", pixels(n, 28, 28, seed=seed))
        write_idx(folder / f"{split}-labels-idx1-ubyte{suffix}", np.arange(n, dtype=np.uint8) % 10)


def published(name: str, root: Path, **lists: Any) -> type:
    """A class of torchvision as if these files of a set were the published ones."""
    base = getattr(datasets, name)

    def checksum(file: str) -> str:
        return hashlib.md5((root / base.base_folder / file).read_bytes()).hexdigest()

    known: dict[str, Any] = {k: [[f, checksum(f)] for f in files] for k, files in lists.items()}
    if hasattr(base, "meta"):
        known["meta"] = base.meta | {"md5": checksum(base.meta["filename"])}
    return type(name, (base,), known)


def write_cifar10(root: Path, n: int = 4) -> type:
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    train, test = [f"data_batch_{i}" for i in range(1, 6)], ["test_batch"]
    for seed, name in enumerate((*train, *test)):
        content = {
            "batch_label": f"batch {seed}",
            "labels": [(seed + i) % 10 for i in range(n)],
            "data": pixels(n, 3072, seed=seed),
            "filenames": [f"{i}.png" for i in range(n)],
        }
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": CIFAR10.class_names}))
    return published("CIFAR10", root, train_list=train, test_list=test)


def write_cifar100(root: Path, n: int = 8) -> type:
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    for seed, name in enumerate(("train", "test")):
        content = {
            "fine_labels": [(37 * i) % 100 for i in range(n)],
            "coarse_labels": [i % 20 for i in range(n)],
            "data": pixels(n, 3072, seed=seed),
        }
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": CIFAR100.class_names}))
    return published("CIFAR100", root, train_list=["train"], test_list=["test"])


def write_stl10(root: Path, unlabelled: int = 9, n: int = 5) -> type:
    """The unlabelled images are those of ``pixels(unlabelled, 3, 96, 96, seed=2)``."""
    folder = root / "stl10_binary"
    folder.mkdir(parents=True)
    for seed, (name, count) in enumerate({"train": n, "test": n, "unlabeled": unlabelled}.items()):
        images = pixels(count, 3, 96, 96, seed=seed)
        (folder / f"{name}_X.bin").write_bytes(images.transpose(0, 1, 3, 2).tobytes())
        if name != "unlabeled":
            (folder / f"{name}_y.bin").write_bytes(
                (np.arange(count) % 10 + 1).astype("u1").tobytes()
            )
    train = ["train_X.bin", "train_y.bin", "unlabeled_X.bin"]
    return published("STL10", root, train_list=train, test_list=["test_X.bin", "test_y.bin"])


def write_image(path: Path, seed: int = 0, size: tuple[int, int] = (40, 30)) -> None:
    """A smooth image (width, height): noise would be nothing like itself after a JPEG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    small = Image.fromarray(pixels(1, 3, 4, 3, seed=seed)[0])
    small.resize(size, Image.Resampling.BICUBIC).save(path)


def write_folder(
    root: Path, classes: tuple[str, ...] = ("cat", "dog"), train: int = 6, val: int = 3
) -> None:
    """``root/train/<class>/*`` and ``root/val/<class>/*``, of several sizes."""
    for split, count in (("train", train), ("val", val)):
        for label, name in enumerate(classes):
            for i in range(count):
                suffix = "png" if i % 2 else "jpg"
                path = root / split / name / f"{name}_{i}.{suffix}"
                write_image(path, seed=100 * label + i, size=(40 + i, 30 + 3 * i))
