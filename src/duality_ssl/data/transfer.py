"""Other data sets that a pretrained network is evaluated on."""

from copy import copy
from dataclasses import dataclass
from pathlib import Path

from duality_ssl.data.datamodule import SSLDataModule
from duality_ssl.data.sources import create_source


@dataclass(frozen=True)
class TransferSet:
    """A labelled data set to evaluate a network on that was pretrained on another one.

    Args:
        source: Name of the image source, as in `SSLDataModule`.
        root: Folder of the source's files.
        name: Name in the results; by default the source's, or that of the folder for the source
            ``folder``.

    Raises:
        ValueError: If the name is not one of a file.
    """

    source: str
    root: str | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        """Refuse a name that cannot name a file."""
        if self.title != Path(self.title).name:
            raise ValueError(
                f"Expected the name of a data set in `evaluation.sets` without slashes, but got "
                f"{self.title!r}: give it another `name`."
            )

    @property
    def title(self) -> str:
        """Name in the results."""
        folder = Path(self.root or "").resolve().name if self.source == "folder" else ""
        return self.name or folder or self.source

    def images(self, data: SSLDataModule) -> SSLDataModule:
        """Copy a data module, with the images of this set as those of its probe.

        They are resized and normalized as the pretraining images are; grey ones become RGB where
        the network takes RGB.

        Args:
            data: The data module of the network.

        Returns:
            The data module, set up for tests.

        Raises:
            ValueError: If there is no such source, its images have no labels, or they are RGB and
                the network's are grey.
        """
        probe = create_source(
            self.source, self.root, download=data._pretrain.download, seed=data.seed
        )
        if probe.channels > data.channels:
            raise ValueError(
                f"Expected grey images in `evaluation.sets`, as `{data.source}` has, but "
                f"`{self.title}` is RGB: a network for one channel cannot see it."
            )
        if probe.class_names is None:
            raise ValueError(
                f"Expected labelled images in `evaluation.sets`, but those of `{self.title}` in "
                f"{probe.root} have no labels: sort them into train/<class>/ and val/<class>/."
            )
        other = copy(data)
        other._probe, other._names_probe, other._cache = probe, True, {}
        other.setup("test")
        return other
