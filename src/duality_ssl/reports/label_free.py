"""Tables of label-free scores: correlation with an accuracy, and what a choice by them costs."""

from collections.abc import Sequence

from duality_ssl.reports import names
from duality_ssl.reports.correlation import CORRELATIONS
from duality_ssl.reports.panels import conditions
from duality_ssl.reports.rows import (
    LABEL_FREE,
    Row,
    Where,
    axes,
    distinct,
    grouped,
    is_number,
    measure,
    provenance,
    split,
    spread_over_seeds,
    usable,
)
from duality_ssl.reports.tables import EMPTY, Cell, Table


def correlation_table(
    rows: Sequence[Row],
    x: Sequence[str] = LABEL_FREE,
    y: str = "few_label_top1",
    *,
    correlation: str = "spearman",
    line: str = "method",
    where: Where = None,
) -> Table:
    """Return the correlation of scores with an accuracy: for each line, and over all runs."""
    rows = distinct(usable(rows, where, y, line))
    columns = [name for name in x if any(is_number(measure(row, name)) for row in rows)]
    symbol, correlate = CORRELATIONS[correlation]

    def cell(group: Sequence[Row], name: str) -> Cell:
        both = [row for row in group if is_number(measure(row, name))]
        return Cell(str(correlate([measure(r, name) for r in both], [measure(r, y) for r in both])))

    groups = {**split(rows, line), "all": rows}
    return Table(
        name=names.slug(f"correlation {y}"),
        title=f"Correlation: {names.subject(y)}",
        caption=f"{symbol} over runs with its 95 % interval.{conditions(where)} {provenance(rows)}",
        head=[names.capitalized(line), *map(names.heading, columns)],
        body=[
            [Cell(text), *(cell(group, name) for name in columns)] for text, group in groups.items()
        ],
        labels=1,
    )


def oracle_table(
    rows: Sequence[Row],
    selectors: Sequence[str] = LABEL_FREE,
    score: str = "few_label_top1",
    *,
    line: str = "method",
    where: Where = None,
) -> Table:
    """Return what the cell that a label-free score chooses reaches, and what the best one reaches.

    A cell has the mean over seeds. RankMe and LiDAR choose the largest, α-ReQ the one nearest 1.
    """
    rows = usable(rows, where, score, line)
    columns = [name for name in selectors if any(is_number(measure(row, name)) for row in rows)]
    groups = {**split(rows, line), "all": rows}
    return Table(
        name=names.slug(f"oracle {score}"),
        title=f"Choosing without labels: {names.subject(score)}",
        caption="Accuracy (%) of the chosen cell, in brackets the points that it lacks to the best "
        f"cell. RankMe and LiDAR choose the largest, α-ReQ the nearest to 1.{conditions(where)} "
        f"{provenance(rows)}",
        head=[names.capitalized(line), "Cells", "Best", *map(names.heading, columns)],
        body=[[Cell(text), *_choices(group, columns, score)] for text, group in groups.items()],
        labels=1,
    )


def _choices(rows: Sequence[Row], selectors: Sequence[str], score: str) -> list[Cell]:
    """The number of cells, the best score, and the score of each selector's choice."""
    cells = list(grouped(rows, axes(rows)).values())
    reached = [spread_over_seeds(cell, score) or EMPTY for cell in cells]
    best = max(one.mean for one in reached)
    found = [Cell(str(len(cells))), Cell(names.fixed(best, 1))]
    for selector in selectors:
        known = [
            (_merit(selector, figure.mean), one.mean)
            for cell, one in zip(cells, reached, strict=True)
            if (figure := spread_over_seeds(cell, selector)) is not None
        ]
        chosen = max(known, default=None)
        text = f"{names.fixed(chosen[1], 1)} ({names.fixed(chosen[1] - best, 1)})" if chosen else ""
        found.append(Cell(text))
    return found


def _merit(selector: str, value: float) -> float:
    """What is largest for the chosen cell."""
    return -abs(value - 1) if selector.startswith("alpha_req") else value
