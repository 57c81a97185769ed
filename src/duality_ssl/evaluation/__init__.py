"""Offline protocols on frozen features: functions of tensors, without network or trainer."""

from duality_ssl.evaluation.few_label import few_label_top1
from duality_ssl.evaluation.knn import knn_top1, knn_votes
from duality_ssl.evaluation.linear import linear_top1
from duality_ssl.evaluation.protocols import (
    LABEL_FREE,
    LABELLED,
    OF_NETWORK,
    RANKME_SAMPLES,
    check_protocols,
    effective_rank,
    evaluate,
)
from duality_ssl.evaluation.settings import QUICK, Settings

__all__ = [
    "LABELLED",
    "LABEL_FREE",
    "OF_NETWORK",
    "QUICK",
    "RANKME_SAMPLES",
    "Settings",
    "check_protocols",
    "effective_rank",
    "evaluate",
    "few_label_top1",
    "knn_top1",
    "knn_votes",
    "linear_top1",
]
