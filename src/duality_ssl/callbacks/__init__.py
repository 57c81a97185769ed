"""Callbacks: probes and monitors of a run, its progress, and the files of test and predict."""

from duality_ssl.callbacks.collapse import CollapseGuard, GuardError
from duality_ssl.callbacks.duality import DualityMonitor, duality_terms
from duality_ssl.callbacks.evaluate import OfflineEvaluation
from duality_ssl.callbacks.knn import OnlineKNN
from duality_ssl.callbacks.linear_probe import OnlineLinearProbe
from duality_ssl.callbacks.predictions import FeatureWriter
from duality_ssl.callbacks.progress import RunProgress
from duality_ssl.callbacks.seed import StepSeed
from duality_ssl.callbacks.spectrum import RankMe
from duality_ssl.callbacks.supervision import SupervisionGap
from duality_ssl.callbacks.views import ViewGrid
from duality_ssl.runs.backbone import BackboneWriter
from duality_ssl.runs.checkpoint import BestCheckpoint, LastCheckpoint
from duality_ssl.runs.preemption import Preemption

__all__ = [
    "BackboneWriter",
    "BestCheckpoint",
    "CollapseGuard",
    "DualityMonitor",
    "FeatureWriter",
    "GuardError",
    "LastCheckpoint",
    "OfflineEvaluation",
    "OnlineKNN",
    "OnlineLinearProbe",
    "Preemption",
    "RankMe",
    "RunProgress",
    "StepSeed",
    "SupervisionGap",
    "ViewGrid",
    "duality_terms",
]
