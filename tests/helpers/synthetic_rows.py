"""Rows of sweeps that were never run: the shapes of the paper's curves, with noise."""

import math
import random
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

METHODS = ("VICReg", "VICReg-exp", "VICReg-ctr", "SimCLR, original", "SimCLR, tuned")
PROJECTORS = ("{d}-{d}-{d}", "128-{d}", "512-512-{d}")
DIMENSIONS = (16, 32, 64, 128, 512)
WIDTH = {"{d}-{d}-{d}": None, "128-{d}": 128, "512-512-{d}": 512}


def figure_1(
    methods: Sequence[str] = METHODS,
    projectors: Sequence[str] = PROJECTORS,
    dimensions: Sequence[int] = DIMENSIONS,
    seeds: Sequence[int] = (0, 1, 2),
) -> list[dict[str, Any]]:
    """Rows of a sweep over methods, projectors and dimensions."""
    return [
        _row({"method": method, "projector": projector, "d": d}, seed)
        for method in methods
        for projector in projectors
        for d in dimensions
        for seed in seeds
    ]


def methods_alone(methods: Sequence[str] = ("SimCLR", "SimCLR A", "SimCLR B")) -> Iterator[Any]:
    """Rows of a sweep over methods only."""
    for method in methods:
        for seed in range(3):
            yield _row({"method": method, "projector": "512-512-{d}", "d": 512}, seed) | {
                "sweep": "normalization",
                "cell": {"method": method},
            }


def _row(cell: dict[str, Any], seed: int) -> dict[str, Any]:
    method, projector, d = cell["method"], cell["projector"], cell["d"]
    key = f"{method} {projector.replace('{d}', str(d))}"
    rng = random.Random(f"{key} {seed}")
    width = WIDTH[projector] or d
    place = sum(map(ord, method)) % 7 / 7
    few = 0.80 + 0.1 * (1 - math.exp(-math.log2(width) / 4)) + 0.03 * place
    few += 0.012 * math.log2(d) * (method == "VICReg") * 0.4 + rng.gauss(0, 0.006)
    linear = min(0.9972, 0.962 + 0.3 * (few - 0.8) + rng.gauss(0, 0.002))
    online = linear - 0.012 + rng.gauss(0, 0.003)
    rank = d ** (0.55 + 0.3 * few) * (0.6 + 0.3 * place) * math.exp(rng.gauss(0, 0.05))
    epochs = [*range(0, 40, 2), 39]
    slope = 0.4 + 0.5 * place
    spectrum = [10 * (k + 1) ** -slope * math.exp(-k / (0.6 * d)) for k in range(min(d, 128))]
    edges = [-1 + 2 * k / 100 for k in range(101)]
    sigma = 1 / math.sqrt(rank)
    density = [
        math.exp(-(((a + b) / 2) ** 2) / (2 * sigma**2)) / (sigma * math.sqrt(2 * math.pi))
        for a, b in pairwise(edges)
    ]
    return {
        "sweep": "figure_1",
        "cell": cell,
        "options": {"model": "VICReg", "data.batch_size": 256},
        "configs": ["configs/data/digits.yaml"],
        "seed": seed,
        "key": key,
        "version": "0.1.0",
        "torch": "2.15.0",
        "machine": "1 threads, AMD EPYC",
        "seconds": 61.2,
        "epochs": 40,
        "parameters": {"backbone": 312_000, "projector": 128 * width + width * width + width * d},
        "scores": {
            "online_top1": round(online, 4),
            "linear_top1": round(linear, 4),
            "few_label_top1": round(few, 4),
            "few_label_std": 0.02,
            "knn_top1": round(linear - 0.008 + rng.gauss(0, 0.003), 4),
            "rankme": rank,
            "rankme_features": 30 + 10 * few,
            "lidar": 0.5 * rank + rng.gauss(0, 2),
            "alpha_req": 1.6 - 0.9 * few + rng.gauss(0, 0.04),
        },
        "curves": {
            "epoch": epochs,
            "val/probe_top1": [
                round(online * (1 - 0.6 * math.exp(-(e + 1) / 8)) + rng.gauss(0, 0.004), 5)
                for e in epochs
            ],
            "train/loss": [round(20 + 10 * math.exp(-e / 10), 5) for e in epochs],
        },
        "arrays": {
            "spectrum": spectrum,
            "gram_histogram": {"edges": edges, "density": density},
        },
    }
