"""Criteria: ``criterion(z1, z2)`` of two ``(N, D)`` views gives ``"loss"`` and its named terms.

Weights are at least 0; an argument out of its range is refused with a ``ValueError``.
"""

from duality_ssl.criteria.barlow_twins import BarlowTwins
from duality_ssl.criteria.base import Criterion
from duality_ssl.criteria.coding_rate import TCR
from duality_ssl.criteria.contrastive import DCL, MoCoV3, SimCLR, SpectralContrastive
from duality_ssl.criteria.corinfomax import CorInfoMax
from duality_ssl.criteria.cplearn import CPLearn
from duality_ssl.criteria.frossl import FroSSL
from duality_ssl.criteria.mmcr import MMCR
from duality_ssl.criteria.prototypes import DINO, SwAV
from duality_ssl.criteria.regression import Regression
from duality_ssl.criteria.sliced import LeJEPA, VISReg
from duality_ssl.criteria.supervised import NSCL, SupCon
from duality_ssl.criteria.vicreg import VIbCReg, VICReg, VICRegCtr, VICRegExp
from duality_ssl.criteria.whitening import WMSE

__all__ = [
    "DCL",
    "DINO",
    "MMCR",
    "NSCL",
    "TCR",
    "WMSE",
    "BarlowTwins",
    "CPLearn",
    "CorInfoMax",
    "Criterion",
    "FroSSL",
    "LeJEPA",
    "MoCoV3",
    "Regression",
    "SimCLR",
    "SpectralContrastive",
    "SupCon",
    "SwAV",
    "VICReg",
    "VICRegCtr",
    "VICRegExp",
    "VISReg",
    "VIbCReg",
]
