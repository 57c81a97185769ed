"""Callbacks: probes, spectrum, duality, guard, progress, views, and what test and predict write."""

from duality_ssl.callbacks.checkpoint import BestCheckpoint, LastCheckpoint
from duality_ssl.callbacks.collapse import CollapseGuard
from duality_ssl.callbacks.duality import DualityMonitor, duality_terms
from duality_ssl.callbacks.evaluate import OfflineEvaluation
from duality_ssl.callbacks.knn import OnlineKNN
from duality_ssl.callbacks.linear_probe import OnlineLinearProbe
from duality_ssl.callbacks.predictions import FeatureWriter
from duality_ssl.callbacks.progress import RunProgress, RunSummary
from duality_ssl.callbacks.spectrum import RankMe
from duality_ssl.callbacks.views import ViewGrid

__all__ = [
    "BestCheckpoint",
    "CollapseGuard",
    "DualityMonitor",
    "FeatureWriter",
    "LastCheckpoint",
    "OfflineEvaluation",
    "OnlineKNN",
    "OnlineLinearProbe",
    "RankMe",
    "RunProgress",
    "RunSummary",
    "ViewGrid",
    "duality_terms",
]
