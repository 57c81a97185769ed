"""Scales of an axis: from a value to a place between 0 and 1, with round ticks."""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from duality_ssl.reports.names import compact, fixed


@dataclass(frozen=True)
class Scale:
    """An axis from ``low`` to ``high``, with labelled ticks."""

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    transform: Callable[[float], float] = float

    def fraction(self, value: float) -> float:
        """Return the place of a value between 0 and 1; one that is outside stands at the end."""
        inside = min(max(value, self.low), self.high)
        low, at, high = map(self.transform, (self.low, inside, self.high))
        return (at - low) / (high - low)


def linear_scale(
    numbers: Iterable[float], most: float = math.inf, least_step: float = 0.0
) -> Scale:
    """Return a scale around numbers, with a margin that passes neither zero nor ``most``."""
    numbers = list(numbers)
    least, greatest = min(numbers), max(numbers)
    margin = 0.05 * (greatest - least) or 0.05 * abs(greatest) or 1.0
    low = least - margin if least < 0 else max(least - margin, 0.0)
    high = greatest + margin if greatest > most else min(greatest + margin, most)
    step = _round_step(max((high - low) / 5.5, least_step))
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    marks = range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    return Scale(low, high, tuple((mark * step, fixed(mark * step, decimals)) for mark in marks))


def log_scale(numbers: Iterable[float], at: Sequence[float] = ()) -> Scale:
    """Return a logarithmic scale around positive numbers, with ticks at given or round values."""
    numbers = list(numbers)
    low, high = min(numbers), max(numbers)
    margin = (high / low) ** 0.04 if high > low else 2.0
    low, high = low / margin, high * margin
    ticks = tuple(
        (tick, compact(tick)) for tick in at or _round_powers(low, high) or _between(low, high)
    )
    return Scale(low, high, ticks, math.log10)


def category_scale(labels: Sequence[str]) -> Scale:
    """Return a scale with a place for each label; the first stands at the end, as on paper."""
    ticks = tuple((float(len(labels) - 1 - index), text) for index, text in enumerate(labels))
    return Scale(-0.5, len(labels) - 0.5, ticks)


def _round_step(least: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is at least this large."""
    magnitude = 10.0 ** math.floor(math.log10(least))
    return next(m * magnitude for m in (1, 2, 5, 10) if m * magnitude >= least * (1 - 1e-9))


def _round_powers(low: float, high: float) -> list[float]:
    """Powers of ten between two numbers, with 2 and 5 times them if they are few."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for multiples, stride in (((1, 2, 5), 1), ((1,), 1), ((1,), 2), ((1,), 3), ((1,), 5)):
        chosen = [decade for decade in decades if decade % stride == 0]
        ticks = [m * 10.0**decade for decade, m in itertools.product(chosen, multiples)]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) <= 7:
            return ticks
    return ticks


def _between(low: float, high: float) -> list[float]:
    """Round numbers between two that no power of ten, or 2 or 5 times one, separates."""
    return [tick for tick, _ in linear_scale((low, high)).ticks if low <= tick <= high]
