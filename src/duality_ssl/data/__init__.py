"""Data: image sources, batched augmentations, and the one data module."""

from duality_ssl.data.augment import Augmentation, Draws, View, ViewChanges
from duality_ssl.data.datamodule import SSLDataModule
from duality_ssl.data.file_images import FileImages
from duality_ssl.data.sources import (
    ArrayImages,
    ImageSource,
    available_sources,
    create_source,
    register_source,
)

__all__ = [
    "ArrayImages",
    "Augmentation",
    "Draws",
    "FileImages",
    "ImageSource",
    "SSLDataModule",
    "View",
    "ViewChanges",
    "available_sources",
    "create_source",
    "register_source",
]
