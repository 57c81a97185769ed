"""Write the figures and tables of docs/results/studies.md from the rows of its runs.

    python benchmarks/studies.py

The rows in docs/results/studies/ are those of ``duality-ssl sweep``; nothing is trained here.
Figures are SVG files in docs/results/figures/, tables stand between two markers of the page.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from results import FIGURES, percent, write_table

from duality_ssl.reports import figure, table
from duality_ssl.reports.figures import Figure
from duality_ssl.reports.sources import read
from duality_ssl.reports.tables import Table
from duality_ssl.sweeps import read_rows
from duality_ssl.sweeps.tuning import choose

PAGE = FIGURES / "studies.md"
METHODS = ("VICReg", "VICReg-exp", "VICReg-ctr", "SimCLR, original", "SimCLR, tuned")
SCORES = ["few_label_top1", "linear_top1", "knn_top1", "online_top1"]
LABEL_FREE = ["rankme", "lidar", "alpha_req"]

Drawn = Figure | Table | str


def rows_of(sweep: str) -> Path:
    """The file with the rows of a sweep."""
    return FIGURES / "studies" / f"{sweep}.jsonl"


def drawn(draw: Callable[..., Drawn], kind: str, sweep: str = "digits_figure_1", **options: object):
    """A function that draws the grid of a sweep; None if the sweep has not been run."""
    path = rows_of(sweep)
    return partial(draw, read([path]), kind, **options) if path.is_file() else None


def by_dimension(score: str) -> Callable[[], Drawn] | None:
    """Figure 1 with another score."""
    return drawn(figure, "score", score=score, x="d", panel="projector", order=METHODS)


def tuning(sweep: str = "digits_figure_1") -> str:
    """What each label-free score would have chosen while tuning, against the labelled choice."""
    rows = [row for row in read_rows(rows_of(sweep)) if row.get("phase") == "tune"]
    methods = dict.fromkeys(row["cell"]["method"] for row in rows)
    lines = [["", "chosen with 5 labels", "5 labels", *LABEL_FREE], ["---", "---", *["---:"] * 4]]
    for method in methods:
        group = [row for row in rows if row["cell"]["method"] == method]
        choices = [choose(group, score, "few_label_top1") for score in LABEL_FREE]
        best = choices[0].oracle
        varied = {
            name.removeprefix("model."): value
            for name, value in best["options"].items()
            if len({str(row["options"].get(name)) for row in group}) > 1
        }
        words = ", ".join(f"{name} {value:g}" for name, value in varied.items())
        gaps = [f"-{percent(choice.gap)}" for choice in choices]
        lines.append([method, words, percent(best["scores"]["few_label_top1"]), *gaps])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def blocks() -> Iterator[tuple[str, Callable[[], Drawn] | None]]:
    """Yield the name of each figure and table with the function that draws it."""
    yield "figure_1", by_dimension("few_label_top1")
    yield "figure_1_linear", by_dimension("linear_top1")
    for score in ("few_label_top1", "linear_top1"):
        yield f"table_{score}", drawn(table, "pivot", score=score, column="d")
    yield "tuning", tuning if rows_of("digits_figure_1").is_file() else None
    options = {"sweep": "digits_normalization", "score": "few_label_top1"}
    yield "normalization", drawn(figure, "score", x="d", **options)
    yield "normalization_table", drawn(table, "pivot", column="d", **options)
    yield "similarity", drawn(table, "scores", "digits_similarity", scores=SCORES)
    where = {"projector": "512-512-{d}"}
    yield (
        "gram",
        drawn(
            figure, "histogram", array="gram_histogram", panel="d", where=where, order=METHODS
        ),
    )
    for score in ("row_fourth_ratio", "column_fourth_ratio"):
        yield score, by_dimension(score)
    yield (
        "online_offline",
        drawn(figure, "scatter", x="online_top1", y=SCORES[:2], order=METHODS),
    )
    options = {"x": "parameters.projector", "correlation": "spearman", "order": METHODS}
    yield "projector", drawn(figure, "scatter", y="few_label_top1", **options)
    for score in ("gram_dominance", "covariance_dominance"):
        for suffix in ("", "_features"):
            yield f"{score}{suffix}", by_dimension(f"{score}{suffix}")
    yield (
        "batch_size",
        drawn(figure, "score", "digits_batch_size", score="few_label_top1", x="batch"),
    )
    yield "epochs", drawn(table, "scores", "digits_epochs", scores=SCORES)
    options = {"y": "few_label_top1", "correlation": "spearman", "order": METHODS}
    yield "label_free", drawn(figure, "scatter", x=LABEL_FREE, **options)
    yield "label_free_table", drawn(table, "correlation")
    yield "oracle", drawn(table, "oracle")


def render() -> None:
    """Write the figures and tables whose rows are there."""
    for name, draw in blocks():
        if draw is None:
            continue
        made = draw()
        content = made if isinstance(made, str) else made.markdown()
        if isinstance(made, Figure):
            path = FIGURES / "figures" / f"{name}.svg"
            path.parent.mkdir(exist_ok=True)
            path.write_text(made.svg())
            content = f"![{made.title}](figures/{path.name})\n\n{made.caption}"
        write_table(PAGE, name, content)


if __name__ == "__main__":
    render()
