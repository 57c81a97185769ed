"""Layouts of folders: which images there are, whether they have labels, what is held out."""

import os
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.image_files import write_folder, write_image

from duality_ssl.cli import main
from duality_ssl.data import SSLDataModule, create_source
from duality_ssl.data.datasets import FileImages
from duality_ssl.data.decode import centre_box, read_crops
from duality_ssl.data.sources.base import Labels
from duality_ssl.data.sources.layout import hold_out

SMALL = (
    "--model.backbone resnet_tiny --model.projector 8-8 --data.image_size 32 --data.batch_size 8 "
    "--trainer.max_steps 2 --model.warmup_epochs 0 --trainer.accelerator cpu "
    "--trainer.enable_model_summary false"
)
GUIDE = "--model SimCLR --data.source folder"


def write(root: Path, *names: str) -> Path:
    """One small image, copied."""
    write_image(root / names[0], size=(8, 8))
    for name in names[1:]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        os.link(root / names[0], root / name)
    return root


def numbered(pattern: str, count: int) -> list[str]:
    return [pattern.format(i) for i in range(count)]


def names(images: FileImages, root: Path) -> list[str]:
    return [images.path(i).relative_to(root).as_posix() for i in range(len(images))]


def module(root: Path, labels: Labels = "auto", **options: object) -> SSLDataModule:
    data = SSLDataModule("folder", root, 2, 16, labels=labels, **options)
    data.setup()
    return data


def sizes(data: SSLDataModule) -> tuple[int | None, int, int]:
    """Numbers of classes, of images to train on and to validate with."""
    return data.num_classes, len(data._pretrain_images()), len(data._probe_images("val"))


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    write_folder(tmp_path)
    return tmp_path


def test_labelled_folder(labelled: Path) -> None:
    write_image(labelled / "train" / "dog" / "deeper" / "z.png")
    (labelled / "train" / "dog" / "notes.txt").touch()
    (labelled / "train" / "dog" / ".hidden.jpg").touch()
    (labelled / "train" / ".cache").mkdir()
    source = create_source("folder", labelled)
    train, val = source.load("pretrain"), source.load("val")
    assert source.class_names == ("cat", "dog")
    assert train.labels.tolist() == [0] * 6 + [1] * 7
    assert val.labels.tolist() == [0] * 3 + [1] * 3
    assert train.path(0) == labelled / "train" / "cat" / "cat_0.jpg"
    assert train.path(6) == labelled / "train" / "dog" / "deeper" / "z.png"
    assert all(train.path(i).is_file() for i in range(len(train)))


def test_flat_folder_is_unlabelled_and_its_own_validation_set(tmp_path: Path) -> None:
    source = create_source("folder", write(tmp_path, *numbered("{}.jpg", 7)))
    assert source.class_names is None
    assert source.load("pretrain").labels.tolist() == [-1] * 7
    assert len(source.load("val")) == 7


# what the folder holds; classes, images to train on and to validate with, as "auto" reads it
LAYOUTS: dict[str, tuple[list[str], tuple[int | None, int, int]]] = {
    "flat": (numbered("{}.jpg", 7), (None, 7, 7)),
    "flat, train/ and val/": (
        [*numbered("train/{}.jpg", 5), *numbered("val/{}.jpg", 2)],
        (None, 5, 2),
    ),
    "flat, val/ beside": ([*numbered("{}.jpg", 5), *numbered("val/{}.jpg", 2)], (None, 5, 2)),
    "flat, val/ nested": (
        [*numbered("train/{}.jpg", 5), *numbered("val/a/{}.jpg", 2)],
        (None, 5, 2),
    ),
    "classes": ([*numbered("cat/{}.jpg", 20), *numbered("dog/{}.jpg", 4)], (2, 21, 3)),
    "classes in train/ alone": (
        [*numbered("train/cat/{}.jpg", 20), *numbered("train/dog/{}.jpg", 4)],
        (2, 21, 3),
    ),
    "classes, val/ beside": (
        [*numbered("cat/{}.jpg", 3), *numbered("dog/{}.jpg", 4), "val/dog/0.jpg"],
        (2, 7, 1),
    ),
    "classes in train/, nested ones, and val/": (
        [*numbered("train/cat/tabby/{}.jpg", 3), "train/dog/0.jpg", "val/dog/0.jpg"],
        (2, 4, 1),
    ),
    "one class, train/ and val/": (
        [*numbered("train/cat/{}.jpg", 3), "val/cat/0.jpg"],
        (1, 3, 1),
    ),
    "one folder": (numbered("cat/{}.jpg", 7), (None, 7, 7)),
    "one folder in train/": (numbered("train/cat/{}.jpg", 7), (None, 7, 7)),
    "two levels": (
        [*numbered("2020/01/{}.jpg", 3), *numbered("2021/06/{}.jpg", 4)],
        (None, 7, 7),
    ),
    "one and two levels": (
        [*numbered("cat/{}.jpg", 3), *numbered("dog/{}.jpg", 3), "dog/deep/er/0.jpg"],
        (None, 7, 7),
    ),
    "images beside one folder": (["0.jpg", "cat/0.jpg", "cat/1.jpg"], (None, 3, 3)),
    "images beside folders of folders": (["0.jpg", "a/b/0.jpg", "c/d/0.jpg"], (None, 3, 3)),
}


