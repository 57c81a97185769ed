"""Reports of runs: rows of scores as tables and figures, on one HTML page and as Markdown.

Nothing is trained, and nothing is drawn that the rows do not hold. The same rows give the same
bytes.
"""

import sys
from argparse import ArgumentParser
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from duality_ssl.files import write_atomically
from duality_ssl.reports import page
from duality_ssl.reports.curves import curves_figure, histogram_figure, spectrum_figure
from duality_ssl.reports.figures import Figure
from duality_ssl.reports.label_free import correlation_table, oracle_table
from duality_ssl.reports.overview import section
from duality_ssl.reports.panels import score_figure
from duality_ssl.reports.rows import Row, grouped
from duality_ssl.reports.scatter import scatter_figure
from duality_ssl.reports.sources import read
from duality_ssl.reports.tables import (
    Table,
    pivot_table,
    score_table,
)

__all__ = [
    "FIGURES",
    "TABLES",
    "add_arguments",
    "figure",
    "figure_svg",
    "report",
    "table",
    "table_markdown",
]

T = TypeVar("T")

FIGURES: dict[str, Callable[..., Figure]] = {
    "score": score_figure,
    "scatter": scatter_figure,
    "curves": curves_figure,
    "spectrum": spectrum_figure,
    "histogram": histogram_figure,
}
TABLES: dict[str, Callable[..., Table]] = {
    "scores": score_table,
    "pivot": pivot_table,
    "correlation": correlation_table,
    "oracle": oracle_table,
}


def figure(rows: Sequence[Row], kind: str, **options: Any) -> Figure:
    """Return a figure of rows: ``name``, ``title``, ``caption``, ``svg()``, ``markdown()``.

    Args:
        rows: Rows of runs.
        kind: A key of `FIGURES`.
        **options: Arguments of that function.
    """
    return _chosen(FIGURES, kind)(rows, **options)


def table(rows: Sequence[Row], kind: str = "scores", **options: Any) -> Table:
    """Return a table of rows: ``title``, ``caption``, ``markdown()``.

    Args:
        rows: Rows of runs.
        kind: A key of `TABLES`.
        **options: Arguments of that function.
    """
    return _chosen(TABLES, kind)(rows, **options)


def figure_svg(rows: Sequence[Row], kind: str, **options: Any) -> str:
    """Return a figure as the text of an SVG file; see `figure`."""
    return figure(rows, kind, **options).svg()


def table_markdown(rows: Sequence[Row], kind: str = "scores", **options: Any) -> str:
    """Return a table as Markdown, with its caption; see `table`."""
    return table(rows, kind, **options).markdown()


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of `report`."""
    parser.add_argument("paths", type=Path, nargs="+", help="JSONL files of rows, or folders")
    parser.add_argument("--out", type=Path, help="folder; by default report/ beside the first path")


def report(paths: Sequence[Path], out: Path | None = None) -> Path:
    """Write ``report.html``, and ``report.md`` with the figures as SVG files beside it.

    Args:
        paths: JSONL files of rows, or folders of runs.
        out: The folder that is written to; by default ``report`` beside the first path.

    Returns:
        The HTML page.

    Raises:
        ValueError: If a path holds no rows.
    """
    rows = read(paths)
    sweeps = grouped(rows, ["sweep"])
    sections = [section(str(name), of_sweep) for (name,), of_sweep in sweeps.items()]
    title = f"Report: {', '.join(part.title for part in sections)}"
    folder = paths[0].parent / "report" if out is None else out
    files = {"report.html": page.html(title, sections), "report.md": page.markdown(title, sections)}
    for part in sections:
        files |= {f"{b.name}.svg": b.svg() for b in part.blocks if isinstance(b, Figure)}
    for name, content in files.items():
        _write(folder / name, content)
    sys.stdout.write(f"Report of {len(rows)} rows: {folder / 'report.html'}\n")
    return folder / "report.html"


def _chosen(known: Mapping[str, Callable[..., T]], kind: str) -> Callable[..., T]:
    if kind not in known:
        raise ValueError(f"Expected `kind` to be one of {', '.join(known)}, but got {kind!r}.")
    return known[kind]


def _write(path: Path, content: str) -> None:
    write_atomically(path, lambda file: file.write(content.encode()))
