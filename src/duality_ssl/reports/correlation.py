"""Correlation of two scores over runs."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from duality_ssl.reports.names import fixed


class Correlation(NamedTuple):
    """A coefficient, its 95 % interval (nan where there is none), and the number of points."""

    r: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        if math.isnan(self.r):
            return f"undefined, n = {self.n}"
        interval = f" [{fixed(self.low, 2)}, {fixed(self.high, 2)}]"
        return f"{fixed(self.r, 2)}{interval * math.isfinite(self.low)}, n = {self.n}"


def pearson(x: Sequence[float], y: Sequence[float]) -> Correlation:
    r"""Pearson's r with its 95 % interval by Fisher's transform.

    The interval is ``tanh(artanh(r) ± 1.96 / sqrt(n - 3))``. It needs four points. The coefficient
    of fewer than three points, or of a constant, is nan.

    Reference: Fisher, Metron 1921, *On the "probable error" of a coefficient of correlation*.
    """
    return _with_interval(_coefficient(x, y), len(x), 1.0)


def spearman(x: Sequence[float], y: Sequence[float]) -> Correlation:
    r"""Spearman's rank correlation; equal values share the mean of their ranks.

    The interval is that of `pearson` with the variance ``1.06 / (n - 3)``.

    Reference: Fieller, Hartley and Pearson, Biometrika 1957, *Tests for rank correlation
    coefficients*.
    """
    return _with_interval(_coefficient(ranks(x), ranks(y)), len(x), 1.06)


def ranks(numbers: Sequence[float]) -> list[float]:
    """Return the rank of each number, from 1; equal numbers share the mean of their ranks."""
    places: dict[float, list[int]] = {}
    for place, number in enumerate(sorted(numbers), 1):
        places.setdefault(number, []).append(place)
    return [statistics.fmean(places[number]) for number in numbers]


def _coefficient(x: Sequence[float], y: Sequence[float]) -> float:
    if len(x) < 3 or len({*x}) == 1 or len({*y}) == 1:
        return math.nan
    return statistics.correlation(x, y)


def _with_interval(r: float, n: int, variance: float) -> Correlation:
    if n < 4 or math.isnan(r):
        return Correlation(r, math.nan, math.nan, n)
    if abs(r) >= 1:  # rounding may exceed one
        return Correlation(math.copysign(1.0, r), math.copysign(1.0, r), math.copysign(1.0, r), n)
    half = statistics.NormalDist().inv_cdf(0.975) * math.sqrt(variance / (n - 3))
    return Correlation(r, math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half), n)


CORRELATIONS = {"pearson": ("Pearson r", pearson), "spearman": ("Spearman ρ", spearman)}
