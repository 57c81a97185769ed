"""Tables of scores: the mean and standard deviation over seeds, with the best in bold."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import NamedTuple

from duality_ssl.reports import names
from duality_ssl.reports.panels import conditions
from duality_ssl.reports.rows import (
    ACCURACIES,
    LABEL_FREE,
    Row,
    Spread,
    Where,
    axes,
    count_of_seeds,
    grouped,
    holds,
    measure,
    provenance,
    spread_over_seeds,
    usable,
    values,
)

EMPTY = Spread(float("nan"), 0.0, 0)


class Cell(NamedTuple):
    """A text of a table."""

    text: str
    bold: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of cells under a head; the first ``labels`` columns say what a row is."""

    name: str
    title: str
    caption: str
    head: Sequence[str]
    body: Sequence[Sequence[Cell]]
    labels: int

    def markdown(self) -> str:
        """Return the table as Markdown, with the caption below."""
        ends = ["---" if column < self.labels else "---:" for column in range(len(self.head))]
        lines = [self.head, ends]
        lines += [[f"**{c.text}**" if c.bold else c.text for c in row] for row in self.body]
        written = [[text.replace("|", "\\|") for text in line] for line in lines]
        return "".join(f"| {' | '.join(line)} |\n" for line in written) + f"\n*{self.caption}*\n"

    def html(self) -> str:
        """Return the table as an element of a page."""
        head = "".join(
            f"<th{' class=label' * (column < self.labels)}>{escape(text)}</th>"
            for column, text in enumerate(self.head)
        )
        body = "\n".join(f"<tr>{self._row(row)}</tr>" for row in self.body)
        return (
            f'<div class="block" id="{self.name}"><h3>{escape(self.title)}</h3>\n'
            f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>'
            f'</table></div>\n<p class="caption">{escape(self.caption)}</p></div>\n'
        )

    def _row(self, row: Sequence[Cell]) -> str:
        texts = [f"<b>{escape(c.text)}</b>" if c.bold else escape(c.text) for c in row]
        return "".join(
            f'<th class="label">{text}</th>' if column < self.labels else f"<td>{text}</td>"
            for column, text in enumerate(texts)
        )


def score_table(
    rows: Sequence[Row], scores: Sequence[str] = (), *, where: Where = None, title: str = ""
) -> Table:
    """Return a line for each cell of the grid and a column for each score.

    Args:
        rows: Rows of runs.
        scores: The columns; by default the accuracies and label-free scores that the rows have.
        where: Values of axes that rows must have.
        title: The title, instead of "Scores".
    """
    rows = usable(rows, where)
    columns = list(scores) or known_scores(rows)
    keys = axes(rows) or ["method"]
    cells = grouped(rows, keys)
    spreads = [[spread_over_seeds(group, score) for score in columns] for group in cells.values()]
    return _table(
        "scores",
        title or "Scores",
        f"{conditions(where)} {provenance(rows)}",
        keys,
        cells,
        [names.capitalized(names.heading(score)) for score in columns],
        spreads,
        columns,
    )


def pivot_table(
    rows: Sequence[Row], score: str, column: str, *, where: Where = None, title: str = ""
) -> Table:
    """Return a column for each value of an axis, and a line for each cell of the other axes."""
    rows = usable(rows, where, score, column)
    steps = values(rows, column)
    keys = [name for name in axes(rows) if name != column] or ["method"]
    cells = grouped(rows, keys)
    spreads = [
        [
            spread_over_seeds([row for row in group if measure(row, column) == step], score)
            for step in steps
        ]
        for group in cells.values()
    ]
    return _table(
        names.slug(f"{score} table by {column}"),
        title
        or f"{names.capitalized(names.subject(score))} by {names.heading(column)}, in numbers",
        f"{conditions(where)} {provenance(rows)}",
        keys,
        cells,
        [names.label(step) for step in steps],
        spreads,
        [score] * len(steps),
    )


def near_best(spreads: Iterable[Spread | None]) -> list[bool]:
    """Say which means lie within one standard deviation of the best mean, by the best's own."""
    means = [EMPTY if one is None else one for one in spreads]
    best = max(means, key=lambda one: one.mean if one.n else float("-inf"), default=EMPTY)
    return [one.n > 0 and one.mean >= best.mean - best.std for one in means]


def known_scores(rows: Sequence[Row]) -> list[str]:
    """Return the accuracies and label-free scores that rows have: the best-known first."""
    scores = ((row, name) for row in rows for name in row.get("scores", {}))
    found = dict.fromkeys(name for row, name in scores if holds(row, name))
    accuracies = [name for name in found if names.is_accuracy(name)]
    ordered = dict.fromkeys((*ACCURACIES, *accuracies, *LABEL_FREE))
    return [name for name in ordered if name in found]


def _table(
    name: str,
    title: str,
    caption: str,
    keys: Sequence[str],
    cells: dict[tuple[object, ...], list[Row]],
    columns: Sequence[str],
    spreads: Sequence[Sequence[Spread | None]],
    scores: Sequence[str],
) -> Table:
    """A table of spreads, with those near the best of each column of accuracies in bold."""
    bold = [
        near_best(column) if names.is_accuracy(score) else [False] * len(cells)
        for score, column in zip(scores, zip(*spreads, strict=True), strict=True)
    ]
    counts = {one.n for line in spreads for one in line if one is not None}
    body = [
        [
            *(Cell("" if value is None else names.label(value)) for value in key),
            *(
                Cell(names.mean_and_std(score, *one) if one else "", bold[column][line])
                for column, (one, score) in enumerate(zip(spreads[line], scores, strict=True))
            ),
        ]
        for line, key in enumerate(cells)
    ]
    head = [names.capitalized(names.heading(key)) for key in keys]
    if counts - {1}:
        what = (
            f"Mean ± standard deviation over {count_of_seeds(counts)} seeds, accuracies in %; "
            "bold: within one standard deviation of the best of the column."
        )
    else:
        what = "Accuracies in %, one run a cell; bold: the best of the column."
    return Table(name, title, f"{what}{caption}", [*head, *columns], body, len(keys))
