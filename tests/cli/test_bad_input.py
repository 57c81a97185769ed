"""One table of mistakes: each ends in one sentence that names the culprit and the remedy.

A row of the command line ends with code 2, without a traceback, and with nothing written or lost.
"""

import io
import os
import shlex
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from helpers.image_files import pixels, write_folder, write_idx, write_image
from PIL import Image

from duality_ssl import VICReg, evaluation
from duality_ssl.cli import main
from duality_ssl.data import (
    ArrayImages,
    SSLDataModule,
    View,
    create_source,
    register_source,
    sources,
)
from duality_ssl.data.datasets import Batch, FileDataset
from duality_ssl.data.decode import centre_box, read_crops
from duality_ssl.data.sampler import BatchRequest
from duality_ssl.methods import JointEmbedding
from duality_ssl.networks import backbones
from duality_ssl.networks.projector import parse_projector

DIGITS = str(Path(__file__).parents[2] / "configs/data/digits.yaml")
SMALL = "--data.image_size 16 --data.batch_size 4 --model.backbone resnet_tiny"
SHORT = "--model.projector 16-16 --model.warmup_epochs 0 --trainer.max_epochs 1"
LIGHT = "--model.backbone resnet_tiny --model.projector 16-16"


class Case(NamedTuple):
    """A mistake, and what is to be said of it."""

    act: str | Callable[[], object]
    """A command line, or a call from Python."""
    says: tuple[str, ...]
    """Words for the culprit and for the remedy."""
    scene: Callable[[], object]
    """Writes what the act finds in the working folder."""


def case(
    act: str | Callable[[], object], *says: str, scene: Callable[[], object] = lambda: None
) -> Case:
    return Case(act, says, scene)


def fit(options: str = "", method: str = "VICReg") -> str:
    """Pretrain on the digits."""
    return f"fit -c {shlex.quote(DIGITS)} --model {method} {options}"


def on_folder(options: str = "", command: str = "fit") -> str:
    """Pretrain on the folder ``images``, or evaluate on it."""
    source = f"--data.source folder --data.root images {SMALL} {SHORT}"
    return f"{command} --model SimCLR {source} {options}"


def config(content: str | bytes) -> Callable[[], object]:
    data = content.encode() if isinstance(content, str) else content
    return lambda: Path("bad.yaml").write_bytes(data)


def labelled(*changes: Callable[[], object]) -> Callable[[], object]:
    """A folder of two classes, changed."""

    def scene() -> None:
        write_folder(Path("images"), train=4, val=2)
        for change in changes:
            change()

    return scene


def flat(folder: str = "images", n: int = 6) -> Callable[[], object]:
    """A folder without labels."""
    return lambda: [write_image(Path(folder) / f"{i}.jpg", seed=i) for i in range(n)]


def held(name: str, content: bytes) -> Callable[[], object]:
    """A file, its folder made where need be."""

    def scene() -> None:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_bytes(content)

    return scene


def link(name: str, target: str) -> Callable[[], object]:
    def scene() -> None:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).symlink_to(target)

    return scene


def folder(name: str) -> Callable[[], object]:
    return partial(Path(name).mkdir, parents=True)


def forbidden(name: str) -> Callable[[], object]:
    """Nobody may read or write it: not even root, who is somebody else until the test is over."""

    def scene() -> None:
        if not Path(name).exists():
            Path(name).mkdir()
        Path(name).chmod(0)
        if os.getuid() == 0:
            os.seteuid(65534)

    return scene


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def photo(side: int = 40) -> Image.Image:
    return Image.fromarray(pixels(1, side, side, 3)[0])


