"""Write the figures and tables of docs/results.md and docs/results/ from the rows of their runs.

    python benchmarks/studies.py
    python benchmarks/studies.py --pixels

The rows in docs/results/studies/ are those of ``duality-ssl sweep``; nothing is trained here.
``--pixels`` measures the raw pixels again first. Figures are SVG files in docs/results/figures/,
tables stand between two markers of a page.
"""

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from torch import Tensor

import duality_ssl
from duality_ssl.data import SSLDataModule, create_source
from duality_ssl.evaluation import Settings, evaluate
from duality_ssl.reports import figure, table
from duality_ssl.reports.figures import Figure
from duality_ssl.reports.names import heading
from duality_ssl.reports.rows import distinct
from duality_ssl.reports.sources import read
from duality_ssl.reports.tables import Table
from duality_ssl.sweeps import append_row, read_rows
from duality_ssl.sweeps.tuning import choose

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
FIGURES = ROOT / "docs" / "results"
RESULTS, STUDIES = ROOT / "docs" / "results.md", FIGURES / "studies.md"
METHODS = ("VICReg", "VICReg-exp", "VICReg-ctr", "SimCLR, original", "SimCLR, tuned")
SCORES = ["few_label_top1", "linear_top1", "knn_top1", "online_top1"]
LABEL_FREE = ["rankme", "lidar", "alpha_req"]
COVARIANCE = "model.covariance"
TUNED = ("digits_normalization", "digits_similarity")  # beside figure 1, with further methods

Drawn = Figure | Table | str


class Block(NamedTuple):
    """A figure or a table of a page.

    Args:
        page: The page.
        name: Name of its markers, and of the figure's file.
        draw: Makes it; None if its sweep has not been run.
    """

    page: Path
    name: str
    draw: Callable[[], Drawn] | None


def rows_of(sweep: str) -> Path:
    """The file with the rows of a sweep."""
    return FIGURES / "studies" / f"{sweep}.jsonl"


def of(sweep: str, draw: Callable[..., Drawn], **options: Any) -> Callable[[], Drawn] | None:
    """Draw the grid of a sweep, if it has been run."""
    return partial(_draw, sweep, draw, options) if rows_of(sweep).is_file() else None


def _draw(sweep: str, draw: Callable[..., Drawn], options: dict[str, Any]) -> Drawn:
    axes = yaml.safe_load((CONFIGS / "sweeps" / f"{sweep}.yaml").read_text())["axes"]
    places = {name: {label: place for place, label in enumerate(axes[name])} for name in axes}

    def place(row: dict[str, Any]) -> list[int]:
        """Where a row stands in the file of its sweep; raw pixels stand below."""
        return [places[axis].get(label, len(places[axis])) for axis, label in row["cell"].items()]

    return draw(sorted(read([rows_of(sweep)]), key=place), **options)


def tuning(*sweeps: str) -> str:
    """What each label-free score would have chosen while tuning, against the labelled choice.

    Several sweeps may share the runs of a method: it has one line.
    """
    found = (row for sweep in sweeps for row in read_rows(rows_of(sweep)))
    rows = distinct(row for row in found if row.get("phase") == "tune")
    lines = [["Method", "Chosen", "5 labels a class", *map(heading, LABEL_FREE)]]
    lines += [["---", "---", *["---:"] * 4]]
    for method in dict.fromkeys(row["cell"]["method"] for row in rows):
        group = [row for row in rows if row["cell"]["method"] == method]
        choices = [choose(group, score, "few_label_top1") for score in LABEL_FREE]
        best = choices[0].oracle
        values = {
            name: {str(row["options"].get(name)) for row in group} for name in best["options"]
        }
        chosen = [
            f"{name.removeprefix('model.')} {value:g}"
            for name, value in best["options"].items()
            if len(values[name]) > 1
        ]
        gaps = [f"-{percent(choice.gap)}" for choice in choices]
        top1 = percent(best["scores"]["few_label_top1"])
        lines.append([method, ", ".join(chosen), top1, *gaps])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def blocks() -> Iterator[Block]:
    """Yield the figures and tables of all pages."""
    for data in ("digits", "fashion_mnist"):
        sweep = f"{data}_methods"
        yield Block(RESULTS, data, of(sweep, table, scores=[*SCORES, "rankme"]))
    weights = of("digits_vicreg_ctr", table, kind="pivot", score=SCORES[0], column=COVARIANCE)
    yield Block(RESULTS, "vicreg_ctr", weights)
    study = partial(Block, STUDIES)
    first = "digits_figure_1"
    panels: dict[str, Any] = {"x": "d", "panel": "projector", "order": METHODS}
    of_score = partial(of, first, figure, kind="score", **panels)
    small = {"kind": "score", "score": "few_label_top1", "x": "d", "order": METHODS}
    yield study("figure_1_small", of("figure_1_small", figure, **small))
    tuned = [name for name in (first, *TUNED) if rows_of(name).is_file()]
    yield study("tuning", partial(tuning, *tuned) if tuned else None)
    yield study("figure_1", of_score(score="few_label_top1"))
    yield study("figure_1_linear", of_score(score="linear_top1"))
    for score in ("few_label_top1", "linear_top1"):
        name = f"figure_1_{score}"
        yield study(name, of(first, table, kind="pivot", score=score, column="d"))
    sweep, score = "digits_normalization", "few_label_top1"
    yield study("normalization", of(sweep, figure, kind="score", score=score, x="d"))
    yield study("normalization_table", of(sweep, table, kind="pivot", score=score, column="d"))
    yield study("similarity", of("digits_similarity", table, scores=SCORES))
    wide = {"projector": "512-512-{d}"}
    entries = {"array": "gram_histogram", "panel": "d", "where": wide, "order": METHODS}
    yield study("gram", of(first, figure, kind="histogram", **entries))
    for name in ("cosine_mean", "cosine_variance", "row_fourth_ratio", "column_fourth_ratio"):
        yield study(name, of_score(score=name))
    scatter = partial(of, first, figure, kind="scatter", order=METHODS)
    yield study("online_offline", scatter(x="online_top1", y=SCORES[:2]))
    ranked = {"y": score, "correlation": "spearman"}
    yield study("projector", scatter(x="parameters.projector", **ranked))
    for name in ("gram_dominance", "covariance_dominance"):
        yield study(name, of_score(score=name))
        yield study(f"{name}_features", of_score(score=f"{name}_features"))
    batches = of("digits_batch_size", figure, kind="score", score=score, x="batch")
    yield study("batch_size", batches)
    for sweep in ("fashion_mnist_batch_size", "fashion_mnist_figure_1"):
        yield study(sweep, of(sweep, table, scores=SCORES))
    yield study("epochs", of("digits_epochs", table, scores=SCORES))
    yield study("label_free", scatter(x=LABEL_FREE, **ranked))
    yield study("label_free_table", of(first, table, kind="correlation"))
    yield study("oracle", of(first, table, kind="oracle"))


