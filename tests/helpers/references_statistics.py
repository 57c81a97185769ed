"""The criteria on statistics of the batch again, from their formulas, in plain float64."""

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from helpers import references
from helpers.references import Array, like, log, mean_squared_error, sqrt, unit_rows, variance_hinge
from torch import Tensor


def squared_correlation(z: Array) -> float:
    d = z.shape[1]
    h = references.standardized_columns(z, 1.0)
    return sum((h[:, i] @ h[:, j]) ** 2 for i in range(d) for j in range(d) if i != j) / d**2


def vibcreg(z1: Array, z2: Array, invariance: float, variance: float, covariance: float) -> float:
    return (
        invariance * mean_squared_error(z1, z2)
        + variance * (variance_hinge(z1) + variance_hinge(z2))
        + covariance * (squared_correlation(z1) + squared_correlation(z2))
    )


def frossl(z1: Array, z2: Array, invariance: float) -> float:
    (n, d), views, loss = z1.shape, [], 0.0
    for z in (z1, z2):
        y = unit_rows(z.T).T
        products = [[y[:, i] @ y[:, j] for j in range(d)] for i in range(d)]
        trace = sum(products[j][j] for j in range(d))
        loss += 2 * log(sqrt(sum(x * x for row in products for x in row)) / trace)
        views.append(y)
    mean = (views[0] + views[1]) / 2
    for y in views:
        error = sum((y[i, j] - mean[i, j]) ** 2 for i in range(n) for j in range(d)) / (n * d)
        loss += invariance * 2 * d * error
    return loss


def nuclear_norm(matrix: Array) -> float:
    if isinstance(matrix, Tensor):
        return torch.linalg.svdvals(matrix).sum()
    return sum(np.linalg.svd(matrix, compute_uv=False))


def mmcr(z1: Array, z2: Array, compactness: float) -> float:
    u1, u2 = unit_rows(z1), unit_rows(z2)
    views = [references.matrix([a, b]) for a, b in zip(u1, u2, strict=True)]
    local = sum(nuclear_norm(pair) for pair in views) / len(views)
    return -nuclear_norm((u1 + u2) / 2) + compactness * local


def number(value: Any) -> float:
    """Without a gradient."""
    return value.item() if isinstance(value, Tensor) else value


def cos(value: Any) -> Any:
    return value.cos() if isinstance(value, Tensor) else math.cos(value)


def sin(value: Any) -> Any:
    return value.sin() if isinstance(value, Tensor) else math.sin(value)


def epps_pulley(values: list[float]) -> float:
    """17 knots from 0 to 3; twice the integral of one half."""
    n, step, total = len(values), 3 / 16, 0.0
    for k in range(17):
        t = k * step
        normal = math.exp(-t * t / 2)
        real = sum(cos(t * x) for x in values) / n - normal
        imaginary = sum(sin(t * x) for x in values) / n
        total += (1 if k in (0, 16) else 2) * step * normal * (real**2 + imaginary**2)
    return n * total


def lejepa(z1: Array, z2: Array, regularization: float, drawn: Tensor) -> float:
    directions, total = like(drawn, z1), 0.0
    for z in (z1, z2):
        for a in directions.T:
            total += epps_pulley([row @ a for row in z]) / (2 * len(directions.T))
    return (1 - regularization) * mean_squared_error(z1, z2) / 4 + regularization * total


def visreg(z1: Array, z2: Array, regularization: float, drawn: Tensor) -> float:
    (n, d), directions, total = z1.shape, like(drawn, z1), 0.0
    quantiles = [NormalDist().inv_cdf(i / (n + 1)) for i in range(1, n + 1)]
    for z in (z1, z2):
        means = [sum(z[:, j]) / n for j in range(d)]
        stds = [sqrt(sum((x - means[j]) ** 2 for x in z[:, j]) / n) + 1e-6 for j in range(d)]
        total += sum(mean**2 for mean in means) / d + sum((std - 1) ** 2 for std in stds) / d
        y = references.matrix(
            [[(z[i, j] - means[j]) / number(stds[j]) for j in range(d)] for i in range(n)]
        )
        for a in directions.T:
            values = sorted((row @ a for row in y), key=number)
            squares = sum((x - q) ** 2 for x, q in zip(values, quantiles, strict=True))
            total += squares / (n * len(directions.T))
    return (1 - regularization) * mean_squared_error(z1, z2) / 4 + regularization * total / 2


def corinfomax(z1: Array, z2: Array, invariance: float, forgetting: float, epsilon: float) -> float:
    """The first step, from R = I and a mean of 0."""
    u1, u2 = unit_rows(z1), unit_rows(z2)
    (n, d), loss = z1.shape, invariance * mean_squared_error(u1, u2)
    for u in (u1, u2):
        mean = [(1 - forgetting) * sum(u[:, j]) / n for j in range(d)]
        moved = [
            [
                sum((row[i] - mean[i]) * (row[j] - mean[j]) for row in u) * (1 - forgetting) / n
                + (forgetting + epsilon if i == j else 0.0)
                for j in range(d)
            ]
            for i in range(d)
        ]
        covariance = references.matrix(moved)
        determinant = (
            covariance.logdet()
            if isinstance(covariance, Tensor)
            else np.linalg.slogdet(covariance)[1]
        )
        loss -= determinant / d
    return loss


def wmse(z1: Array, z2: Array) -> float:
    """The whole batch, whitened at once."""
    n, d = z1.shape
    units = []
    for z in (z1, z2):
        moments = [[references.covariance(z, i, j) for j in range(d)] for i in range(d)]
        covariance = torch.as_tensor(references.matrix(moments))
        inverse = torch.linalg.inv(torch.linalg.cholesky(covariance))
        centered = torch.as_tensor(z - sum(z) / n)
        units.append(unit_rows(centered @ inverse.T))
    return 2 - 2 * sum(a @ b for a, b in zip(*units, strict=True)) / n


CRITERIA: dict[str, tuple[Callable[..., float], list[dict[str, Any]]]] = {
    "VIbCReg": (vibcreg, [{}, {"invariance": 1, "variance": 2, "covariance": 3}]),
    "FroSSL": (frossl, [{}, {"invariance": 3.0}]),
    "MMCR": (mmcr, [{}, {"compactness": 2.0}]),
    "LeJEPA": (lejepa, [{"directions": 6}, {"directions": 6, "regularization": 0.5}]),
    "VISReg": (visreg, [{"directions": 6}, {"directions": 6, "regularization": 0.5}]),
    "CorInfoMax": (corinfomax, [{}, {"forgetting": 0.0, "epsilon": 0.1}]),
    "WMSE": (wmse, [{}]),
}
