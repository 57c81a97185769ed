"""Random texts, files and images: each is read, or refused in one sentence.

The examples are the same in every run. With ``DUALITY_SSL_FUZZ_SECONDS`` each test takes those of
the next seeds, too, for as many seconds.
"""

import io
import itertools
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from jsonargparse import get_loader
from PIL import Image

from duality_ssl.cli.command import Command, main
from duality_ssl.data import View
from duality_ssl.data.datasets import Batch, FileDataset, FileImages
from duality_ssl.data.decode import BadImageError
from duality_ssl.data.sampler import BatchRequest
from duality_ssl.networks.projector import parse_projector
from duality_ssl.runs.config import read_config

CONFIGS = sorted(Path(__file__).parents[2].glob("configs/*/*.yaml"))
SECONDS = float(os.environ.get("DUALITY_SSL_FUZZ_SECONDS", 0))
HINT = " (DUALITY_SSL_DEBUG=1 shows the traceback.)"
SENTENCE = re.compile(r"[^\n]{20,600}[.?]")


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def fuzz(examples: int, **strategies: st.SearchStrategy[Any]) -> Callable[..., Callable[[], None]]:
    """Make a test of a check: so many examples of each seed, and one seed unless there is time."""

    def decorate(check: Callable[..., None]) -> Callable[[], None]:
        limits = settings(max_examples=examples, deadline=None, database=None, print_blob=True)

        def test() -> None:
            end = time.monotonic() + SECONDS
            for number in itertools.count():
                seed(number)(limits(given(**strategies)(check)))()
                if time.monotonic() >= end:
                    break

        return test

    return decorate


def refusal(call: Callable[..., object], *arguments: object, names: str = "") -> str | None:
    """The one sentence of a refusal, which names the culprit; None where there is none."""
    try:
        call(*arguments)
    except ValueError as error:
        sentence = str(error)
    else:
        return None
    assert SENTENCE.fullmatch(sentence), sentence
    assert names in sentence
    return sentence


width = st.just("d") | (st.integers(1, 2**20) | st.integers(2**20 - 1, 2**20 + 1)).map(str)
specs = st.one_of(
    st.lists(width, min_size=1, max_size=6).map("-".join),
    st.lists(width | st.text("0123456789d", max_size=9), max_size=6).map("-".join),
    st.text("0123456789d- D\n²٣_+.", max_size=20),
    st.text(),
)


def reference_widths(spec: str, dim: int | None) -> list[int] | None:
    """The notation by its grammar, a character at a time; None for what is none of it."""
    if dim is not None and not 0 < dim <= 2**20:
        return None
    found = []
    for part in spec.split("-"):
        number = 0
        for character in part:
            number = 10 * number + "0123456789".find(character)
            if character not in "0123456789" or number == 0 or number > 2**20:
                number = 0
                break
        width = dim if part == "d" else number
        if not width:
            return None
        found.append(width)
    return found if dim in (None, found[-1]) else None


@fuzz(500, spec=specs, dim=st.none() | st.integers(1, 9) | st.integers(-2, 2**20 + 2))
def test_projector(spec: str, dim: int | None) -> None:
    expected = reference_widths(spec, dim)
    if expected is None:
        assert refusal(parse_projector, spec, dim)
        return
    assert parse_projector(spec, dim) == expected
    assert parse_projector("-".join(map(str, expected))) == expected


# pieces that mean something in YAML, to this package, or to whoever would have code run
PIECES = st.sampled_from(
    [
        *("data", "trainer", "model", "view1", "batch_size", "class_path", "init_args", "VICReg"),
        *("max_epochs", "without", "callbacks", "projector", "seed_everything", "config", "<<"),
        *(": ", ":", "\n", "\n  ", "\n- ", "- ", "{", "}", "[", "]", ", ", "? ", "&a ", "*a", "\t"),
        *("|", ">", '"', "'", "#", "%", "---\n", "...", "\0", "\ufeff", "é", "\ud7ff", "null", "~"),
        *("1", "-5", "2.0", ".nan", "0x10", "1e3", "true", "no", "2026-13-45", "12:30:45"),
        *("!!python/object/apply:os.mkdir [owned]", "!!python/name:os.mkdir ", "!!int ", "!!set "),
        *("!!binary ", "!!timestamp ", "!x ", "os.mkdir", "builtins.exec"),
    ]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | PIECES,
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(PIECES, inside, max_size=4),
    max_leaves=12,
)
names = st.sampled_from(["data", "trainer", "model", "experiment", "without", "knn", "guard"])


@st.composite
def altered(draw: st.DrawFn, originals: list[bytes]) -> bytes:
    """A file with bytes changed, cut out, put in, or with the end of another."""
    content = draw(st.sampled_from(originals))
    for _ in range(draw(st.integers(0, 6))):
        # spread over the file: Hypothesis likes small numbers, and so the first bytes
        at = draw(st.integers(0, 2**16)) * 40503 % (len(content) + 1)
        match draw(st.sampled_from(["flip", "cut", "end", "put", "splice"])):
            case "flip":
                byte = bytes([draw(st.integers(0, 255))])
                content = content[:at] + byte + content[at + 1 :]
            case "cut":
                content = content[:at] + content[at + draw(st.integers(1, 40)) :]
            case "end":
                content = content[:at]
            case "put":
                content = content[:at] + draw(st.binary(max_size=8)) + content[at:]
            case "splice":
                other = draw(st.sampled_from(originals))
                content = content[:at] + other[draw(st.integers(0, len(other))) :]
    return content


configs = st.one_of(
    st.binary(max_size=60),
    st.lists(PIECES, max_size=25).map(lambda pieces: "".join(pieces).encode("utf-8")),
    st.dictionaries(names, values, max_size=4).map(lambda d: yaml.safe_dump(d).encode()),
    altered([path.read_bytes() for path in CONFIGS]),
)