def content(block: Block) -> tuple[str, str | None]:
    """What a block is on its page, and the figure's SVG."""
    drawn = block.draw() if block.draw is not None else "*Not measured yet.*"
    if isinstance(drawn, str):
        return drawn, None
    if isinstance(drawn, Table):
        return drawn.markdown(), None
    return f"![{drawn.title}](figures/{block.name}.svg)\n\n{drawn.caption}", drawn.svg()


def render() -> None:
    """Write all figures and tables."""
    for block in blocks():
        text, svg = content(block)
        write_table(block.page, block.name, text)
        if svg is not None:
            path = FIGURES / "figures" / f"{block.name}.svg"
            path.parent.mkdir(exist_ok=True)
            path.write_text(svg)


def write_table(page: Path, name: str, rendered: str) -> None:
    """Write a table between its two markers, if the page has them."""
    begin, end = f"<!-- table {name} -->", f"<!-- end {name} -->"
    text = page.read_text()
    if begin in text:
        head, _, rest = text.partition(begin)
        page.write_text(f"{head}{begin}\n{rendered}\n{end}{rest.partition(end)[2]}")


def percent(fraction: float) -> str:
    """Format a fraction as percent with one decimal."""
    return f"{100 * fraction:.1f}"


def pixel_sets(data: SSLDataModule) -> list[Tensor]:
    """Pixels and labels of the training and of the validation images, for `evaluate`."""
    data.setup("test")
    sets = []
    for loader in data.test_dataloader():
        batches = [data.on_after_batch_transfer(batch, 0) for batch in loader]
        sets.append(torch.cat([images[0].flatten(1) for images, _ in batches]))
        sets.append(torch.cat([labels for _, labels in batches]))
    return sets


def measure_pixels(data: str) -> dict[str, Any]:
    """Evaluate the pixels of the images as vectors: a row of the sweep of the methods."""
    config = f"configs/data/{data}.yaml"
    options = yaml.safe_load((ROOT / config).read_text())["data"]
    options = {name: options[name] for name in ("source", "subset") if name in options}
    size = create_source(options["source"]).load("val").images.shape[-1]
    sets = pixel_sets(SSLDataModule(**options, image_size=size))
    found = evaluate(*sets, settings=Settings(protocols=("linear", "knn", "few_label")))
    scores = {name: value for name, value in found.items() if isinstance(value, float)}
    sweep, cell = f"{data}_methods", {"method": "raw pixels"}
    about = {"configs": [config], "seed": 0, "version": duality_ssl.__version__}
    return {"sweep": sweep, "cell": cell, "options": {}, "key": cell["method"], **about} | {
        "torch": torch.__version__,
        "scores": scores,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--pixels", action="store_true", help="measure the raw pixels first")
    if parser.parse_args().pixels:
        for name in ("digits", "fashion_mnist"):
            append_row(rows_of(f"{name}_methods"), measure_pixels(name))
    render()
