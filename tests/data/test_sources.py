"""Sources that live in memory: formats, splits, and what is said about bad files."""

import gzip
import os
import pickle
import tracemalloc
from pathlib import Path
from typing import Any

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

from duality_ssl.data import (
    ArrayImages,
    ImageSource,
    SSLDataModule,
    available_sources,
    create_source,
    register_source,
)
from duality_ssl.data.formats import read_idx
from duality_ssl.data.sources import _SOURCES, FashionMNIST

REAL_FASHION_MNIST = pytest.mark.skipif(
    not FashionMNIST.default_root.is_dir(), reason="needs Debian's dataset-fashion-mnist"
)


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
def test_mean_and_deviation_are_the_training_sets(name: str) -> None:
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


@pytest.mark.parametrize("suffix", ["", ".gz"], ids=["plain", "gz"])
@pytest.mark.parametrize("folder", ["FashionMNIST/raw", "."], ids=["torchvision", "flat"])
def test_fashion_mnist_layouts(tmp_path: Path, folder: str, suffix: str) -> None:
    write_fashion_mnist(tmp_path / folder, suffix)
    val = create_source("fashion_mnist", tmp_path).load("val")
    np.testing.assert_array_equal(val.images[:, 0], pixels(6, 28, 28, seed=1))
    assert val.labels.tolist() == [0, 1, 2, 3, 4, 5]


def test_fashion_mnist_reads_what_torchvision_reads(tmp_path: Path) -> None:
    write_fashion_mnist(tmp_path / "FashionMNIST" / "raw")
    reference = datasets.FashionMNIST(tmp_path, train=True)
    ours = create_source("fashion_mnist", tmp_path).load("train")
    assert torch.equal(ours.images[:, 0], reference.data)
    assert torch.equal(ours.labels, reference.targets)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_cifar10(tmp_path: Path, protocol: int) -> None:
    write_cifar10(tmp_path, protocol=protocol)
    source = create_source("cifar10", tmp_path)
    train, val = source.load("pretrain"), source.load("val")
    expected = np.concatenate([pixels(4, 3072, seed=s) for s in range(5)]).reshape(-1, 3, 32, 32)
    np.testing.assert_array_equal(train.images, expected)
    assert train.labels.tolist() == [s + i for s in range(5) for i in range(4)]
    assert val.labels.tolist() == [5, 6, 7, 8]
    assert len(create_source("cifar10", tmp_path / "cifar-10-batches-py").load("val")) == 4


def test_cifar10_pickled_by_python_2(tmp_path: Path) -> None:
    """The published files are of Python 2 and numpy 1: byte strings, ``numpy.core``."""
    write_cifar10(tmp_path)
    data = pixels(1, 3072, seed=9)
    raw = b"".join(b"\\x%02x" % byte for byte in data.tobytes())
    content = (
        b"(dp0\nS'data'\np1\ncnumpy.core.multiarray\n_reconstruct\np2\n"
        b"(cnumpy\nndarray\np3\n(I0\ntp4\nS'b'\np5\ntp6\nRp7\n"
        b"(I1\n(I1\nI3072\ntp8\ncnumpy\ndtype\np9\n(S'u1'\np10\nI0\nI1\ntp11\nRp12\n"
        b"(I3\nS'|'\np13\nNNNI-1\nI-1\nI0\ntp14\nbI00\nS'" + raw + b"'\np15\ntp16\nbs"
        b"S'labels'\np17\n(lp18\nI7\nas."
    )
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(content)
    val = create_source("cifar10", tmp_path).load("val")
    np.testing.assert_array_equal(val.images.flatten(1), data)
    assert val.labels.tolist() == [7]


def test_cifar100(tmp_path: Path) -> None:
    write_cifar100(tmp_path)
    source = create_source("cifar100", tmp_path)
    train = source.load("train")
    np.testing.assert_array_equal(train.images.flatten(1), pixels(8, 3072))
    assert train.labels.tolist() == [37 * i % 100 for i in range(8)]
    assert source.class_names[:2] == ("fine 0", "fine 1")
    (tmp_path / "cifar-100-python" / "meta").unlink()
    assert source.class_names[0] == "fine 0"  # read once: every training step asks for it
    nameless = create_source("cifar100", tmp_path)
    assert nameless.class_names == tuple(map(str, range(100)))


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("evil-was-here",)


class EvilCodec:
    def __reduce__(self) -> tuple[Any, ...]:
        import _codecs

        return _codecs.encode, ("x", "rot13")


@pytest.mark.parametrize(
    "content", [Evil(), EvilCodec(), {"data": [Evil()]}, print, {"data": np.zeros(2, "f4")}]
)
def test_nothing_is_run_from_a_pickle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: object
) -> None:
    monkeypatch.chdir(tmp_path)
    write_cifar10(tmp_path)
    bad = tmp_path / "cifar-10-batches-py" / "test_batch"
    bad.write_bytes(pickle.dumps(content))
    with pytest.raises(
        ValueError, match=r"Cannot read .*test_batch.*: .*(no array|not allowed|'f4')"
    ):
        create_source("cifar10", tmp_path).load("val")
    assert not Path("evil-was-here").exists()


