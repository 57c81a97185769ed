"""Methods: each is its criterion and `JointEmbedding`'s training step."""

from duality_ssl import criteria
from duality_ssl.methods.frozen import FrozenBackbone
from duality_ssl.methods.joint_embedding import JointEmbedding

__all__ = [
    "BYOL",
    "DCL",
    "TCR",
    "BarlowTwins",
    "FrozenBackbone",
    "JointEmbedding",
    "SimCLR",
    "SimSiam",
    "SpectralContrastive",
    "VICReg",
    "VICRegCtr",
    "VICRegExp",
]


class SimCLR(JointEmbedding, criterion=criteria.SimCLR):
    """NT-Xent on cosine similarities (SimCLR), its square and its absolute value."""


class DCL(JointEmbedding, criterion=criteria.DCL):
    """SimCLR with the positive left out of the log-sum (decoupled contrastive learning)."""


class SpectralContrastive(JointEmbedding, criterion=criteria.SpectralContrastive):
    """Squared similarities of embeddings in a ball (spectral contrastive loss)."""


class VICReg(JointEmbedding, criterion=criteria.VICReg):
    """Invariance, variance and covariance of two views (VICReg)."""


class VICRegExp(JointEmbedding, criterion=criteria.VICRegExp):
    """VICReg with a log-sum-exp of the covariances: SimCLR's penalty on the dimensions."""


class VICRegCtr(JointEmbedding, criterion=criteria.VICRegCtr):
    """VICReg-exp on the transpose: VICReg made contrastive."""


class BarlowTwins(JointEmbedding, criterion=criteria.BarlowTwins):
    """Cross-correlation of the two views towards the identity (Barlow Twins)."""


class TCR(JointEmbedding, criterion=criteria.TCR):
    """Total coding rate of the embeddings and the cosine of the positives (TCR)."""


class BYOL(
    JointEmbedding, criterion=criteria.Regression, predictor="4096-d", teacher_momentum=0.99
):
    """Predicts the teacher's embedding of the other view (BYOL)."""


class SimSiam(
    JointEmbedding,
    criterion=criteria.Regression,
    predictor="512-d-b",
    predictor_schedule=False,
    scale=0.5,
):
    """Predicts the network's own embedding of the other view, its gradient stopped (SimSiam)."""