def png(width: int, height: int, *extra: bytes) -> bytes:
    """A tiny PNG that claims a size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [chunk(b"IHDR", header), *extra, chunk(b"IDAT", zlib.compress(b"\0" * 100))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + chunk(b"IEND", b"")


def bad_image(content: bytes, *says: str, name: str = "a.jpg") -> Case:
    read = partial(read_crops, Path(name), 8, centre_box(8))
    return case(
        read, f"the image `{name}`", *says, "Repair or remove it", scene=held(name, content)
    )


JPEG, PNG = encoded(photo(), "JPEG"), encoded(photo(), "PNG")
RUN = "--ckpt_path {run}"  # the run that the fixture made
DATA = partial(SSLDataModule, "digits")
BACKBONE = "registered name, a torchvision ResNet or ConvNeXt, a timm model"
WIDTHS = "widths of 1 to 1048576 or the letter d, joined by single hyphens"

WORDS = {
    "no command": case("", "expected", "fit,validate,test,predict"),
    "unknown command": case("fitt", "'fitt'", "choose from 'fit'"),
    "no method": case("fit", "No method was chosen", "Name one with --model: BYOL"),
    "unknown method": case("fit --model Simclr", "Unknown method 'Simclr'", "Did you mean SimCLR"),
    "class that is no method": case(
        "fit --model torch.nn.Linear", "Unknown method 'torch.nn.Linear'", "Methods: BYOL"
    ),
    "option without a value": case(
        fit("--trainer.max_epochs"), "--trainer.max_epochs", "expected one argument"
    ),
    "unknown option": case(
        fit("--trainer.max_epoch 3"), "'--trainer.max_epoch'", "Did you mean --trainer.max_epochs"
    ),
    "unknown option of a method": case(
        fit("--model.temprature 1", "SimCLR"), "'temprature'", "Did you mean temperature?"
    ),
    "option of another method": case(
        fit("--model.temperature 1"), "VICReg has no option 'temperature'", "It takes backbone"
    ),
    "option before its method": case(
        "fit --model.temperature 1", "Option model.temperature belongs to", "Name one with --model"
    ),
    "number for a range": case(
        fit("--data.view1.scale 3"), "data.view1.scale", "[float, float], but got '3'"
    ),
    "range from high to low": case(
        fit("--data.view1.scale '[1.0, 0.1]'"), "`scale`", "low <= high <= 1, but got (1.0, 0.1)"
    ),
    "probability of 2": case(fit("--data.view1.flip 2"), "`flip`", "in [0, 1], but got 2.0"),
    "number for a group": case(
        fit("--trainer 7"), "--trainer takes a YAML file", "--trainer.OPTION VALUE"
    ),
    "unknown choice": case(
        fit("--model.similarity cosin", "SimCLR"), "got 'cosin'", "Did you mean cosine?"
    ),
    "unknown callback": case(fit("--without '[prob]'"), "got 'prob'", "Did you mean probe?"),
    "callback without brackets": case(fit("--without probe"), "'probe'", "Write it in brackets"),
    "unknown class of a callback": case(
        fit("--trainer.callbacks+ LearningRateMonitr"),
        *("class 'LearningRateMonitr' for trainer.callbacks", "Did you mean LearningRateMonitor"),
    ),
    "logger without its folder": case(
        fit("--trainer.logger CSVLogger"), "CSVLogger needs save_dir", "--trainer.logger.save_dir"
    ),
    "unknown optimiser": case(
        fit("--model.optimizer Adamw"), "'Adamw' for model.optimizer", "Did you mean AdamW"
    ),
    "unknown module": case(
        fit("--model.optimizer no_such.LARS"), "model.optimizer", "no module 'no_such'"
    ),
    "momentum below 0": case(
        fit("--model.optimizer SGD --model.optimizer.momentum -1"),
        *("Invalid momentum value: -1.0", "Correct those of --model.optimizer"),
    ),
    "name of two schedulers": case(
        fit("--model.scheduler ReduceLROnPlateau"),
        *("several classes are named ReduceLROnPlateau", "Give the module, too: torch.optim"),
    ),
    "learning rate of NaN": case(fit("--model.base_lr .nan"), "`base_lr`", "finite and 0 or more"),
    "weight decay below 0": case(fit("--model.weight_decay -1"), "`weight_decay`", "0 or more"),
    "weight of a term below 0": case(
        fit("--model.covariance -1"), "`covariance`", "at least 0 and finite, but got -1.0"
    ),
    "seed below 0": case(fit("--seed_everything -1"), "seed_everything", "0 ... 2^32 - 1"),
    "fewer devices than none": case(
        fit("--trainer.accelerator cpu --trainer.devices -3"), "`devices`", "an int > 0"
    ),
    "unknown accelerator": case(
        fit("--trainer.accelerator abacus"), "'abacus'", "Available names are: auto"
    ),
    "unknown strategy": case(
        fit("--trainer.strategy nosuch"), "got nosuch", "Expected --trainer.strategy ddp"
    ),
    "unknown precision": case(
        fit("--trainer.precision 12"), "trainer.precision", "'bf16', but got '12'"
    ),
    "fewer epochs than none": case(fit("--trainer.max_epochs -5"), "max_epochs", "but got -5"),
    "no epoch": case(fit("--trainer.max_epochs 0"), "trainer.max_epochs", "above 0"),
    "no neighbour": case(fit("--knn.k 0"), "got k=0", "at least 1"),
    "direction of the best": case(
        fit("--best_checkpoint.mode up"), "best_checkpoint.mode", "one of 'max', 'min'"
    ),
    "checkpoint every 0 epochs": case(
        fit("--last_checkpoint.every_n_epochs 0"), "`every_n_epochs`", "at least 1"
    ),
    "runs in a file": case(
        fit("--trainer.default_root_dir file"),
        "file",
        "Check that path",
        scene=held("file", b""),
    ),
    "runs where nobody may write": case(
        fit("--trainer.default_root_dir locked"),
        *("locked", "who may read and write it"),
        scene=forbidden("locked"),
    ),
}

NETWORKS = {
    "unknown backbone": case(fit("--model.backbone resnet_tin"), "'resnet_tin'", "are resnet_tiny"),
    "backbone that is not in its module": case(
        fit("--model.backbone duality_ssl.networks.backbones.resnet_tin"),
        "no 'resnet_tin' in 'duality_ssl.networks.backbones'",
        "Did you mean resnet_tiny",
    ),
    "backbone that is another thing": case(
        fit("--model.backbone torch.nn.Conv2d"), "function of the number of channels", "Conv2d"
    ),
    "source of no module": case(
        fit("--data.source no_module.Source"), "no module 'no_module'", "cifar10, cifar100"
    ),
    "source that is another thing": case(
        fit("--data.source duality_ssl.VICReg"), "subclass of ImageSource", "VICReg"
    ),
    "other channels than the data's": case(
        fit("--model.in_channels 3"), "images of 3 channels", "Set --model.in_channels 1."
    ),
    "other size than the transformer's": case(
        fit("--model.backbone vit_tiny_patch16_224"),
        *("images of 224 pixels, but the data has 16", "Set --model.image_size 16"),
    ),
    "projector with a gap": case(
        fit("--model.projector 8192--d"), WIDTHS, "part 2 of '8192--d' is empty"
    ),
}

SETS = {
    "unknown source": case(fit("--data.source digts"), "'digts'", "Did you mean digits?"),
    "no root": case(
        f"fit --model VICReg {LIGHT} --data.source cifar10", "`data.root`", "cifar-10-batches-py"
    ),
    "batch of 0": case(fit("--data.batch_size 0"), "`data.batch_size`", "1 or more, but got 0"),
    "batch of 1": case(fit("--data.batch_size 1"), "`data.batch_size`", "2 or more"),
    "batch larger than the set": case(
        fit("--data.batch_size 5000"), "`data.batch_size` 5000", "lower `data.batch_size`"
    ),
    "images of no pixel": case(fit("--data.image_size 0"), "`data.image_size`", "1 or more"),
    "subset smaller than a batch": case(fit("--data.subset 2"), "has 2", "lower `data.batch_size`"),
    "twice the set": case(fit("--data.subset 2.0"), "`data.subset`", "a count without a decimal"),
    "probe in colour": case(
        fit("--data.probe_source cifar10 --data.probe_root ."), "`data.probe_source`", "to be grey"
    ),
    "probe without labels": case(
        on_folder("--data.probe_root plain"),
        *("those of `plain` have no labels", "sort them into train/<class>/"),
        scene=labelled(flat("plain")),
    ),
    "root that is not there": case(on_folder(), "no folder `images`", "train/<class>/*"),
    "root that is a file": case(
        on_folder(), "no folder `images`", "`data.root`, a folder", scene=held("images", b"")
    ),
    "root that nobody may read": case(
        on_folder(), "images", "who may read", scene=forbidden("images")
    ),
    "empty folder": case(
        on_folder(), "no image in `images`", "hold train/<class>/*", scene=folder("images")
    ),
    "folder without images": case(
        on_folder(), "no image in `images`", "train/<class>/*", scene=held("images/a.heic", JPEG)
    ),
    "class folders of one image": case(
        on_folder(),
        *("each class has one", "set `data.labels` to none"),
        scene=lambda: [held(f"images/{n}/a.jpg", JPEG)() for n in ("cat", "dog")],
    ),
    "class that nobody may read": case(
        on_folder(),
        "images/train/cat",
        "who may read",
        scene=labelled(forbidden("images/train/cat")),
    ),
    "images beside classes": case(
        on_folder(),
        *("2 folders and 1 images", "move the images into a class"),
        scene=labelled(held("images/train/stray.jpg", JPEG)),
    ),
    "unknown reading of labels": case(
        fit("--data.labels folders"), *("data.labels", "one of 'auto', 'folder', 'none'")
    ),
    "empty validation set": case(
        on_folder(),
        *("`images/val`, but it holds 0 images and no folders", "move each image"),
        scene=lambda: (held("images/train/cat/a.jpg", JPEG)(), folder("images/val/cat")()),
    ),
    "class of validation alone": case(
        on_folder(),
        *("eel is not among them", "named as those in train/"),
        scene=labelled(held("images/val/eel/a.jpg", JPEG)),
    ),
    "validation set without folders": case(
        on_folder(),
        *("1 images and no folders with images", "move each image into the folder of its class"),
        scene=lambda: [held(f"images/{n}", JPEG)() for n in ("train/cat/a.jpg", "val/a.jpg")],
    ),
    "one image": case(on_folder(), "has 1", "add images", scene=flat(n=1)),
    "class that is a link to itself": case(
        on_folder(),
        "Too many levels of symbolic links: images/train/eel",
        "Check that path",
        scene=labelled(link("images/train/eel", "eel")),
    ),
    "image cut short": case(
        on_folder(command="test"),
        *("`images/train/cat/cat_0.jpg`", "set `data.on_bad_image` to skip"),
        scene=labelled(held("images/train/cat/cat_0.jpg", JPEG[:700])),
    ),
    "image of 0 bytes": case(
        on_folder(command="test"),
        *("`images/val/dog/dog_1.png`", "Repair or remove it"),
        scene=labelled(held("images/val/dog/dog_1.png", b"")),
    ),
    "image with a name that is not UTF-8": case(
        on_folder(command="test"),
        *("`images/val/dog/\\udcff.png`", "Repair or remove it"),
        scene=labelled(held("images/val/dog/\udcff.png", b"")),
    ),
    "images that nobody can read": case(
        on_folder("--data.on_bad_image skip", command="test"),
        *("Cannot read any of 4 images", "check the folder"),
        scene=labelled(
            *(
                held(f"images/val/{n}", b"")
                for n in ("cat/cat_0.jpg", "cat/cat_1.png", "dog/dog_0.jpg", "dog/dog_1.png")
            )
        ),
    ),
    "corrupt set": case(
        f"fit --model VICReg {LIGHT} --data.source fashion_mnist --data.root images",
        *("train-images-idx3-ubyte.gz`", "Fetch the file again"),
        scene=held("images/train-images-idx3-ubyte.gz", b"404 Not Found"),
    ),
    "labels of other images": case(
        f"fit --model VICReg {LIGHT} --data.source fashion_mnist --data.root .",
        *("one label per image", "3 images and labels of shape (4,)"),
        scene=lambda: [
            write_idx(Path("train-images-idx3-ubyte.gz"), pixels(3, 28, 28)),
            write_idx(Path("train-labels-idx1-ubyte.gz"), pixels(4)),
        ],
    ),
}

CONFIGS = {
    "config that is not there": case(
        f"fit -c {shlex.quote(DIGITS[:-1])} --model VICReg",
        "There is no config",
        "digits.yam. Did you mean",
        "data/digits.yaml",
    ),
    "config that is a folder": case(
        "fit -c bad.yaml", "bad.yaml", "It is a folder: name a file", scene=folder("bad.yaml")
    ),
    "config that nobody may read": case(
        "fit -c bad.yaml",
        "bad.yaml",
        "who may read",
        scene=lambda: (config("")(), forbidden("bad.yaml")()),
    ),
    "config of nothing": case(
        "fit -c bad.yaml", "bad.yaml", "map options to values", scene=config("")
    ),
    "config of a name": case(
        "fit -c bad.yaml", "bad.yaml", "holds no value", scene=config("seed_everything:")
    ),
    "config of a list": case(
        "fit -c bad.yaml", "bad.yaml", "but it holds list", scene=config("- 1\n- 2")
    ),
    "config that only Python's loader takes": case(
        "fit -c bad.yaml", "line 1", "option: value", scene=config("data: {view1: {scale:[0, 1]}}")
    ),
    "config with a tab": case(
        "fit -c bad.yaml",
        "line 2: found character that cannot start",
        "by spaces",
        scene=config("data:\n\tseed: 1"),
    ),
    "config with a key twice": case(
        "fit -c bad.yaml",
        *("bad.yaml", "line 3: 'data' occurs twice"),
        scene=config("data: {seed: 1}\ntrainer: {}\ndata: {subset: 9}"),
    ),
    "config with a tag of Python": case(
        "fit -c bad.yaml",
        *("python/object/apply:os.mkdir", "without tags"),
        scene=config("data: !!python/object/apply:os.mkdir [owned]"),
    ),
    "config that is not UTF-8": case(
        "fit -c bad.yaml",
        "can't decode byte 0xe9 in position 12",
        "bad.yaml",
        scene=config(b"experiment: \xe9t\xe9"),
    ),
    "config that is a checkpoint": case(
        "fit -c {run}/checkpoints/last.ckpt",
        "last.ckpt",
        "'utf-8' codec",
    ),
    "config with an unknown option": case(
        "fit -c bad.yaml --model VICReg",
        *("'trainer.max_epoch' in a config", "Did you mean trainer.max_epochs"),
        scene=config("trainer: {max_epoch: 3}"),
    ),
    "config with an unknown group": case(
        "fit -c bad.yaml --model VICReg",
        *("Unknown option 'modle.class_path'", "Did you mean model?"),
        scene=config("modle: {class_path: VICReg}"),
    ),
    "config with an unknown option of a method": case(
        "fit -c bad.yaml",
        *("VICReg has no option 'covarance'", "Did you mean covariance"),
        scene=config("model: {class_path: VICReg, init_args: {covarance: 1}}"),
    ),
    "config with a word for a number": case(
        "fit -c bad.yaml --model VICReg",
        *("data.batch_size", "int, but got 'large'"),
        scene=config("data: {batch_size: large}"),
    ),
    "config with a number for a group": case(
        "fit -c bad.yaml --model VICReg",
        *("data.view1 in bad.yaml to be a group", "Write `view1: {OPTION: VALUE}`"),
        scene=config("data: {view1: 3}"),
    ),
    "config with a list for a method": case(
        "fit -c bad.yaml",
        "model to be a method, but got '[1]'",
        "Take BYOL",
        scene=config("model: [1]"),
    ),
    "config in a config": case(
        "fit -c bad.yaml",
        "config inside bad.yaml",
        "its own -c",
        scene=config("config: other.yaml"),
    ),
    "config with null for the seed": case(
        "fit -c bad.yaml --model VICReg",
        "seed_everything",
        "bool or int, but got 'None'",
        scene=config("seed_everything: null\ntrainer: {}"),
    ),
    "config with null for a number": case(
        f"fit -c bad.yaml --model VICReg {LIGHT}",
        "`data.batch_size`",
        "whole number, 1 or more, but got None",
        scene=config("data: {batch_size: }"),
    ),
}

CHECKPOINTS = {
    "checkpoint that is not there": case(
        "test --ckpt_path no.ckpt", "There is no checkpoint no.ckpt", "Name a .ckpt file"
    ),
    "folder without checkpoints": case(
        "test --ckpt_path empty",
        "empty/checkpoints/last.ckpt",
        "the folder of a run",
        scene=folder("empty"),
    ),
    "checkpoint of 0 bytes": case(
        fit("--ckpt_path a.ckpt"), "a.ckpt (0 bytes)", "truncated", scene=held("a.ckpt", b"")
    ),
    "checkpoint that is a text": case(
        "test --model VICReg --ckpt_path a.ckpt",
        "a.ckpt",
        "or a different kind of file",
        scene=held("a.ckpt", b"hello"),
    ),
    "checkpoint that is a list": case(
        fit("--ckpt_path a.ckpt"),
        "a.ckpt is no checkpoint",
        "lacks global_step",
        scene=lambda: torch.save([1], "a.ckpt"),
    ),
    "checkpoint of another projector": case(
        f"test {RUN} --model.projector 16-16",
        "of another network",
        "set --model.projector 512-512-512",
    ),
    "fit on a checkpoint of another projector": case(
        f"fit {RUN} --model.projector 16-16 --trainer.max_steps 2",
        *("of another network", "set --model.projector 512-512-512"),
    ),
    "fit on a checkpoint of other images": case(
        f"fit {RUN} --model.in_channels 3 --trainer.max_steps 2",
        "of 3 channels",
        "--model.in_channels 1",
    ),
    "weights that are not there": case(
        fit("--model.pretrained no.ckpt"),
        "There is no file of weights no.ckpt",
        "Name a checkpoint",
    ),
    "weights that are none": case(
        fit("--model.pretrained {run}/config.yaml"),
        "config.yaml to be a file of weights",
        "cannot be read",
    ),
}

IMAGES = {
    "image that is not there": case(
        partial(read_crops, Path("no.jpg"), 8, centre_box(8)), "`no.jpg`", "No such file", "Repair"
    ),
    "empty image": bad_image(b"", "cannot identify"),
    "text with the name of an image": bad_image(b"<html>404 Not Found</html>", "cannot identify"),
    "PostScript with the name of an image": bad_image(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
        "cannot identify",
    ),
    "JPEG cut short": bad_image(JPEG[:700], "truncated"),
    "PNG cut short": bad_image(PNG[: len(PNG) // 2], "truncated", name="a.png"),
    "PNG of another checksum": bad_image(
        PNG[:20] + b"\xff" + PNG[21:], "cannot identify", name="a.png"
    ),
    "PNG that claims 20,000 x 20,000": bad_image(
        png(20_000, 20_000), "exceeds limit of 178956970 pixels", name="a.png"
    ),
    "GIF that claims 65,535 x 65,535": bad_image(
        b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\2\2D\1\0;",
        "178956970 pixels",
        name="a.gif",
    ),
    "BMP of no pixel": bad_image(
        b"BM"
        + struct.pack("<IIIIiiHHIIiiII", 58, 0, 54, 40, 0, 1, 1, 24, 0, 4, 0, 0, 0, 0)
        + b"\0" * 4,
        "cannot identify",
        name="a.bmp",
    ),
    "TIFF of floats": bad_image(
        encoded(Image.fromarray(np.ones((4, 4), dtype=np.float32)), "TIFF"),
        "pixels are floats",
        name="a.tif",
    ),
    "folder with the name of an image": case(
        partial(read_crops, Path("a.jpg"), 8, centre_box(8)),
        "`a.jpg`",
        "Is a directory",
        scene=folder("a.jpg"),
    ),
    "link that leads to itself": case(
        partial(read_crops, Path("a.jpg"), 8, centre_box(8)),
        "`a.jpg`",
        "Too many levels",
        scene=link("a.jpg", "a.jpg"),
    ),
    "image that nobody may read": case(
        partial(read_crops, Path("a.jpg"), 8, centre_box(8)),
        "`a.jpg`",
        "Permission denied",
        scene=lambda: (held("a.jpg", JPEG)(), forbidden("a.jpg")()),
    ),
}


def resnet18(in_channels: int) -> torch.nn.Module:
    """Has the name of torchvision's."""
    return torch.nn.Flatten()


