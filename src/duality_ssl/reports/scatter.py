"""Figures of one score against another, with their correlation."""

import math
from collections.abc import Sequence

from duality_ssl.reports import marks, names
from duality_ssl.reports.correlation import CORRELATIONS
from duality_ssl.reports.figures import Figure, Panel
from duality_ssl.reports.marks import Point
from duality_ssl.reports.panels import conditions, number_scale, series_of_panels
from duality_ssl.reports.rows import Row, Where, distinct, measure, provenance, usable
from duality_ssl.reports.scales import linear_scale


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
    panels, drawn = [], list[Row]()
    for b in upright:
        for a in across:
            found = distinct(usable(rows, where, a, b, line))
            panels.append(_scatter_panel(found, a, b, correlation, line, order))
            drawn += found
    both = [names.listed([*map(names.subject, some)]) for some in (upright, across)]
    return Figure(
        name=names.slug(f"{'-'.join(upright)} by {'-'.join(across)}"),
        title=title or names.capitalized(" by ".join(both)),
        caption="Each point is one run; in brackets the 95 % interval of the correlation."
        f"{conditions(where)} {provenance(drawn)}",
        panels=panels,
    )


def _scatter_panel(
    rows: Sequence[Row],
    x: str,
    y: str,
    correlation: str,
    line: str | None,
    order: Sequence[str],
) -> Panel:
    """The panel of two scores, with their correlation as a note."""
    pairs = [(measure(row, x), measure(row, y)) for row in rows]
    symbol, correlate = CORRELATIONS[correlation]

    def points(group: Sequence[Row]) -> list[Point]:
        return [
            Point(measure(row, x), measure(row, y), measure(row, y), measure(row, y), _cell(row))
            for row in group
        ]

    (series,) = series_of_panels(rows, None, line, order, points).values()
    across, upright = zip(*pairs, strict=True)
    return Panel(
        title="",
        series=series,
        x_label=names.axis_title(x),
        y_label=names.axis_title(y),
        x=number_scale(across),
        y=linear_scale(upright, 100 if names.is_accuracy(y) else math.inf),
        mark=marks.points,
        note=f"{symbol} = {correlate(across, upright)}",
    )


def _cell(row: Row) -> str:
    labels = [f"{name} {names.label(value)}" for name, value in row.get("cell", {}).items()]
    return ", ".join([*labels, f"seed {row.get('seed', '?')}"])
