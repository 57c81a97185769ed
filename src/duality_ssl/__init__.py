"""Contrastive and non-contrastive self-supervised pretraining under one roof.

Importing the package costs nothing: the names below are loaded when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from duality_ssl.data import SSLDataModule, register_source
    from duality_ssl.methods import (
        BYOL,
        DCL,
        DINO,
        MMCR,
        NSCL,
        TCR,
        WMSE,
        BarlowTwins,
        CorInfoMax,
        CPLearn,
        FroSSL,
        JointEmbedding,
        LeJEPA,
        MoCoV3,
        SimCLR,
        SimSiam,
        SpectralContrastive,
        SupCon,
        SwAV,
        VIbCReg,
        VICReg,
        VICRegCtr,
        VICRegExp,
        VISReg,
    )
    from duality_ssl.networks import create_backbone, register_backbone

__version__ = "0.1.0"

__all__ = [
    "BYOL",
    "DCL",
    "DINO",
    "MMCR",
    "NSCL",
    "TCR",
    "WMSE",
    "BarlowTwins",
    "CPLearn",
    "CorInfoMax",
    "FroSSL",
    "JointEmbedding",
    "LeJEPA",
    "MoCoV3",
    "SSLDataModule",
    "SimCLR",
    "SimSiam",
    "SpectralContrastive",
    "SupCon",
    "SwAV",
    "VICReg",
    "VICRegCtr",
    "VICRegExp",
    "VISReg",
    "VIbCReg",
    "create_backbone",
    "register_backbone",
    "register_source",
]

_HOMES = {
    "SSLDataModule": "data",
    "register_source": "data",
    "create_backbone": "networks",
    "register_backbone": "networks",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'methods')}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