def test_stl10(tmp_path: Path) -> None:
    unlabelled = write_stl10(tmp_path)
    source = create_source("stl10", tmp_path)
    pretrain = source.load("pretrain")
    np.testing.assert_array_equal(pretrain.images, unlabelled)
    assert pretrain.labels.unique().tolist() == [-1]
    assert not source.pretrain_is_train
    reference = datasets.STL10.__new__(datasets.STL10)  # its constructor wants the real checksums
    reference.root = str(tmp_path)
    images, labels = reference._STL10__loadfile("test_X.bin", "test_y.bin")
    val = source.load("val")
    np.testing.assert_array_equal(val.images, images)
    np.testing.assert_array_equal(val.labels, labels)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def overwrite(path: Path) -> None:
    path.write_bytes(b"<html>404 Not Found</html>")


@pytest.mark.parametrize("damage", [truncate, overwrite])
@pytest.mark.parametrize(
    ("name", "write", "file"),
    [
        ("fashion_mnist", write_fashion_mnist, "train-images-idx3-ubyte"),
        ("cifar10", write_cifar10, "cifar-10-batches-py/data_batch_3"),
        ("cifar100", write_cifar100, "cifar-100-python/train"),
        ("stl10", write_stl10, "stl10_binary/train_X.bin"),
    ],
    ids=["fashion_mnist", "cifar10", "cifar100", "stl10"],
)
def test_damaged_files_are_named(
    tmp_path: Path, name: str, write: Any, file: str, damage: Any
) -> None:
    write(tmp_path)
    damage(tmp_path / file)
    with pytest.raises(ValueError, match=Path(file).name) as caught:
        create_source(name, tmp_path).load("train")
    assert "etch" in str(caught.value)  # what to do about it
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("keep", [0, 2, 15, 500], ids=lambda n: f"{n} bytes")
def test_damaged_gz_is_named(tmp_path: Path, keep: int) -> None:
    write_fashion_mnist(tmp_path, ".gz")
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte.gz"):
        create_source("fashion_mnist", tmp_path).load("train")


@pytest.mark.parametrize("suffix", ["", ".gz"], ids=["plain", "gz"])
def test_reading_takes_no_second_copy(tmp_path: Path, suffix: str) -> None:
    n, folder = 20_000, tmp_path / "raw"
    folder.mkdir()
    for split, count in (("train", n), ("t10k", n // 6)):
        write_idx(folder / f"{split}-images-idx3-ubyte{suffix}", np.zeros((count, 28, 28), "u1"))
        write_idx(folder / f"{split}-labels-idx1-ubyte{suffix}", np.zeros(count, "u1"))
    module = SSLDataModule("fashion_mnist", tmp_path)
    tracemalloc.start()
    try:
        module.setup("fit")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    labels = 8 * (n + n // 6)  # torch's memory, which is not traced
    assert n * 28 * 28 < peak + labels <= 1.2 * n * 28 * 28


@pytest.mark.parametrize(
    ("header", "body"),
    [
        (b"\0\0\x08\x03" + b"\xff" * 12, b"\0" * 100),
        (b"\0\0\x08\x01" + b"\0\0\0\x05", b"\0" * 4),
        (b"\0\0\x08\x01" + b"\0\0\0\x05", b"\0" * 6),
        (b"\0\0\x08\x03" + b"\0\0\0\x05", b""),
    ],
    ids=["promises 80 EB", "a byte missing", "a byte too many", "half a header"],
)
@pytest.mark.parametrize("suffix", ["", ".gz"], ids=["plain", "gz"])
def test_idx_file_is_what_its_header_says(
    tmp_path: Path, suffix: str, header: bytes, body: bytes
) -> None:
    content = header + body
    (tmp_path / f"a{suffix}").write_bytes(gzip.compress(content) if suffix else content)
    with pytest.raises(ValueError, match=r"Expected .* bytes.* `.*a(.gz)?`.*etch (it|the file) ag"):
        read_idx(tmp_path / "a")


def test_labels_that_do_not_fit(tmp_path: Path) -> None:
    write_fashion_mnist(tmp_path)
    labels = tmp_path / "train-labels-idx1-ubyte"
    write_idx(labels, np.full(6, 10, dtype=np.uint8))
    with pytest.raises(ValueError, match=r"labels 0 to 9 in .*train-labels.*, but got 10 to 10"):
        create_source("fashion_mnist", tmp_path).load("train")
    write_idx(labels, np.zeros(5, dtype=np.uint8))
    with pytest.raises(ValueError, match=r"as many labels as images .* \(6, 28, 28\) and \(5,\)"):
        create_source("fashion_mnist", tmp_path).load("train")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fashion_mnist", "FashionMNIST/raw"),
        ("cifar10", "data_batch_1, .* in cifar-10-batches-py/"),
        ("cifar100", "train, test in cifar-100-python/"),
        ("stl10", "train_X.bin, train_y.bin in stl10_binary/"),
    ],
)
def test_wrong_root_says_what_was_expected_and_found(
    tmp_path: Path, name: str, expected: str
) -> None:
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(FileNotFoundError, match=rf"{expected}.*but .*holds holiday.jpg"):
        create_source(name, tmp_path).load("train")
    with pytest.raises(FileNotFoundError, match=r"data.root.*but .*nowhere` does not exist"):
        create_source(name, tmp_path / "nowhere").load("train")
    with pytest.raises(FileNotFoundError, match=r"holiday.jpg` is a file, not a folder"):
        create_source(name, tmp_path / "holiday.jpg").load("train")


def test_missing_file_of_a_set(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    (tmp_path / "cifar-10-batches-py" / "data_batch_2").unlink()
    with pytest.raises(FileNotFoundError, match=r"data_batch_2.* but .*holds data_batch_1, data_b"):
        create_source("cifar10", tmp_path).load("train")


@pytest.mark.parametrize("name", ["cifar10", "stl10", "folder", "imagenet"])
def test_no_root(name: str) -> None:
    with pytest.raises(ValueError, match=r"Expected `data.root`, a folder with .*, but got none"):
        create_source(name).load("train")


def test_fashion_mnist_is_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(FashionMNIST, "default_root", tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="install Debian's package dataset-fashion-mnist"):
        create_source("fashion_mnist").load("train")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("fashion-mnist", "Did you mean fashion_mnist"),
        ("CIFAR10", "Did you mean cifar10, cifar100"),
        ("xyz", "image source 'xyz'. Available: .*cifar10, cifar100, digits"),
    ],
)
def test_unknown_source_names_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(ValueError, match=hint):
        create_source(name)


