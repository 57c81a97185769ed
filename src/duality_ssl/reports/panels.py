"""Figures of a score against an axis of the grid."""

from collections.abc import Callable, Mapping, Sequence

from duality_ssl.reports import marks, names
from duality_ssl.reports.figures import Figure, Panel
from duality_ssl.reports.marks import Point, Series
from duality_ssl.reports.rows import (
    Row,
    Spread,
    Where,
    count_of_seeds,
    is_number,
    provenance,
    select,
    split,
    spread_over_seeds,
    usable,
    values,
)
from duality_ssl.reports.scales import Scale, category_scale, linear_scale, log_scale


def score_figure(
    rows: Sequence[Row],
    score: str,
    x: str,
    *,
    panel: str | None = None,
    line: str | None = "method",
    where: Where = None,
    order: Sequence[str] = (),
    reference: Mapping[str, Callable[[float], float]] | None = None,
    title: str = "",
) -> Figure:
    """Draw a score against an axis: the mean over seeds, with a bar of one standard deviation.

    An axis of numbers lies across, logarithmic if it spans a factor of four. One of labels has a
    row for each label.

    Args:
        rows: Rows of runs; those without the score are left out.
        score: What is drawn; accuracies are drawn in percent.
        x: An axis of the cells, or any name that `rows.measure` knows.
        panel: The axis with a panel for each of its values; one panel if None.
        line: The axis with a line for each of its values; one line if None.
        where: Values of axes that rows must have.
        order: Labels of the lines whose looks are taken first, so that figures agree.
        reference: Functions of the axis that are drawn as further lines, such as a bound.
        title: The title, instead of one made of the names.

    Raises:
        ValueError: If no row has the score, or if a point would mix runs of several cells.
    """
    rows = usable(rows, where, score, x, panel, line)
    steps = values(rows, x)
    numeric = all(map(is_number, steps))
    seeds: set[int] = set()
    places = dict(zip(steps, steps if numeric else range(len(steps))[::-1], strict=True))

    def points(group: Sequence[Row]) -> list[Point]:
        found = {value: spread_over_seeds(select(group, {x: value}), score) for value in steps}
        seeds.update(some.n for some in found.values() if some is not None)
        return [
            _point(
                places[value], some.mean, some.std, f"{names.label(value)}: {_mean(score, some)}"
            )
            for value, some in found.items()
            if some is not None
        ]

    series = series_of_panels(rows, panel, line, order, points)
    if numeric:
        panels = _against_numbers(series, score, x, reference or {})
    else:
        panels = _against_labels(series, score, [names.label(value) for value in steps])
    what = f"Points: mean over {count_of_seeds(seeds)} seeds; bars: one standard deviation."
    return Figure(
        name=names.slug(f"{score} by {x}"),
        title=title or f"{names.capitalized(names.subject(score))} by {names.heading(x)}",
        caption=f"{what if max(seeds) > 1 else 'Each point is one run.'}{conditions(where)} "
        f"{provenance(rows)}",
        panels=panels,
    )


def series_of_panels(
    rows: Sequence[Row],
    panel: str | None,
    line: str | None,
    order: Sequence[str],
    points: Callable[[Sequence[Row]], list[Point]],
) -> dict[str, list[Series]]:
    """Return the series of each panel; a line looks the same in all of them."""
    looks = list(dict.fromkeys([*order, *split(rows, line)]))
    return {
        name: [
            Series(text, found, looks.index(text))
            for text, group in split(of_panel, line).items()
            if (found := points(group))
        ]
        for name, of_panel in split(rows, panel).items()
    }


def number_scale(numbers: Sequence[float], ticks: bool = False) -> Scale:
    """Return a scale that is logarithmic where numbers span a factor: of 4 for a few ticks."""
    few = sorted({*numbers}) if ticks and len({*numbers}) <= 8 else []
    spans = min(numbers) > 0 and max(numbers) >= (4 if ticks else 20) * min(numbers)
    return log_scale(numbers, few) if spans else linear_scale(numbers)


def conditions(where: Where) -> str:
    """Return the sentence of a caption that names what is fixed."""
    fixed = [
        f"{names.heading(name)} = {names.label(value)}" for name, value in (where or {}).items()
    ]
    return f" Shown: {', '.join(fixed)}." if fixed else ""


def _against_numbers(
    series: Mapping[str, Sequence[Series]],
    score: str,
    x: str,
    reference: Mapping[str, Callable[[float], float]],
) -> list[Panel]:
    """Panels with lines; those of the references have the looks after the last one."""
    points = [point for several in series.values() for one in several for point in one.points]
    steps = sorted({point.x for point in points})
    last = max(one.line for several in series.values() for one in several)
    further = [
        Series(text, [_point(step, function(step)) for step in steps], number)
        for number, (text, function) in enumerate(reference.items(), last + 1)
    ]
    points += [point for one in further for point in one.points]
    ends = [end for point in points for end in (point.low, point.high)]
    y = linear_scale(ends, 100) if names.is_accuracy(score) else number_scale(ends)
    return [
        Panel(
            title=name,
            series=[*_apart(several, min(3.0, 18 / len(several))), *further],
            x_label=names.axis_title(x),
            y_label=names.axis_title(score),
            x=number_scale(steps, ticks=True),
            y=y,
            mark=marks.lines,
        )
        for name, several in series.items()
    ]


def _against_labels(
    series: Mapping[str, Sequence[Series]], score: str, labels: Sequence[str]
) -> list[Panel]:
    """Panels with a row of dots for each label."""
    points = [point for several in series.values() for one in several for point in one.points]
    ends = [end for point in points for end in (point.low, point.high)]
    x = linear_scale(ends, 100) if names.is_accuracy(score) else number_scale(ends)
    return [
        Panel(
            title=name,
            series=_apart(several, min(8.0, 24 / len(several))),
            x_label=names.axis_title(score),
            y_label="",
            x=x,
            y=category_scale(labels),
            mark=marks.dots,
        )
        for name, several in series.items()
    ]


def _apart(series: Sequence[Series], step: float) -> list[Series]:
    """Series whose points stand side by side, so that their bars can be told apart."""
    middle = (len(series) - 1) / 2
    return [one._replace(shift=(place - middle) * step) for place, one in enumerate(series)]


def _point(x: float, y: float, std: float = 0.0, note: str = "") -> Point:
    return Point(x, y, y - std, y + std, note)


def _mean(score: str, spread: Spread) -> str:
    return f"{names.mean_and_std(score, *spread)}, n = {spread.n}"