ONES = torch.ones(4, 3)
LABELS = torch.tensor([0, 0, 1, 1])

CALLS = {
    "batch of a word": case(partial(DATA, batch_size="64"), "`data.batch_size`", "'64'"),
    "seed of None": case(partial(DATA, seed=None), "`data.seed`", "whole number"),
    "embedding of a word": case(partial(parse_projector, "d", "8"), "`embedding_dim`", "'8'"),
    "method without a criterion": case(
        JointEmbedding, "JointEmbedding", "class Mine(JointEmbedding"
    ),
    "unknown backbone of a method": case(
        partial(VICReg, backbone="resnet19"), "'resnet19'", "nearest names are resnet1"
    ),
    "view of no area": case(partial(View, scale=(0, 1)), "`scale`", "0 < low"),
    "floats for images": case(
        partial(ArrayImages, torch.zeros(2, 1, 8, 8)), "torch.float32", "uint8"
    ),
    "fewer labels than images": case(
        partial(ArrayImages, torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.zeros(3)),
        "(3,)",
        "one label per image",
    ),
    "source of a taken name": case(
        lambda: register_source("digits")(sources.CIFAR10), "'digits' is taken", "another one"
    ),
    "backbone of a taken name": case(
        lambda: backbones.register_backbone(resnet18), "'resnet18' is taken", "another one"
    ),
    "features of NaN": case(
        partial(evaluation.linear_top1, ONES * torch.nan, LABELS, ONES, LABELS),
        "`train_features`",
        "earlier checkpoint",
    ),
    "fewer labels than features": case(
        partial(evaluation.linear_top1, ONES, LABELS[:3], ONES, LABELS),
        "(4, 3) and (3,)",
        "of shape (N,)",
    ),
    "one class to tell apart": case(
        partial(evaluation.linear_top1, ONES, LABELS * 0, ONES, LABELS),
        "at least 2 classes",
        "got 1",
    ),
    "source without its files": case(
        lambda: create_source("stl10", ".").load("train"),
        "`stl10_binary`",
        "`data.download` to true",
    ),
}