class Noise(ImageSource):
    """Random pixels without labels."""

    channels, image_size, mean, std = 3, 8, (0.5,) * 3, (0.3,) * 3
    class_names = None

    def load(self, split: str) -> ArrayImages:
        return ArrayImages(torch.from_numpy(pixels(10, 3, 8, 8)))


@pytest.fixture
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a test register sources without the others seeing them."""
    monkeypatch.setattr("duality_ssl.data.sources._SOURCES", dict(_SOURCES))


@pytest.mark.usefixtures("_own_registry")
@pytest.mark.parametrize(
    ("decorator", "name"), [(register_source, "Noise"), (register_source("noise"), "noise")]
)
def test_a_source_of_ones_own(decorator: Any, name: str) -> None:
    assert decorator(Noise) is Noise
    assert decorator(Noise) is Noise, "as a notebook's cell that is run twice does"
    assert name in available_sources()
    assert create_source(name).load("pretrain").labels.tolist() == [-1] * 10


@pytest.mark.usefixtures("_own_registry")
def test_a_name_is_of_one_source() -> None:
    register_source(Noise)
    with pytest.raises(ValueError, match="'Noise' is taken: give the decorator another one"):
        register_source("Noise")(FashionMNIST)


@pytest.mark.parametrize(
    "thing",
    [3, ArrayImages, Noise(), ImageSource],
    ids=["number", "no source", "instance", "abstract"],
)
def test_what_is_no_source_is_refused(thing: Any) -> None:
    for register in (register_source, register_source("other")):
        with pytest.raises(ValueError, match="Expected an image source to be a subclass of Image"):
            register(thing)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("no_module_at_all.Noise", "There is no module 'no_module_at_all'. Available: .*digits"),
        (f"{__name__}.Noize", f"no 'Noize' in '{__name__}'. Did you mean Noise"),
        (f"{__name__}.pixels", "subclass of ImageSource .* but got <function pixels"),
        (f"{__name__}.ImageSource", "with `class_names` and `load`, but got"),
    ],
)
def test_source_at_a_dotted_path(path: str, said: str) -> None:
    assert len(create_source(f"{__name__}.Noise").load("val")) == 10
    with pytest.raises(ValueError, match=said):
        create_source(path)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(2, 3, 4, 4), None, r"uint8 .* but got torch.float32 of shape \(2, 3, 4, 4\)"),
        (torch.zeros(2, 4, 4, dtype=torch.uint8), None, r"\(N, C, H, W\), but got .*\(2, 4, 4\)"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(3), "2 images and labels of"),
    ],
    ids=["float", "3-D", "too many labels"],
)
def test_bad_arrays(images: torch.Tensor, labels: torch.Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ArrayImages(images, labels)
