"""Image sources: the protocol and its registry, sets in memory, folders of files."""

from duality_ssl.data.datasets import ArrayImages
from duality_ssl.data.sources.arrays import CIFAR10, CIFAR100, STL10, Digits, FashionMNIST
from duality_ssl.data.sources.base import (
    ImageSource,
    Split,
    available_sources,
    create_source,
    register_source,
)
from duality_ssl.data.sources.folder import Folder, ImageNet

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "STL10",
    "ArrayImages",
    "Digits",
    "FashionMNIST",
    "Folder",
    "ImageNet",
    "ImageSource",
    "Split",
    "available_sources",
    "create_source",
    "register_source",
]
