"""What a report shows of a grid: the figures and tables that its rows have the data for."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from duality_ssl.reports import names
from duality_ssl.reports.curves import curves_figure, histogram_figure, spectrum_figure
from duality_ssl.reports.figures import Figure
from duality_ssl.reports.label_free import correlation_table, oracle_table
from duality_ssl.reports.panels import score_figure
from duality_ssl.reports.rows import (
    ACCURACIES,
    LABEL_FREE,
    Row,
    axes,
    distinct,
    grouped,
    holds,
    is_number,
    measure,
    provenance,
    split,
    values,
)
from duality_ssl.reports.scatter import scatter_figure
from duality_ssl.reports.tables import (
    Cell,
    Table,
    pivot_table,
    score_table,
)

SPECTRA = ("spectrum", "spectrum_features")
HISTOGRAMS = (
    *("gram_histogram", "covariance_histogram"),
    *("gram_histogram_features", "covariance_histogram_features"),
)
CURVES = ("val/probe_top1", "val/knn_top1")


class Section(NamedTuple):
    """A part of a report: a title, sentences, figures and tables."""

    title: str
    sentences: Sequence[str]
    blocks: Sequence[Figure | Table]


class Grid(NamedTuple):
    """Finished rows of one sweep, and what their axes are in its figures.

    Args:
        rows: The rows.
        line: The axis with a line for each of its values.
        panel: The axis with a panel for each of its values.
        numbers: The axes of numbers.
        rest: Those and the further axes: a figure shows one value of each, or has it across.
        order: Labels of the lines.
    """

    rows: Sequence[Row]
    line: str | None
    panel: str | None
    numbers: Sequence[str]
    rest: Sequence[str]
    order: Sequence[str]


def grid_of(rows: Sequence[Row]) -> Grid:
    """Return rows with the axis of methods as lines, and the next axis of labels as panels."""
    varied = axes(rows)
    numbers = [name for name in varied if all(map(is_number, values(rows, name)))]
    labels = [name for name in varied if name not in numbers]
    labels.sort(key="method".__ne__)
    line, panel = [*labels, None, None][:2]
    return Grid(rows, line, panel, numbers, numbers + labels[2:], list(split(rows, line)))


def section(sweep: str, rows: Sequence[Row]) -> Section:
    """Return the section of one sweep."""
    title = sweep if "/" in sweep else names.capitalized(sweep.replace("_", " "))
    done = [row for row in rows if "error" not in row]
    if not done:
        return Section(title, ["All runs failed."], [failed_table(rows)])
    grid = grid_of(done)
    blocks: list[Figure | Table] = [
        *score_blocks(grid),
        *array_figures(grid),
        *correlation_blocks(grid),
        score_table(done, title="All scores"),
    ]
    if len(done) < len(rows):
        blocks.append(failed_table(rows))
    named = [replace(block, name=names.slug(f"{sweep} {block.name}")) for block in blocks]
    return Section(title, [provenance(done), *circumstances(done)], named)


def score_blocks(grid: Grid) -> list[Figure | Table]:
    """Return the accuracies against each axis of numbers, or of each line if there is none."""
    blocks = list[Figure | Table]()
    for score in present(grid.rows, ACCURACIES)[:2]:
        rows = [row for row in grid.rows if holds(row, score)]
        for x in grid.numbers:
            blocks += [
                score_figure(
                    rows,
                    score,
                    x,
                    panel=grid.panel,
                    line=grid.line,
                    where=most_common(rows, [name for name in grid.rest if name != x]),
                    order=grid.order,
                ),
                pivot_table(rows, score, x),
            ]
        if not grid.numbers and grid.line is not None:
            fixed = most_common(rows, grid.rest)
            blocks.append(score_figure(rows, score, grid.line, line=grid.panel, where=fixed))
    return blocks


def array_figures(grid: Grid) -> list[Figure | Table]:
    """Return training curves, spectra and histograms: of one value of each further axis."""
    look: dict[str, Any] = {"panel": grid.panel, "line": grid.line, "order": grid.order}
    drawn: dict[Callable[..., Figure], list[str]] = {
        curves_figure: present(grid.rows, CURVES)[:1],
        spectrum_figure: present(grid.rows, SPECTRA),
        histogram_figure: present(grid.rows, HISTOGRAMS),
    }
    figures = list[Figure | Table]()
    for draw, found in drawn.items():
        for name in found:
            rows = [row for row in grid.rows if holds(row, name)]
            figures.append(draw(rows, name, where=most_common(rows, grid.rest), **look))
    return figures


def correlation_blocks(grid: Grid) -> list[Figure | Table]:
    """Return what can stand in for an offline accuracy: online, label-free, parameters."""
    rows = grid.rows
    look: dict[str, Any] = {"line": grid.line, "order": grid.order}
    offline = [name for name in present(rows, ACCURACIES) if name != "online_top1"][:2]
    label_free = present(rows, LABEL_FREE)
    blocks: list[Figure | Table] = []
    if len(distinct(rows)) < 4 or not offline:
        return blocks
    if present(rows, ["online_top1"]):
        blocks.append(
            scatter_figure(rows, "online_top1", offline, title="Offline by online accuracy", **look)
        )
    if len(values(rows, "parameters.projector")) > 2:
        blocks.append(
            scatter_figure(
                rows,
                "parameters.projector",
                offline,
                correlation="spearman",
                title="Accuracy by projector parameters",
                **look,
            )
        )
    if label_free:
        blocks.append(scatter_figure(rows, label_free, offline[0], correlation="spearman", **look))
        if grid.line is not None:
            blocks.append(correlation_table(rows, label_free, offline[0], line=grid.line))
            if any(
                len(grouped(group, axes(rows))) > 1 for group in split(rows, grid.line).values()
            ):
                blocks.append(oracle_table(rows, label_free, offline[0], line=grid.line))
    return blocks


def failed_table(rows: Sequence[Row]) -> Table:
    """Return the cells and messages of failed runs."""
    failed = [row for row in rows if "error" in row]
    body = [
        [
            Cell(", ".join(f"{axis} {names.label(value)}" for axis, value in row["cell"].items())),
            Cell(str(row.get("seed", ""))),
            Cell(str(row["error"])),
        ]
        for row in failed
    ]
    caption = f"{len(failed)} of {len(rows)} runs have no scores."
    return Table("failed", "Failed runs", caption, ["Cell", "Seed", "Error"], body, labels=3)


def present(rows: Sequence[Row], wanted: Sequence[str]) -> list[str]:
    """Return the names that some row has."""
    return [name for name in wanted if any(holds(row, name) for row in rows)]


def most_common(rows: Sequence[Row], names_: Sequence[str]) -> dict[str, Any]:
    """Return the values of axes that most rows have; the last of equally common ones."""
    counts = Counter(tuple(measure(row, name) for name in names_) for row in reversed(rows))
    return dict(zip(names_, counts.most_common(1)[0][0], strict=True))


def circumstances(rows: Sequence[Row]) -> list[str]:
    """Return sentences: the versions, the machines and the time of the runs."""
    made = [
        f"{word}{', '.join(map(str, found))}"
        for key, word in (("version", "duality_ssl "), ("torch", "torch "), ("machine", ""))
        if (found := values(rows, key))
    ]
    seconds = sum(row.get("seconds") or 0 for row in distinct(rows))
    hours = f"{seconds / 3600:.1f} hours" if seconds > 5400 else f"{seconds / 60:.1f} minutes"
    times = [f"All runs together took {hours}."] if seconds else []
    return [f"{'; '.join(made)}."] * bool(made) + times