@fuzz(400, content=configs)
def test_config_is_yaml(content: bytes) -> None:
    """What passes is a mapping to the parser of the options, too."""
    Path("fuzz.yaml").write_bytes(content)
    if not refusal(read_config, Path("fuzz.yaml"), names="fuzz.yaml"):
        assert isinstance(get_loader("yaml")(content.decode()), dict)
    assert [*Path().iterdir()] == [Path("fuzz.yaml")]


OPTIONS = [
    *("experiment", "without", "resume", "seed_everything", "ckpt_path", "model", "data.view1"),
    *("data.batch_size", "data.subset", "data.source", "data.root", "data.view1.scale"),
    *("model.class_path", "model.init_args", "model.init_args.projector", "trainer.callbacks"),
    *("model.init_args.optimizer", "model.init_args.scheduler", "model.init_args.base_lr"),
    *("trainer.max_epochs", "trainer.devices", "trainer.precision", "trainer.logger", "knn.k"),
    *(
        "trainer.max_time",
        "trainer.plugins",
        "trainer.strategy",
        "data.view2.sigma",
        "probe.nosuch",
    ),
]


def nested(options: dict[str, Any]) -> bytes:
    """A config with these dotted options; one above another replaces it."""
    content: dict[str, Any] = {}
    for option, value in sorted(options.items(), reverse=True):
        *groups, name = option.split(".")
        inside = content
        for group in groups:
            inside = inside.setdefault(group, {})
        inside[name] = value
    return yaml.safe_dump(content).encode()


class ParsedError(Exception):
    """The command line has been read to its end."""


@pytest.fixture
def _parsing_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(command: Command) -> None:
        raise ParsedError

    monkeypatch.setattr(Command, "before_instantiate_classes", stop)
    monkeypatch.delenv("DUALITY_SSL_DEBUG", raising=False)


@pytest.mark.usefixtures("_parsing_only")
@fuzz(20, content=st.dictionaries(st.sampled_from(OPTIONS), values, max_size=3).map(nested))
def test_config_on_the_command_line(content: bytes) -> None:
    Path("fuzz.yaml").write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        said = io.StringIO()
        patch.setattr("sys.stderr", said)
        with pytest.raises((SystemExit, ParsedError)) as end:
            main(["fit", "-c", "fuzz.yaml", "--model", "VICReg"])
    if isinstance(end.value, SystemExit):
        assert end.value.code == 2
        (line,) = said.getvalue().splitlines()
        line = line.removeprefix("duality-ssl: error: ")
        assert SENTENCE.fullmatch(line.removesuffix(HINT)), line
    assert [*Path().iterdir()] == [Path("fuzz.yaml")]


def originals() -> Iterator[bytes]:
    """A small image in every format, and in modes that are not common."""
    pixels = np.random.default_rng(0).integers(0, 256, (24, 20, 3), dtype=np.uint8)
    photo = Image.fromarray(pixels)
    palette = photo.convert("P")
    deep = Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 257)
    frames: dict[str, Any] = {"save_all": True, "append_images": [photo.rotate(90)]}
    for image, kind, options in (
        *((photo, kind, {}) for kind in ("JPEG", "PNG", "GIF", "BMP", "PPM", "TIFF", "WEBP")),
        *((photo, kind, frames) for kind in ("PNG", "GIF", "TIFF", "WEBP", "MPO")),
        *((photo, "TIFF", {"compression": name}) for name in ("tiff_lzw", "jpeg", "packbits")),
        *((photo.convert("CMYK"), kind, {}) for kind in ("JPEG", "TIFF")),
        *((palette, "PNG", {"transparency": 3}), (palette, "BMP", {}), (palette, "GIF", {})),
        *((deep, "PNG", {}), (deep, "TIFF", {}), (photo.convert("1"), "PPM", {})),
        *((photo, "JPEG", {"progressive": True}), (photo.convert("RGBA"), "PNG", {})),
        (photo, "WEBP", {"lossless": True}),
    ):
        file = io.BytesIO()
        image.save(file, kind, **options)
        yield file.getvalue()


IMAGES = list(originals())
MAGIC = st.sampled_from([image[:12] for image in IMAGES])


@pytest.mark.filterwarnings("ignore")
@fuzz(400, content=altered(IMAGES) | altered(IMAGES) | st.builds(bytes.__add__, MAGIC, st.binary()))
def test_image(content: bytes) -> None:
    Path("fuzz.img").write_bytes(content)
    images = FileImages(Path(), np.array([b"fuzz.img"]), torch.tensor([0]))
    data = FileDataset(images, 8, (View(), View()), 0, "error")
    for number in (None, 1):
        batch = data[BatchRequest(np.array([0]), 0, number)]
        if isinstance(batch, BadImageError):
            assert SENTENCE.fullmatch(str(batch)), batch
            assert str(batch).startswith("Cannot read the image `fuzz.img`: ")
            continue
        assert isinstance(batch, Batch)
        for view in batch.images:
            assert view.shape == (1, 3, 8, 8)
            assert view.dtype == torch.uint8


@pytest.mark.parametrize("content", IMAGES, ids=lambda content: repr(content[:4]))
def test_image_that_is_whole_is_read(content: bytes) -> None:
    """Without which the examples above would all be refused."""
    Path("whole.img").write_bytes(content)
    images = FileImages(Path(), np.array([b"whole.img"]), torch.tensor([0]))
    request = BatchRequest(np.array([0]), 0, None)
    assert isinstance(FileDataset(images, 8, (View(),), 0, "error")[request], Batch)
