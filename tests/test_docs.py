"""Links, options, tables and files that the pages name exist."""

import contextlib
import importlib
import inspect
import io
import json
import re
from pathlib import Path

import pytest
from helpers.pages import DOCS, PAGES, ROOT, fenced, prose

from duality_ssl import methods
from duality_ssl.cli import main
from duality_ssl.sweeps import read_rows

METHODS = {
    name: cls
    for name, cls in vars(methods).items()
    if isinstance(cls, type) and issubclass(cls, methods.JointEmbedding)
}
del METHODS["JointEmbedding"]

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@each_page
def test_every_fence_has_a_language_that_is_tried(page: Path) -> None:
    assert page.read_text("utf-8").count("```") == 2 * len(fenced(page))
    assert {block.language for block in fenced(page)} <= {"bash", "python", "yaml", "text"}


@each_page
def test_links_resolve(page: Path) -> None:
    targets = re.findall(r"\]\(([^)]+)\)", prose(page))
    inside = [target for target in targets if not target.startswith("https://")]
    for target in inside:
        path, _, anchor = target.partition("#")
        linked = page.parent / path if path else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


def anchors(page: Path) -> set[str]:
    """The headings of a page as they are spelled in links."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_page
def test_named_tests_exist(page: Path) -> None:
    named = set(re.findall(r"`(?:tests/)?((?:\w+/)*test_\w+\.py)`", prose(page)))
    assert [path for path in sorted(named) if not (ROOT / "tests" / path).is_file()] == []


def test_map_names_every_page() -> None:
    linked = set(re.findall(r"\]\(([\w-]+\.md)\)", (ROOT / "docs/README.md").read_text("utf-8")))
    assert linked == {page.name for page in DOCS if page.name != "README.md"}


def test_readme_names_every_method() -> None:
    section = (ROOT / "README.md").read_text("utf-8").partition("## Methods")[2].partition("## ")[0]
    assert METHODS.keys() <= set(re.findall(r"`(\w+)`", section))


def test_table_of_methods_is_that_of_the_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise run benchmarks/table_of_methods.py."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    table = importlib.import_module("table_of_methods").table()
    page = (ROOT / "docs/methods.md").read_text("utf-8")
    assert f"<!-- table methods -->\n{table}\n<!-- end methods -->" in page
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in table.splitlines()[2:]]
    assert {row[0].strip("`") for row in rows} - {""} == METHODS.keys()
    assert {row[1].strip("`") for row in rows} == {
        path.stem for path in ROOT.glob("configs/methods/*.yaml")
    }
    needs = {row[0].strip("`"): dict(zip(header(table), row, strict=True)) for row in rows}
    assert needs["SimSiam"]["needs"] == "predictor, own targets"
    assert needs["DINO"]["needs"] == "teacher, own head, keeps center"
    assert needs["SupCon"]["needs"] == "labels"
    assert needs["WMSE"]["needs"] == "random draws"
    assert needs["SwAV"]["needs"] == "trains prototypes"
    assert all(row[5] for row in rows if row[0])  # family


def header(table: str) -> list[str]:
    return [cell.strip() for cell in table.partition("\n")[0].split("|")[1:-1]]


def test_figure_of_the_readme_shows_the_ratios() -> None:
    lines = (ROOT / "docs/benchmarks/growth.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if row["grows"] == "D" and "seconds" in row]
    drawn = (ROOT / "docs/benchmarks/speed.svg").read_text("utf-8")
    for name in ("VICReg", "Barlow Twins"):
        ours, peer = (
            {row["d"]: row["seconds"] for row in rows if (row["what"], row["who"]) == (name, who)}
            for who in ("ours", "lightly")
        )
        ratio = peer[max(peer)] / ours[max(peer)]
        assert f"<!-- {ratio:.0f}x -->" in re.sub(" +", " ", drawn), "run benchmarks/render.py"


def test_conclusions_from_the_digits() -> None:
    rows = {
        row["cell"]["method"]: row["scores"]
        for row in read_rows(ROOT / "docs/results/studies/digits_methods.jsonl")
    }
    untrained, pixels = rows.pop("untrained"), rows.pop("raw pixels")
    for column in ("linear_top1", "few_label_top1"):
        worst = min(row[column] for row in rows.values())
        assert worst > pixels[column] > untrained[column]
    dimension = {"VICReg", "VICReg-exp", "Barlow Twins", "TCR"}
    families = [
        [row["few_label_top1"] for name, row in rows.items() if (name in dimension) is chosen]
        for chosen in (True, False)
    ]
    assert max(map(min, families)) < min(map(max, families))  # the two ranges overlap
    ranks = [row["rankme"] for row in rows.values()]
    assert max(ranks) > 3 * min(ranks)


@pytest.fixture(scope="module")
def options() -> set[str]:
    """Every option of the command line."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for command in ("fit", "test"):
            with pytest.raises(SystemExit):
                main([command, "--help"])
    arguments = {name for cls in METHODS.values() for name in inspect.signature(cls).parameters}
    return set(re.findall(r"--[\w.]+", printed.getvalue())) | {
        f"--model.{name}" for name in arguments
    }


@each_page
def test_options_exist(page: Path, options: set[str]) -> None:
    groups = "|".join(sorted({option[2:].split(".")[0] for option in options if "." in option}))
    written = set(re.findall(rf"`(--(?:{groups})\.[\w.]*\w)", prose(page)))
    assert [option for option in written - options if not option.endswith(".NAME")] == []
