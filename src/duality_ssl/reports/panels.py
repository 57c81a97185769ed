"""Figures of scores: against an axis of the grid, and against another score."""

from collections.abc import Callable, Sequence

from duality_ssl.reports import marks, names
from duality_ssl.reports.correlation import pearson, spearman
from duality_ssl.reports.figures import Figure, Panel
from duality_ssl.reports.marks import Point, Series
from duality_ssl.reports.rows import (
    Row,
    Where,
    distinct,
    is_number,
    measure,
    provenance,
    select,
    split,
    spread_over_seeds,
    usable,
    values,
)
from duality_ssl.reports.scales import Scale, category_scale, linear_scale, log_scale

CORRELATIONS = {"pearson": ("Pearson r", pearson), "spearman": ("Spearman ρ", spearman)}


def score_figure(
    rows: Sequence[Row],
    score: str,
    x: str,
    *,
    panel: str | None = None,
    line: str | None = "method",
    where: Where = None,
    order: Sequence[str] = (),
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
        title: The title, instead of one made of the names.

    Raises:
        ValueError: If no row has the score, or if a point would mix runs of several cells.
    """
    rows = usable(rows, where, score, x, panel, line)
    steps = values(rows, x)
    numeric = all(map(is_number, steps))
    places = {value: value if numeric else len(steps) - 1.0 - i for i, value in enumerate(steps)}

    def points(group: Sequence[Row]) -> list[Point]:
        found = {value: spread_over_seeds(select(group, {x: value}), score) for value in steps}
        return [
            _point(places[value], *some[:2], note=f"{names.label(value)}: {_mean(score, some)}")
            for value, some in found.items()
            if some is not None
        ]

    series = series_of_panels(rows, panel, line, order, points)
    shown = [point for panel_ in series.values() for one in panel_ for point in one.points]
    scores = linear_scale(
        [end for point in shown for end in (point.low, point.high)],
        100 if names.is_accuracy(score) else float("inf"),
    )
    rows_of_dots = category_scale([names.label(value) for value in steps])
    panels = [
        Panel(
            title=name,
            series=_apart(several, 3.0 if numeric else min(8.0, 24 / len(several))),
            x_label=names.axis_title(x if numeric else score),
            y_label=names.axis_title(score) if numeric else "",
            x=number_scale(steps, ticks=True) if numeric else scores,
            y=scores if numeric else rows_of_dots,
            mark=marks.lines if numeric else marks.dots,
        )
        for name, several in series.items()
    ]
    seeds = len(values(rows, "seed"))
    what = (
        f"Points: mean over {seeds} seeds; bars: one standard deviation."
        if seeds > 1
        else "Each point is one run."
    )
    return Figure(
        name=names.slug(f"{score} by {x}"),
        title=title or f"{names.capitalized(names.subject(score))} by {names.heading(x)}",
        caption=f"{what}{conditions(where)} {provenance(rows)}",
        panels=panels,
    )


def scatter_figure(
    rows: Sequence[Row],
    x: str | Sequence[str],
    y: str | Sequence[str],
    *,
    correlation: str = "pearson",
    line: str | None = "method",
    where: Where = None,
    order: Sequence[str] = (),
    title: str = "",
) -> Figure:
    """Draw one score against another, a point a run, with their correlation over all points.

    Args:
        rows: Rows of runs; a panel leaves out those without both scores.
        x: The score across, or several: a panel each.
        y: The score upright, or several: a panel for each pair.
        correlation: ``"pearson"`` or ``"spearman"``.
        line: The axis whose values have a color each.
        where: Values of axes that rows must have.
        order: Labels of the lines whose looks are taken first, so that figures agree.
        title: The title, instead of one made of the names.

    Raises:
        ValueError: If no row has both scores.
    """
    across = [x] if isinstance(x, str) else list(x)
    upright = [y] if isinstance(y, str) else list(y)
    symbol, correlate = CORRELATIONS[correlation]
    panels, drawn = [], []
    for b in upright:
        for a in across:
            found = distinct(usable(rows, where, a, b, line))
            pairs = [(measure(row, a), measure(row, b)) for row in found]

            def points(group: Sequence[Row], a: str = a, b: str = b) -> list[Point]:
                return [_point(measure(row, a), measure(row, b), note=_cell(row)) for row in group]

            (series,) = series_of_panels(found, None, line, order, points).values()
            most = 100 if names.is_accuracy(b) else float("inf")
            panels.append(
                Panel(
                    title="",
                    series=series,
                    x_label=names.axis_title(a),
                    y_label=names.axis_title(b),
                    x=number_scale([first for first, _ in pairs]),
                    y=linear_scale([second for _, second in pairs], most),
                    mark=marks.points,
                    note=f"{symbol} = {correlate(*zip(*pairs, strict=True))}",
                )
            )
            drawn += found
    subjects = " and ".join(names.subject(name) for name in upright)
    return Figure(
        name=names.slug(f"{'-'.join(upright)} by {'-'.join(across)}"),
        title=title
        or names.capitalized(f"{subjects} by {', '.join(names.subject(a) for a in across)}"),
        caption=f"Each point is one run; in brackets the 95 % interval of the correlation."
        f"{conditions(where)} {provenance(drawn)}",
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


def _apart(series: Sequence[Series], step: float) -> list[Series]:
    """Series whose points stand side by side, so that their bars can be told apart."""
    middle = (len(series) - 1) / 2
    return [one._replace(shift=(place - middle) * step) for place, one in enumerate(series)]


def _point(x: float, y: float, std: float = 0.0, note: str = "") -> Point:
    return Point(x, y, y - std, y + std, note)


def _mean(score: str, spread: tuple[float, float, int]) -> str:
    return f"{names.mean_and_std(score, spread[0], spread[1], spread[2])}, n = {spread[2]}"


def _cell(row: Row) -> str:
    labels = [f"{name} {names.label(value)}" for name, value in row.get("cell", {}).items()]
    return ", ".join([*labels, f"seed {row.get('seed', '?')}"])
