"""Data: from image files to batches of augmented views.

A source (`sources`) lists images, a sampler (`sampler`) requests batches of them, a data set
(`datasets`) reads a batch, the loader (`loader`) delivers it, and on the device the augmentation
(`augment`) makes two views of it. `SSLDataModule` joins them.
"""

from duality_ssl.data.augment.pipeline import Augmentation
from duality_ssl.data.augment.view import Draws, View, ViewChanges
from duality_ssl.data.datamodule import SSLDataModule
from duality_ssl.data.datasets import ArrayImages, FileImages
from duality_ssl.data.sources import (
    ImageSource,
    available_sources,
    create_source,
    register_source,
)
from duality_ssl.data.transfer import TransferSet

__all__ = [
    "ArrayImages",
    "Augmentation",
    "Draws",
    "FileImages",
    "ImageSource",
    "SSLDataModule",
    "TransferSet",
    "View",
    "ViewChanges",
    "available_sources",
    "create_source",
    "register_source",
]
