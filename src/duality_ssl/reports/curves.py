"""Figures of what a run measures many times: training curves, spectra, histograms."""

import bisect
import math
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise

from duality_ssl.reports import marks, names
from duality_ssl.reports.figures import Figure, Panel
from duality_ssl.reports.marks import Point, Series
from duality_ssl.reports.panels import conditions, series_of_panels
from duality_ssl.reports.rows import (
    Row,
    Where,
    is_number,
    measure,
    one_a_seed,
    provenance,
    spread,
    usable,
    values,
)
from duality_ssl.reports.scales import Scale, linear_scale, log_scale

Histogram = Mapping[str, Sequence[float]]
BINS = 64  # of the common grid of histograms, at most
TAILS = 1e-3  # part of a histogram that is not drawn
SMALLEST = 1e-6  # relative singular value that is drawn


def curves_figure(
    rows: Sequence[Row],
    curve: str = "val/probe_top1",
    *,
    panel: str | None = None,
    line: str | None = "method",
    where: Where = None,
    order: Sequence[str] = (),
    title: str = "",
) -> Figure:
    """Draw a logged value over the epochs: the mean over seeds in a band of one deviation.

    Args:
        rows: Rows of runs; those without the curve are left out.
        curve: A key of ``curves``.
        panel: The axis with a panel for each of its values; one panel if None.
        line: The axis with a line for each of its values; one line if None.
        where: Values of axes that rows must have.
        order: Labels of the lines whose looks are taken first, so that figures agree.
        title: The title, instead of one made of the names.

    Raises:
        ValueError: If no row has the curve, or if a line would mix runs of several cells.
    """
    rows = usable(rows, where, curve, panel, line)
    accuracy = names.is_accuracy(curve)

    def points(group: Sequence[Row]) -> list[Point]:
        found: dict[float, list[float]] = {}
        for row in one_a_seed(group, curve):
            for epoch, value in zip(measure(row, "epoch"), measure(row, curve), strict=True):
                if is_number(value):
                    found.setdefault(epoch + 1, []).append(100 * value if accuracy else value)
        means = {epoch: spread(found[epoch]) for epoch in sorted(found)}
        return [Point(epoch, m.mean, m.mean - m.std, m.mean + m.std) for epoch, m in means.items()]

    series = series_of_panels(rows, panel, line, order, points)
    epochs = [point.x for point in _points(series)]
    return Figure(
        name=names.slug(f"{curve} curves"),
        title=title or f"{names.capitalized(names.subject(curve))} during training",
        caption=_caption(rows, where),
        panels=_panels(
            series,
            ("Epochs of training", names.axis_title(curve)),
            linear_scale([*epochs, 0.0], least_step=1),
            linear_scale(_ends(series), 100.0 if accuracy else math.inf),
        ),
    )


def spectrum_figure(
    rows: Sequence[Row],
    array: str = "spectrum",
    *,
    panel: str | None = None,
    line: str | None = "method",
    where: Where = None,
    order: Sequence[str] = (),
    title: str = "",
) -> Figure:
    """Draw singular values, relative to the largest, against their rank; both logarithmic.

    The line is the geometric mean over seeds, the band one geometric standard deviation. It ends
    where a value is below 1e-6. The arguments are those of `curves_figure`.
    """
    rows = usable(rows, where, array, panel, line)

    def points(group: Sequence[Row]) -> list[Point]:
        spectra = [measure(row, array) for row in one_a_seed(group, array)]
        relative = [[value / spectrum[0] for value in spectrum] for spectrum in spectra]
        ranks = [some for some in zip(*relative, strict=False) if min(some) > SMALLEST]
        means = [spread([math.log(value) for value in some]) for some in ranks]
        return [
            Point(rank, math.exp(m.mean), math.exp(m.mean - m.std), math.exp(m.mean + m.std))
            for rank, m in enumerate(means, 1)
        ]

    series = series_of_panels(rows, panel, line, order, points)
    kind = "features" if array.endswith("_features") else "embeddings"
    return Figure(
        name=names.slug(array),
        title=title or f"Singular values of the {kind}",
        caption=_caption(rows, where),
        panels=_panels(
            series,
            ("Rank", "Singular value / largest"),
            log_scale([point.x for point in _points(series)]),
            log_scale(_ends(series)),
        ),
    )


