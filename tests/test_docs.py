"""Links, options, tables and files that the pages name exist."""

import contextlib
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


def table_of_methods() -> dict[str, list[str]]:
    """The cells of each row of docs/methods.md that has a class."""
    rows = (ROOT / "docs/methods.md").read_text("utf-8").splitlines()
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows if row[:2] == "| "]
    return {row[0].strip("`"): row[1:] for row in cells[1:] if row[0]}


def test_table_of_methods_is_complete() -> None:
    assert table_of_methods().keys() == METHODS.keys()
    named = set(re.findall(r"`(\w+)`", (ROOT / "docs/methods.md").read_text("utf-8")))
    assert {path.stem for path in ROOT.glob("configs/methods/*.yaml")} <= named


@pytest.mark.parametrize("name", METHODS)
def test_table_says_what_a_method_needs(name: str) -> None:
    _, _, _, views, needs, _ = table_of_methods()[name]
    criterion = METHODS[name].criterion_class
    defaults = inspect.signature(METHODS[name]).parameters
    expected = ["labels"] if "labels" in criterion.inputs else []
    expected += ["predictor"] if defaults["predictor"].default else []
    expected += ["teacher"] if defaults["teacher_momentum"].default else []
    assert needs == ", ".join(expected)
    assert views == ("2 or more" if criterion.many_views else "2")


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