REFUSED = WORDS | NETWORKS | SETS | CONFIGS | CHECKPOINTS | IMAGES | CALLS


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run of one step."""
    root = tmp_path_factory.mktemp("bad_input")
    without = "[probe, knn, rankme, duality, guard, views, best_checkpoint]"
    words = f"--trainer.default_root_dir {root} --trainer.max_steps 1 --without '{without}'"
    short = "--trainer.limit_val_batches 0 --model.warmup_epochs 0"
    main(shlex.split(fit(f"{words} {short}")))
    return root / "digits/VICReg/version_0"


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working folder; whoever root has become there, it is root again after.

    It is in none of pytest's, which only their owner may pass through.
    """
    monkeypatch.delenv("DUALITY_SSL_DEBUG", raising=False)
    with tempfile.TemporaryDirectory() as name, monkeypatch.context() as patch:
        folder = Path(name).resolve()
        folder.chmod(0o711)
        patch.chdir(folder)
        yield folder
        if os.getuid() == 0:
            os.seteuid(0)
        for path in folder.rglob("*"):
            if not path.is_symlink():
                path.chmod(0o700)


def tree(*roots: Path) -> dict[str, bytes | str | int]:
    """All that is in some folders, files with what they hold."""
    if os.getuid() == 0:
        os.seteuid(0)
    return {
        str(path): str(path.readlink())
        if path.is_symlink()
        else path.read_bytes()
        if path.is_file()
        else path.stat().st_mode
        for root in roots
        for path in root.rglob("*")
    }


