"""Methods: a LightningModule for each criterion, all with one training step."""

from duality_ssl.methods.frozen import FrozenBackbone
from duality_ssl.methods.joint_embedding import JointEmbedding
from duality_ssl.methods.named import (
    DCL,
    TCR,
    BarlowTwins,
    SimCLR,
    SpectralContrastive,
    VICReg,
    VICRegCtr,
    VICRegExp,
)

__all__ = [
    "DCL",
    "TCR",
    "BarlowTwins",
    "FrozenBackbone",
    "JointEmbedding",
    "SimCLR",
    "SpectralContrastive",
    "VICReg",
    "VICRegCtr",
    "VICRegExp",
]
