"""Criteria: ``criterion(z1, z2)`` of two ``(N, D)`` views gives ``"loss"`` and its named terms.

Weights are at least 0; an argument out of its range is refused with a ``ValueError``.
"""

from duality_ssl.criteria.barlow_twins import BarlowTwins
from duality_ssl.criteria.base import Criterion
from duality_ssl.criteria.coding_rate import TCR
from duality_ssl.criteria.contrastive import DCL, SimCLR, SpectralContrastive
from duality_ssl.criteria.cplearn import CPLearn
from duality_ssl.criteria.prototypes import DINO, SwAV
from duality_ssl.criteria.regression import Regression
from duality_ssl.criteria.vicreg import VICReg, VICRegCtr, VICRegExp

__all__ = [
    "DCL",
    "DINO",
    "TCR",
    "BarlowTwins",
    "CPLearn",
    "Criterion",
    "Regression",
    "SimCLR",
    "SpectralContrastive",
    "SwAV",
    "VICReg",
    "VICRegCtr",
    "VICRegExp",
]