def refusal(act: str | Callable[[], object], capsys: pytest.CaptureFixture[str]) -> str:
    """What is said of a mistake, after a look at how it is said."""
    if callable(act):
        with pytest.raises((ValueError, OSError)) as refused:
            act()
        return str(refused.value)
    with pytest.raises(SystemExit) as done:
        main(shlex.split(act))
    said = capsys.readouterr().err
    assert done.value.code == 2
    assert "Traceback" not in said
    (error,) = [line for line in said.splitlines() if "error:" in line]
    assert error.startswith("duality-ssl: error: ")
    return error.removeprefix("duality-ssl: error: ")


@pytest.mark.filterwarnings("ignore:Without --ckpt_path the network is untrained")
@pytest.mark.parametrize("mistake", REFUSED.values(), ids=REFUSED)
def test_mistake_ends_in_a_sentence(
    mistake: Case, run: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mistake.scene()
    user = os.geteuid()
    before = tree(here, run)
    if os.getuid() == 0:
        os.seteuid(user)
    act = mistake.act.format(run=run) if isinstance(mistake.act, str) else mistake.act
    sentence = refusal(act, capsys)
    assert "\n" not in sentence
    assert len(sentence) < 600
    for words in mistake.says:
        assert words in sentence
    assert tree(here, run) == before


def test_debugging_shows_the_traceback(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = fit("--model.projector 8192--d")
    assert refusal(wrong, capsys).endswith(" (DUALITY_SSL_DEBUG=1 shows the traceback.)")
    monkeypatch.setenv("DUALITY_SSL_DEBUG", "1")
    with pytest.raises(ValueError, match="part 2 of '8192--d' is empty"):
        main(shlex.split(wrong))


def test_option_that_the_parser_refuses_has_no_traceback_to_show(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "traceback" not in refusal(fit("--trainer.max_epoch 3"), capsys)


@pytest.mark.parametrize("is_cause", [True, False])
def test_bug_while_a_mistake_is_handled_is_shown_whole(
    is_cause: bool,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Only what is raised *from* the package's error stands for it."""

    def setup(data: SSLDataModule, stage: str) -> None:
        try:
            parse_projector("8192--d")
        except ValueError as mistake:
            bug = TypeError("a bug of the user's own")
            bug.__cause__ = mistake if is_cause else None
            raise bug  # noqa: B904

    monkeypatch.setattr(SSLDataModule, "setup", setup)
    if is_cause:
        assert "part 2 of '8192--d' is empty" in refusal(fit(), capsys)
    else:
        with pytest.raises(TypeError, match="a bug of the user's own"):
            main(shlex.split(fit()))


def test_image_that_stops_a_fit_leaves_no_checkpoint(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is found when it is read; what was there is there still, and the run's config says why."""
    labelled(held("images/train/dog/dog_1.png", PNG[:500]))()
    before = tree(here)
    sentence = refusal(on_folder(), capsys)
    assert "`images/train/dog/dog_1.png`: image file is truncated" in sentence
    left = tree(here)
    assert {name: left[name] for name in before} == before
    assert not list(here.rglob("*.ckpt*"))


RED = Image.new("RGB", (40, 30), (255, 0, 0))
BLUE = Image.new("RGB", (40, 30), (0, 0, 255))
FRAMES = {"save_all": True, "append_images": [BLUE]}
PALETTE = Image.new("P", (40, 30), 1)
PALETTE.putpalette([0, 0, 0, 255, 0, 0])
DEEP = Image.fromarray(np.full((30, 40), 257 * 200, np.uint16))
TURNED = Image.Exif()
TURNED[0x0112] = 6

# name, content, and the colour that all of it has
ACCEPTED = {
    "animated GIF": (b"a.gif", encoded(RED, "GIF", **FRAMES), (255, 0, 0)),
    "animated PNG": (b"a.png", encoded(RED, "PNG", **FRAMES), (255, 0, 0)),
    "animated WebP": (b"a.webp", encoded(RED, "WEBP", lossless=True, **FRAMES), (255, 0, 0)),
    "two pages of a TIFF": (b"a.tif", encoded(RED, "TIFF", **FRAMES), (255, 0, 0)),
    "two pictures of a camera": (b"a.jpg", encoded(RED, "MPO", **FRAMES), (254, 0, 0)),
    "GIF with the name of a JPEG": (b"a.jpg", encoded(RED, "GIF"), (255, 0, 0)),
    "extension in capitals": (b"a.JPG", encoded(RED, "JPEG"), (254, 0, 0)),
    "progressive JPEG": (b"a.jpg", encoded(RED, "JPEG", progressive=True), (254, 0, 0)),
    "turned by a tag": (b"a.jpg", encoded(RED, "JPEG", exif=TURNED), (254, 0, 0)),
    "TIFF turned by a tag": (b"a.tif", encoded(RED, "TIFF", exif=TURNED), (255, 0, 0)),
    "CMYK": (b"a.jpg", encoded(RED.convert("CMYK"), "JPEG"), (254, 0, 0)),
    "16 bits": (b"a.png", encoded(DEEP, "PNG"), (200, 200, 200)),
    "black and white": (b"a.png", encoded(RED.convert("1", dither=0), "PNG"), (0, 0, 0)),
    "palette": (b"a.png", encoded(PALETTE, "PNG"), (255, 0, 0)),
    "palette with a transparent colour": (
        *(b"a.png", encoded(PALETTE, "PNG", transparency=1)),
        (255, 255, 255),
    ),
    "transparent colour": (
        *(b"a.png", encoded(RED, "PNG", transparency=(255, 0, 0))),
        (255, 255, 255),
    ),
    "transparency": (b"a.png", encoded(Image.new("RGBA", (4, 4)), "PNG"), (255, 255, 255)),
    "1 x 1": (b"a.png", encoded(RED.resize((1, 1)), "PNG"), (255, 0, 0)),
    "1 x 3000": (b"a.png", encoded(RED.resize((1, 3000)), "PNG"), (255, 0, 0)),
    "3000 x 1": (b"a.png", encoded(RED.resize((3000, 1)), "PNG"), (255, 0, 0)),
    "name that is not UTF-8": (b"\xe9t\xe9 \xff.png", encoded(RED, "PNG"), (255, 0, 0)),
    "name with a line break": (b"a\nb.png", encoded(RED, "PNG"), (255, 0, 0)),
}


@pytest.mark.parametrize(("name", "content", "colour"), ACCEPTED.values(), ids=ACCEPTED)
def test_uncommon_image_is_read(
    name: bytes, content: bytes, colour: tuple[int, int, int], here: Path
) -> None:
    Path(os.fsdecode(name)).write_bytes(content)
    images = create_source("folder", ".").load("train")
    data = FileDataset(images, 16, (View(), View()), 0, "error")
    for seed in (None, 1):
        batch = data[BatchRequest(np.array([0]), 0, seed)]
        assert isinstance(batch, Batch), batch
        for view in batch.images:
            assert view.shape == (1, 3, 16, 16)
            assert view.dtype == torch.uint8
            assert (view[0].flatten(1).T.int() - torch.tensor(colour)).abs().max() <= 2


def test_links_and_pipes_in_a_folder(here: Path) -> None:
    """A class may be a link; a loop of links, a pipe and what is hidden are passed over."""
    labelled(
        *(link("images/train/cat/loop", ".."), link("images/train/cat/b.png", "cat_1.png")),
        *(held("images/train/cat/.hidden.png", b""), held("images/train/cat/notes.txt", b"")),
        *(partial(os.mkfifo, "images/train/cat/pipe.png"), link("images/train/eel", "../../eels")),
        held("eels/deep/er/a.jpg", JPEG),
    )()
    source = create_source("folder", "images")
    images = source.load("train")
    assert source.class_names == ("cat", "dog", "eel")
    names = [str(images.path(i).relative_to("images/train")) for i in range(len(images))]
    cats = ["cat/b.png", *(f"cat/cat_{i}.{'png' if i % 2 else 'jpg'}" for i in range(4))]
    assert names[:5] == cats
    assert names[9:] == ["eel/deep/er/a.jpg"]


def test_uncommon_images_go_the_whole_way(here: Path) -> None:
    """A fit on all of them, and the names of the files beside their features."""
    for split in ("train", "val"):
        for number, (name, content, _) in enumerate(ACCEPTED.values()):
            file = Path(f"images/{split}/all") / f"{number}{os.fsdecode(name)}"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
    with pytest.warns(UserWarning, match="22 of 22 images looked at are of one colour"):
        main(shlex.split(on_folder()))
    main(shlex.split("predict --ckpt_path runs/folder/SimCLR/version_0"))
    with np.load("runs/folder/SimCLR/version_0/checkpoints/features.npz") as file:
        assert np.isfinite(file["features"]).all()
        assert {Path(path) for path in file["paths"]} == {*Path("images/val/all").iterdir()}
