"""Methods: each is its criterion and `JointEmbedding`'s training step."""

from torch.optim import Optimizer

from duality_ssl import criteria
from duality_ssl.methods.frozen import FrozenBackbone
from duality_ssl.methods.joint_embedding import JointEmbedding
from duality_ssl.networks.heads import Prototypes, create_prototype_head, create_tanh_head

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
    "FrozenBackbone",
    "JointEmbedding",
    "LeJEPA",
    "MoCoV3",
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
]


class SimCLR(JointEmbedding, criterion=criteria.SimCLR):
    """NT-Xent on cosine similarities (SimCLR), its square and its absolute value."""


class DCL(JointEmbedding, criterion=criteria.DCL):
    """SimCLR with the positive left out of the log-sum (decoupled contrastive learning)."""


class NSCL(JointEmbedding, criterion=criteria.NSCL):
    """DCL with negatives of other classes only (negatives-only supervised contrastive learning)."""


class SupCon(JointEmbedding, criterion=criteria.SupCon):
    """All samples of a class are positives (supervised contrastive learning)."""


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


class VIbCReg(JointEmbedding, criterion=criteria.VIbCReg):
    """VICReg on the correlations of the dimensions (VIbCReg)."""


class FroSSL(JointEmbedding, criterion=criteria.FroSSL):
    """Views that agree and a flat spectrum, by Frobenius norms (FroSSL)."""


class MMCR(JointEmbedding, criterion=criteria.MMCR):
    """Nuclear norm of the centroids of the views (maximum manifold capacity)."""


class LeJEPA(JointEmbedding, criterion=criteria.LeJEPA):
    """Embeddings that are normal along random directions, by characteristic functions (LeJEPA)."""


class VISReg(JointEmbedding, criterion=criteria.VISReg):
    """Embeddings that are normal along random directions, by quantiles (VISReg)."""


class CorInfoMax(JointEmbedding, criterion=criteria.CorInfoMax):
    """Log-determinants of covariances that remember earlier batches (CorInfoMax)."""


class WMSE(JointEmbedding, criterion=criteria.WMSE):
    """Distance of the views after whitening (W-MSE)."""


class BYOL(
    JointEmbedding, criterion=criteria.Regression, predictor="4096-d", teacher_momentum=0.99
):
    """Predicts the teacher's embedding of the other view (BYOL).

    Reference: Grill et al., NeurIPS 2020, eq. 2, https://arxiv.org/abs/2006.07733
    """


class MoCoV3(JointEmbedding, criterion=criteria.MoCoV3, predictor="4096-d", teacher_momentum=0.99):
    """InfoNCE against the keys of a teacher (MoCo v3)."""


class SimSiam(
    JointEmbedding,
    criterion=criteria.Regression,
    predictor="512-d-b",
    predictor_schedule=False,
    scale=0.5,
):
    """Predicts the network's own embedding of the other view, its gradient stopped (SimSiam).

    Reference: Chen and He, CVPR 2021, eqs. 1 to 4, https://arxiv.org/abs/2011.10566
    """


class CPLearn(JointEmbedding, criterion=criteria.CPLearn, head=create_tanh_head):
    """Assigns the views to the same of many random codes, and the batch to all (CPLearn)."""


class SwAV(JointEmbedding, criterion=criteria.SwAV):
    """Predicts the other view's balanced assignment to trained prototypes (SwAV)."""


class DINO(
    JointEmbedding, criterion=criteria.DINO, head=create_prototype_head, teacher_momentum=0.996
):
    """Predicts the teacher's centred and sharpened output for the other views (DINO)."""

    criterion: criteria.DINO

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Drop the gradient of the prototypes in the first epochs."""
        if self.current_epoch < self.criterion.frozen_epochs:
            for layer in self.projector.modules():
                if isinstance(layer, Prototypes):
                    layer.weight.grad = None
