"""Callbacks: probes, spectrum, duality, guard, progress, views, and what test and predict write."""

from duality_ssl.callbacks.checkpoint import RunCheckpoint
from duality_ssl.callbacks.collapse import CollapseGuard
from duality_ssl.callbacks.duality import DualityMonitor
from duality_ssl.callbacks.evaluate import OfflineEvaluation
from duality_ssl.callbacks.knn import OnlineKNN
from duality_ssl.callbacks.linear_probe import OnlineLinearProbe
from duality_ssl.callbacks.predictions import FeatureWriter
from duality_ssl.callbacks.progress import RunProgress
from duality_ssl.callbacks.spectrum import RankMe
from duality_ssl.callbacks.views import ViewGrid

__all__ = [
    "CollapseGuard",
    "DualityMonitor",
    "FeatureWriter",
    "OfflineEvaluation",
    "OnlineKNN",
    "OnlineLinearProbe",
    "RankMe",
    "RunCheckpoint",
    "RunProgress",
    "ViewGrid",
]
