"""What an image source is, and the registry of sources."""

from abc import ABC, abstractmethod
from functools import partial
from inspect import isabstract
from pathlib import Path
from typing import Any, ClassVar, Literal

from duality_ssl.data.datasets import Images
from duality_ssl.registry import did_you_mean, import_path, register

Split = Literal["pretrain", "train", "val"]

Labels = Literal["auto", "folder", "none"]
"""Whether the folders of image files are their classes, see `layout.labelled_by_folder`."""


class ImageSource(ABC):
    """Where images come from: a registered subclass is a value of ``data.source``.

    Args:
        root: Folder of the files, for sources that read any.
        download: Whether to download missing files, for sources that can.
        labels: Whether folders are classes, for sources that read folders.
        seed: Seed of held-out images, for sources that draw them.
    """

    channels: ClassVar[int]
    """1 (grey) or 3 (RGB)."""
    image_size: ClassVar[int]
    """Default side of the views, in pixels."""
    mean: ClassVar[tuple[float, ...]]
    """Mean of each channel over the training set, for values in [0, 1]."""
    std: ClassVar[tuple[float, ...]]
    """Standard deviation of each channel over the training set, for values in [0, 1]."""
    default_root: ClassVar[Path | None] = None
    """Folder of the files if the user names none."""

    def __init__(
        self,
        root: Path | str | None = None,
        *,
        download: bool = False,
        labels: Labels = "auto",
        seed: int = 0,
    ) -> None:
        self.root = self.default_root if root is None else Path(root).expanduser()
        self.download = download
        self.labels = labels
        self.seed = seed

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

    def _given_root(self, layout: str) -> Path:
        """The root; ``ValueError`` without one, which says what it should hold."""
        if self.root is None:
            raise ValueError(f"Expected `data.root`, a folder with {layout}, but got none.")
        return self.root


_SOURCES: dict[str, type[ImageSource]] = {}


def register_source(source: Any, /) -> Any:
    """Let ``data.source`` name an `ImageSource`.

    A class decorator: ``@register_source`` registers a class under its own name,
    ``@register_source("name")`` under another one.

    Raises:
        ValueError: If another class has the name, or the class is no `ImageSource`.
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


def create_source(name: str, root: Path | str | None = None, **options: Any) -> ImageSource:
    """Build a source with the arguments of `ImageSource`; reads no file yet.

    The name is one of `available_sources`, or the dotted path of an `ImageSource`, such as
    ``mine.Stripes``, whose module is imported.

    Raises:
        ValueError: If there is no such source.
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
    built: ImageSource = source(root, **options)
    return built