def histogram_figure(
    rows: Sequence[Row],
    array: str = "gram_histogram",
    *,
    panel: str | None = None,
    line: str | None = "method",
    where: Where = None,
    order: Sequence[str] = (),
    title: str = "",
) -> Figure:
    """Draw the density of matrix entries: the mean over seeds in a band of one deviation.

    Histograms of different edges are brought to a common grid first (`resample`). The ends that
    hold less than 1e-3 of the entries of every run are left out. The arguments are those of
    `curves_figure`.
    """
    rows = usable(rows, where, array, panel, line)
    grid = _common_grid([measure(row, array) for row in rows])
    middles = [(left + right) / 2 for left, right in pairwise(grid)]

    def points(group: Sequence[Row]) -> list[Point]:
        histograms = [measure(row, array) for row in one_a_seed(group, array)]
        found = [resample(each["edges"], each["density"], grid) for each in histograms]
        means = [spread(some) for some in zip(*found, strict=True)]
        return [
            Point(x, m.mean, max(0.0, m.mean - m.std), m.mean + m.std)
            for x, m in zip(middles, means, strict=True)
        ]

    series = series_of_panels(rows, panel, line, order, points)
    entry = names.axis_title(array.replace("_histogram", ""))
    return Figure(
        name=names.slug(array),
        title=title or entry.replace("entry", "entries"),
        caption=_caption(rows, where),
        panels=_panels(series, (entry, "Density"), linear_scale(grid), linear_scale(_ends(series))),
    )


def resample(
    edges: Sequence[float], density: Sequence[float], grid: Sequence[float]
) -> list[float]:
    """Return the density on the bins of another grid, which holds the same mass below each edge.

    Args:
        edges: The ``n + 1`` ascending edges of the histogram.
        density: Its ``n`` densities.
        grid: The ``m + 1`` ascending edges of the other grid.
    """
    sums = _masses_below(edges, density)

    def mass(x: float) -> float:
        index = min(max(bisect.bisect_right(edges, x) - 1, 0), len(density) - 1)
        inside = min(max(x, edges[index]), edges[index + 1])
        return sums[index] + density[index] * (inside - edges[index])

    masses = [mass(x) for x in grid]
    return [
        (above - below) / (right - left)
        for (left, right), (below, above) in zip(pairwise(grid), pairwise(masses), strict=True)
    ]


def _common_grid(histograms: Sequence[Histogram]) -> list[float]:
    """The edges of all histograms if they are the same, or else as fine as the coarsest."""
    ends = [_ends_of_mass(**each) for each in histograms]
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    edges = histograms[0]["edges"]
    if all(each["edges"] == edges for each in histograms):
        return [edge for edge in edges if low <= edge <= high]
    widest = max(right - left for each in histograms for left, right in pairwise(each["edges"]))
    bins = max(1, min(BINS, int((high - low) / widest)))
    return [low + (high - low) * index / bins for index in range(bins + 1)]


def _ends_of_mass(edges: Sequence[float], density: Sequence[float]) -> tuple[float, float]:
    """The range of the bins without the ends that hold half of `TAILS` each."""
    below = _masses_below(edges, density)
    inside = [
        index
        for index in range(len(density))
        if below[index + 1] > below[-1] * TAILS / 2 and below[index] < below[-1] * (1 - TAILS / 2)
    ]
    return edges[inside[0]], edges[inside[-1] + 1]


def _masses_below(edges: Sequence[float], density: Sequence[float]) -> list[float]:
    """The mass below each edge."""
    bins = zip(density, pairwise(edges), strict=True)
    return [0.0, *accumulate(height * (right - left) for height, (left, right) in bins)]


def _points(series: dict[str, list[Series]]) -> list[Point]:
    return [point for panel in series.values() for one in panel for point in one.points]


def _ends(series: dict[str, list[Series]]) -> list[float]:
    return [end for point in _points(series) for end in (point.low, point.high)]


def _panels(
    series: dict[str, list[Series]], labels: tuple[str, str], x: Scale, y: Scale
) -> list[Panel]:
    return [
        Panel(title=name, series=found, x_label=labels[0], y_label=labels[1], x=x, y=y,
              mark=marks.bands)
        for name, found in series.items()
    ]  # fmt: skip


def _caption(rows: Sequence[Row], where: Where) -> str:
    seeds = len(values(rows, "seed"))
    what = f"Lines: mean over {seeds} seeds; bands: one standard deviation." * (seeds > 1)
    return f"{what}{conditions(where)} {provenance(rows)}".strip()
