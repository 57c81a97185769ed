"""Offline protocols on frozen features."""

from duality_ssl.evaluation.neighbours import knn_votes
from duality_ssl.evaluation.protocols import (
    RANKME_SAMPLES,
    Settings,
    effective_rank,
    evaluate,
    few_label_top1,
    knn_top1,
    linear_top1,
)

__all__ = [
    "RANKME_SAMPLES",
    "Settings",
    "effective_rank",
    "evaluate",
    "few_label_top1",
    "knn_top1",
    "knn_votes",
    "linear_top1",
]
