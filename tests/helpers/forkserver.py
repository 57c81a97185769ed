"""Processes that start in milliseconds: forked by one that has imported what is slow to import."""

import multiprocessing

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "duality_ssl.callbacks",
        "duality_ssl.cli",
        "duality_ssl.data",
        "duality_ssl.methods",
        "lightning.pytorch.cli",
        "sklearn.datasets",
        "tensorboard",
        "torch.distributed",
        "torchmetrics.classification",
    ]
)
