"""The command: files in, one page out."""

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from helpers.synthetic_rows import figure_1, methods_alone

from duality_ssl.cli import main
from duality_ssl.reports import report


def write(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of two sweeps, of which one run failed."""
    root = tmp_path_factory.mktemp("report")
    failed = {key: value for key, value in figure_1()[0].items() if key != "scores"}
    rows = [failed | {"error": "ValueError: <no> images"}, *figure_1()[1:]]
    first = write(root / "rows" / "figure_1.jsonl", rows)
    second = write(root / "more" / "rows.jsonl", [*methods_alone()])
    main(["report", str(first), str(second.parent), "--out", str(root / "out")])
    return root / "out"


def test_the_page_holds_a_section_of_each_sweep(folder: Path) -> None:
    html = (folder / "report.html").read_text()
    assert re.findall("<h2>(.*?)</h2>", html) == ["Figure 1", "Normalization"]
    titles = re.findall("<h3>(.*?)</h3>", html)
    for title in (
        "Accuracy with 5 labels a class by embedding dimension d",
        "Online probe accuracy during training",
        "Singular values of the embeddings",
        "Off-diagonal entries of the Gram matrix",
        "Choosing without labels: accuracy with 5 labels a class",
        "Failed runs",
    ):
        assert title in titles
    assert "ValueError: &lt;no&gt; images" in html


def test_the_page_needs_nothing_else(folder: Path) -> None:
    html = (folder / "report.html").read_text()
    assert not re.search(r"<(script|link|img|iframe)|\burl\(|@import|https?://", html)
    ids = re.findall(r' id="([^"]+)"', html)
    assert len({*ids}) == len(ids)
    assert {link[1:] for link in re.findall(r'href="([^"]+)"', html)} <= {*ids}


def test_markdown_has_the_figures_beside_it(folder: Path) -> None:
    text = (folder / "report.md").read_text()
    images = re.findall(r"!\[.+?\]\((.+?)\)", text)
    assert sorted(images) == sorted(path.name for path in folder.glob("*.svg"))
    assert len({*images}) == len(images) > 8
    for name in images:
        ElementTree.parse(folder / name)
    assert text.count("<figure") == 0


def test_a_report_is_written_beside_its_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "rows.jsonl", [*methods_alone()])
    assert report([path]) == tmp_path / "report" / "report.html"
    assert "Report of 9 rows" in capsys.readouterr().out
    before = (tmp_path / "report" / "report.html").read_bytes()
    assert report([path]).read_bytes() == before


def test_rows_with_few_scores_make_a_small_report(tmp_path: Path) -> None:
    rows = [{"sweep": "few", "cell": {"method": "A"}, "seed": 0, "options": {},
             "scores": {"linear_top1": 0.5, "online_top1": 0.4}}]  # fmt: skip
    html = report([write(tmp_path / "rows.jsonl", rows)]).read_text()
    assert "50.0" in html
    assert "<figure" not in html


def test_rows_without_known_scores_make_a_page(tmp_path: Path) -> None:
    rows = [{"sweep": "few", "cell": {"method": "A"}, "seed": 0, "options": {}, "scores": {}}]
    assert "All scores" in report([write(tmp_path / "rows.jsonl", rows)]).read_text()


def test_what_few_rows_hold_is_drawn_of_those(tmp_path: Path) -> None:
    rows = figure_1(methods=["A", "B"], dimensions=[16, 64], seeds=[0, 1])
    for row in rows:
        row["scores"]["lidar"] = float("nan")
        if row["cell"]["d"] == 64:
            row["arrays"] = {}
    text = (report([write(tmp_path / "rows.jsonl", rows[1:])]).parent / "report.md").read_text()
    assert "Shown: embedding dimension d = 16. 11 runs" in text
    assert "mean over 1 to 2 seeds" in text
    assert "LiDAR" not in text.replace("RankMe and LiDAR choose", "")


def test_runs_that_tune_are_left_out(tmp_path: Path) -> None:
    rows = [*methods_alone()]
    rows += [row | {"phase": "tune", "scores": {"linear_top1": 0.0}} for row in methods_alone()]
    html = report([write(tmp_path / "rows.jsonl", rows)]).read_text()
    assert "9 runs; seeds 0 to 2" in html


def test_a_run_that_two_files_hold_counts_once(tmp_path: Path) -> None:
    paths = [write(tmp_path / name, [*methods_alone()]) for name in ("a.jsonl", "b.jsonl")]
    assert "9 runs; seeds 0 to 2" in report(paths).read_text()


def test_a_folder_of_sweeps_has_rows_below_it(tmp_path: Path) -> None:
    write(tmp_path / "sweeps" / "normalization" / "rows.jsonl", [*methods_alone()])
    write(tmp_path / "sweeps" / "normalization" / "run" / "other.jsonl", [{"no": "row"}])
    assert report([tmp_path / "sweeps"]) == tmp_path / "report" / "report.html"


def test_a_folder_of_runs_needs_no_sweep(tmp_path: Path) -> None:
    for version in range(2):
        run = tmp_path / "digits" / "VICReg" / f"version_{version}"
        (run / "checkpoints").mkdir(parents=True)
        (run / "config.yaml").write_text("# duality_ssl 0.1.0\nseed_everything: 7\n")
        (run / "metrics.csv").write_text("epoch,step,val/probe_top1\n0,4,0.5\n1,8,0.75\n")
        scores = {"method": "VICReg", "linear_top1": 0.8 + version / 10, "num_train": 9}
        (run / "checkpoints" / "evaluation.json").write_text(json.dumps(scores))
    report([tmp_path / "digits"])
    table = (tmp_path / "report" / "report.md").read_text()
    assert "| version_0 | 80.0 | **75.0** |" in table
    assert "| version_1 | **90.0** | **75.0** |" in table
    assert "2 runs; seed 7." in table


def test_paths_without_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"folder of runs, but .*none does not exist"):
        report([tmp_path / "none"])
    with pytest.raises(ValueError, match=r"evaluated runs in .*, but found none. Evaluate a run"):
        report([tmp_path])
    with pytest.raises(ValueError, match=r"every line of .*other.jsonl to be a row of"):
        report([write(tmp_path / "other.jsonl", [{"row": "vicreg"}])])
