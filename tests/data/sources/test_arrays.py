"""Sources that live in memory: their splits, and what is said about missing and damaged files."""

import gzip
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from helpers.image_files import (
    pixels,
    write_cifar10,
    write_cifar100,
    write_fashion_mnist,
    write_idx,
    write_stl10,
)
from sklearn.datasets import load_digits
from torchvision import datasets

from duality_ssl.data import SSLDataModule, create_source
from duality_ssl.data.sources import CIFAR100, FashionMNIST

REAL_FASHION_MNIST = pytest.mark.skipif(
    not FashionMNIST.default_root.is_dir(), reason="needs Debian's dataset-fashion-mnist"
)
WRITERS = {"CIFAR10": write_cifar10, "CIFAR100": write_cifar100, "STL10": write_stl10}
FOLDERS = {
    "CIFAR10": "cifar-10-batches-py",
    "CIFAR100": "cifar-100-python",
    "STL10": "stl10_binary",
}


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Writes the small files of a set, and has torchvision take them for the published ones."""

    def write_set(name: str) -> Path:
        monkeypatch.setattr(datasets, name, WRITERS[name](tmp_path))
        return tmp_path / FOLDERS[name]

    return write_set


def test_digits_are_scikit_learns_split_in_two() -> None:
    source = create_source("digits")
    train, val = source.load("train"), source.load("val")
    assert (len(train), len(val)) == (1437, 360)
    assert train.images.shape == (1437, 1, 8, 8)
    everything = torch.cat((train.images, val.images)).flatten(1).numpy()
    bunch = load_digits()
    scaled = np.round(bunch.data * 255 / 16).astype(np.uint8)
    assert sorted(map(bytes, everything)) == sorted(map(bytes, scaled))
    lookup = {bytes(image): label for image, label in zip(scaled, bunch.target, strict=True)}
    labels = torch.cat((train.labels, val.labels)).tolist()
    assert labels == [lookup[bytes(image)] for image in everything]
    assert val.labels.bincount().min() >= 34
    assert torch.equal(source.load("pretrain").images, create_source("digits").load("train").images)


@pytest.mark.parametrize(
    "name", ["digits", pytest.param("fashion_mnist", marks=REAL_FASHION_MNIST)]
)
def test_mean_and_deviation_are_those_of_the_training_set(name: str) -> None:
    source = create_source(name)
    values = source.load("train").images.float() / 255
    assert source.mean[0] == pytest.approx(values.mean().item(), abs=1e-3)
    assert source.std[0] == pytest.approx(values.std().item(), abs=1e-3)


@REAL_FASHION_MNIST
def test_fashion_mnist_as_debian_has_it() -> None:
    source = create_source("fashion_mnist")
    train, val = source.load("train"), source.load("val")
    assert train.images.shape == (60_000, 1, 28, 28)
    assert val.images.shape == (10_000, 1, 28, 28)
    assert train.labels.bincount().tolist() == [6000] * 10
    assert val.labels.bincount().tolist() == [1000] * 10
    assert source.class_names[train.labels[0]] == "Ankle boot"


@pytest.mark.parametrize(("folder", "suffix"), [("FashionMNIST/raw", ""), (".", ".gz")])
def test_fashion_mnist_layouts(tmp_path: Path, folder: str, suffix: str) -> None:
    write_fashion_mnist(tmp_path / folder, suffix)
    source = create_source("fashion_mnist", tmp_path)
    for seed, split in enumerate(("train", "val")):
        images = source.load(split)
        np.testing.assert_array_equal(images.images[:, 0], pixels(6, 28, 28, seed=seed))
        assert images.labels.tolist() == [0, 1, 2, 3, 4, 5]


def test_cifar10(write: Callable[[str], Path], tmp_path: Path) -> None:
    write("CIFAR10")
    source = create_source("cifar10", tmp_path)
    train, val = source.load("pretrain"), source.load("val")
    expected = np.concatenate([pixels(4, 3072, seed=s) for s in range(5)]).reshape(-1, 3, 32, 32)
    np.testing.assert_array_equal(train.images, expected)
    assert train.labels.tolist() == [s + i for s in range(5) for i in range(4)]
    assert val.labels.tolist() == [5, 6, 7, 8]


def test_cifar100(write: Callable[[str], Path], tmp_path: Path) -> None:
    write("CIFAR100")
    train = create_source("cifar100", tmp_path).load("train")
    np.testing.assert_array_equal(train.images.flatten(1), pixels(8, 3072))
    assert train.labels.tolist() == [37 * i % 100 for i in range(8)]
    assert len(set(CIFAR100.class_names)) == 100
    assert sorted(CIFAR100.class_names) == list(CIFAR100.class_names)  # as they are numbered


def test_stl10(write: Callable[[str], Path], tmp_path: Path) -> None:
    write("STL10")
    source = create_source("stl10", tmp_path)
    pretrain, val = source.load("pretrain"), source.load("val")
    np.testing.assert_array_equal(pretrain.images, pixels(9, 3, 96, 96, seed=2))
    assert pretrain.labels.unique().tolist() == [-1]
    np.testing.assert_array_equal(source.load("train").images, pixels(5, 3, 96, 96))
    np.testing.assert_array_equal(val.images, pixels(5, 3, 96, 96, seed=1))
    assert val.labels.tolist() == [0, 1, 2, 3, 4]
    assert not source.pretrain_is_train


@pytest.mark.parametrize("name", WRITERS)
def test_missing_files(name: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=rf"{FOLDERS[name]}`.* `data.download` to true"):
        create_source(name.lower(), tmp_path).load("train")
    with pytest.raises(ValueError, match=rf"Expected `data.root`, .* {FOLDERS[name]}/, but got no"):
        create_source(name.lower()).load("train")


class Evil:
    """Pickled, it is a call that leaves a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("evil-was-here"),)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        *(("CIFAR10", "data_batch_3"), ("CIFAR10", "test_batch"), ("CIFAR10", "batches.meta")),
        *(("CIFAR100", "train"), ("CIFAR100", "meta"), ("STL10", "test_X.bin")),
    ],
)
def test_files_are_compared_with_their_checksums_before_they_are_unpickled(
    name: str,
    file: str,
    write: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (write(name) / file).write_bytes(pickle.dumps(Evil()))
    with pytest.raises(FileNotFoundError, match="missing or damaged"):
        create_source(name.lower(), tmp_path).load("train")
    assert not Path("evil-was-here").exists()


@pytest.mark.parametrize("file", ["images-idx3", "labels-idx1"])
def test_damaged_fashion_mnist(file: str, tmp_path: Path) -> None:
    raw = tmp_path / "FashionMNIST/raw"
    write_fashion_mnist(raw)
    path = raw / f"train-{file}-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(FileNotFoundError, match=r"FashionMNIST/raw`, but its files are missing or"):
        create_source("fashion_mnist", tmp_path).load("train")


@pytest.mark.parametrize("keep", [0, 2, 15, 500], ids=lambda n: f"{n} bytes")
def test_damaged_gz_is_named(tmp_path: Path, keep: int) -> None:
    write_fashion_mnist(tmp_path, ".gz")
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte.gz`: .* Fetch the file again"):
        create_source("fashion_mnist", tmp_path).load("train")


def test_gz_is_what_its_header_says(tmp_path: Path) -> None:
    write_fashion_mnist(tmp_path, ".gz")
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-1]))
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte.gz`: .* Fetch the file again"):
        create_source("fashion_mnist", tmp_path).load("train")


def test_labels_of_other_images(tmp_path: Path) -> None:
    write_fashion_mnist(tmp_path, ".gz")
    write_idx(tmp_path / "train-labels-idx1-ubyte.gz", np.zeros(5, dtype=np.uint8))
    with pytest.raises(ValueError, match="one label per image, but got 6 images"):
        create_source("fashion_mnist", tmp_path).load("train")


def test_download(
    write: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is there is kept; what is not is fetched once."""
    files = {path: path.read_bytes() for path in write("CIFAR10").iterdir()}
    fetched = []

    def fetch(url: str, root: Path, **_: Any) -> None:
        fetched.append(url)
        for path, content in files.items():
            path.write_bytes(content)

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", fetch)
    (tmp_path / "cifar-10-batches-py" / "test_batch").unlink()
    source = create_source("cifar10", tmp_path, download=True)
    assert [len(source.load(split)) for split in ("train", "val")] == [20, 4]
    assert fetched == [datasets.CIFAR10.url]


def test_download_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(*_: Any, **__: Any) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr("torchvision.datasets.stl10.download_and_extract_archive", fetch)
    with pytest.raises(OSError, match=r"STL10 in `.*new/stl10_binary`, .*no route"):
        SSLDataModule("stl10", tmp_path / "new", download=True).setup("fit")