@pytest.mark.parametrize(("files", "expected"), LAYOUTS.values(), ids=LAYOUTS)
def test_layout(
    files: list[str],
    expected: tuple[int | None, int, int],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    data = module(write(tmp_path, *files))
    data.setup("fit")
    assert sizes(data) == expected
    assert (data._pretrain_images().labels >= 0).all() == (expected[0] is not None)
    said, classes = caplog.text, expected[0]
    assert said.count("images to train on") == 1
    assert f" {expected[1]} images to train on" in said
    assert (f"labelled by folder, of {classes} classes" in said) == (classes is not None)
    assert ("without labels" in said) == (classes is None)
    validated = any("val/" in name for name in files)
    assert ("held out" in said) == (classes is not None and not validated)


@pytest.mark.parametrize(
    ("files", "labels", "expected"),
    [
        ("classes", "none", (None, 24, 24)),
        ("classes in train/, nested ones, and val/", "none", (None, 4, 1)),
        ("two levels", "folder", (2, 5, 2)),
        ("one and two levels", "folder", (2, 5, 2)),
        ("one folder", "folder", (1, 6, 1)),
    ],
)
def test_either_reading_can_be_had(
    files: str, labels: Labels, expected: tuple[int | None, int, int], tmp_path: Path
) -> None:
    assert sizes(module(write(tmp_path, *LAYOUTS[files][0]), labels)) == expected


def test_message_names_the_other_reading(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write(tmp_path, *LAYOUTS["classes"][0])
    module(root)
    assert (
        f"`{root}`: 21 images to train on, 3 more held out for validation, labelled by folder, of "
        "2 classes. To ignore the folders set `data.labels` to none."
    ) in caplog.text
    caplog.clear()
    module(root, "none")
    assert (
        f"`{root}`: 24 images to train on, without labels. To take its folders as classes set "
        "`data.labels` to folder."
    ) in caplog.text


@pytest.mark.parametrize("place", ["", "train/"])
def test_images_beside_classes(place: str, tmp_path: Path) -> None:
    classes = [*numbered(place + "cat/{}.jpg", 3), *numbered(place + "dog/{}.jpg", 2)]
    write(tmp_path, *classes, *numbered(place + "{}.jpg", 70))
    with pytest.raises(
        ValueError,
        match=r"either class folders or images, but it holds 2 folders and 70 images beside the 5 "
        r"in them: move .* or set `data.labels` to none, which takes all 75 without labels",
    ):
        module(tmp_path)
    with pytest.raises(ValueError, match="2 folders and 70 images"):
        module(tmp_path, "folder")
    assert sizes(module(tmp_path, "none")) == (None, 75, 75)


def test_images_beside_classes_of_the_validation_set(labelled: Path) -> None:
    write_image(labelled / "val" / "stray.jpg")
    with pytest.raises(ValueError, match=r"in `.*val`.* but it holds 1 images and 2 folders with"):
        module(labelled)


def test_no_folders_to_take_as_classes(tmp_path: Path) -> None:
    write(tmp_path, *numbered("{}.jpg", 7))
    with pytest.raises(ValueError, match="but it holds 0 folders and 7 images"):
        module(tmp_path, "folder")


def test_class_of_training_alone(labelled: Path) -> None:
    write(labelled, *numbered("train/bee/{}.jpg", 2))
    data = module(labelled)
    assert data.class_names == ("bee", "cat", "dog")
    assert data._probe_images("val").labels.tolist() == [1] * 3 + [2] * 3


def test_class_of_validation_alone(labelled: Path) -> None:
    write_image(labelled / "val" / "eel" / "0.jpg")
    with pytest.raises(ValueError, match="named as those in train/, but eel is not among them"):
        create_source("folder", labelled).load("val")


@pytest.mark.parametrize(
    ("images", "held"), [(1, 0), (2, 1), (9, 1), (14, 1), (15, 2), (100, 10), (126, 13)]
)
def test_a_tenth_of_each_class_is_held_out(images: int, held: int) -> None:
    labels = torch.tensor([0] * images + [1] * 3 + [2] * 40)[torch.randperm(images + 43)]
    drawn = hold_out(labels, 0)
    assert labels[drawn].bincount(minlength=3).tolist() == [held, 1, 4]


def test_held_out_images_are_drawn_by_the_seed(tmp_path: Path) -> None:
    """The same in another process and after an interruption, and trained on by neither."""
    write(tmp_path, *numbered("cat/{}.jpg", 30), *numbered("dog/{}.jpg", 30))
    parts = []
    for seed in (0, 0, 1):
        data = module(tmp_path, seed=seed, probe_root=tmp_path)
        pretrain = names(data._pretrain_images(), tmp_path)
        assert names(data._probe_images("train"), tmp_path) == pretrain
        parts.append(names(data._probe_images("val"), tmp_path))
        assert len(parts[-1]) == 6
        assert not set(parts[-1]) & set(pretrain)
        assert len({*parts[-1], *pretrain}) == 60
    assert parts[0] == parts[1] != parts[2]


def test_nothing_to_hold_out(tmp_path: Path) -> None:
    write(tmp_path, "cat/0.jpg", "dog/0.jpg")
    with pytest.raises(ValueError, match=r"two images of a class in .* but each class has one"):
        module(tmp_path)


def test_labels_of_a_probe_set_stay(labelled: Path) -> None:
    data = module(write(labelled / "photos", "a/0.jpg", "b/0.jpg"), "none", probe_root=labelled)
    assert sizes(data) == (2, 2, 6)


def test_names_of_any_alphabet(tmp_path: Path) -> None:
    write_folder(tmp_path, ("кот", "犬 2"), train=1, val=1)
    images = create_source("folder", tmp_path).load("train")
    assert [images.path(i).parent.name for i in range(2)] == ["кот", "犬 2"]
    assert read_crops(images.path(0), 8, centre_box(8))


@pytest.mark.parametrize(
    "scene",
    [
        lambda root: None,
        lambda root: (root / "cat").mkdir(),
        lambda root: (root / "IMG_1.heic").touch(),
        lambda root: write(root, "val/0.jpg"),
    ],
    ids=["empty", "empty folder", "another format", "validation alone"],
)
def test_nothing_found(scene: Callable[[Path], object], tmp_path: Path) -> None:
    scene(tmp_path)
    expected = r"hold train/<class>/\* and val/.* but found no image in .*jpg"
    with pytest.raises(FileNotFoundError, match=expected):
        create_source("folder", tmp_path).load("train")


def test_class_without_images(labelled: Path) -> None:
    (labelled / "train" / "eel").mkdir()
    (labelled / "train" / "eel" / "IMG_1.heic").touch()
    with pytest.raises(FileNotFoundError, match=r"images in `.*eel` \(.*jpg.*, but found none"):
        create_source("folder", labelled).load("train")


def test_imagenet(tmp_path: Path) -> None:
    write_folder(tmp_path, ("n01440764", "n01443537"), train=2, val=1)
    source = create_source("imagenet", tmp_path)
    assert source.class_names == ("n01440764", "n01443537")
    assert source.load("val").labels.tolist() == [0, 1]
    assert (source.image_size, source.mean) == (224, (0.485, 0.456, 0.406))


def test_imagenet_with_flat_validation(tmp_path: Path) -> None:
    write(tmp_path, "train/n01440764/0.jpg", "val/ILSVRC2012_val_00000001.jpg")
    with pytest.raises(ValueError, match="1 images and no folders with images: move each"):
        create_source("imagenet", tmp_path).load("val")


@pytest.mark.parametrize("files", ["classes", "classes in train/ alone"])
def test_imagenet_wants_both_splits(files: str, tmp_path: Path) -> None:
    write(tmp_path, *LAYOUTS[files][0])
    with pytest.raises(FileNotFoundError, match=r"train/<wnid>/\* and val/<wnid>/\*, .* missing"):
        create_source("imagenet", tmp_path).load("train")


def test_fit_on_class_folders_holds_images_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """From the command line: the two sets are the same when the run is evaluated."""
    monkeypatch.chdir(tmp_path)
    for label, name in enumerate(("cat", "dog")):
        for i in range(11):
            write_image(Path("images", name, f"{i}.png"), seed=100 * label + i)
    main(shlex.split(f"fit {GUIDE} --data.root images {SMALL}"))
    assert caplog.text.count("20 images to train on, 2 more held out for validation, labelled") == 1
    run = Path("runs/folder/SimCLR/version_0")
    for split in ("train", "val"):
        main(shlex.split(f"predict --ckpt_path {run} --data.predict_split {split}"))
        (run / "checkpoints/features.npz").rename(f"{split}.npz")
    with np.load("train.npz") as train, np.load("val.npz") as val:
        assert (len(train["paths"]), len(val["paths"])) == (20, 2)
        assert not {*train["paths"]} & {*val["paths"]}
