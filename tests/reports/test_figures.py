"""Figures of rows: the marks stand where the numbers are, and no text is cut off or covered."""

import math
import re
import statistics
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

import pytest
from helpers.synthetic_rows import figure_1, methods_alone

from duality_ssl.reports import figure, figure_svg
from duality_ssl.reports.figures import Figure
from duality_ssl.reports.marks import Place, Point, Series, bands, width_of
from duality_ssl.reports.scales import Scale, linear_scale
from duality_ssl.reports.style import DARK, DARK_PAPER, LIGHT, PAPER, look

ROWS = figure_1()
AT_512 = {"d": 512}
KINDS: list[Any] = [
    pytest.param(
        "score",
        {"score": "few_label_top1", "x": "d", "panel": "projector"},
        id="score against dimension",
    ),
    pytest.param(
        "score",
        {"score": "linear_top1", "x": "method", "line": "projector", "where": AT_512},
        id="score of each method",
    ),
    pytest.param(
        "scatter", {"x": "online_top1", "y": ["linear_top1", "few_label_top1"]}, id="online"
    ),
    pytest.param(
        "scatter",
        {"x": ["rankme", "lidar", "alpha_req"], "y": "linear_top1", "correlation": "spearman"},
        id="label-free",
    ),
    pytest.param("curves", {"panel": "projector", "where": AT_512}, id="curves"),
    pytest.param("spectrum", {"panel": "projector", "where": AT_512}, id="spectrum"),
    pytest.param("histogram", {"where": AT_512 | {"projector": "128-{d}"}}, id="histogram"),
]
each_kind = pytest.mark.parametrize(("kind", "options"), KINDS)


def draw(kind: str, options: dict[str, Any]) -> Figure:
    return figure(ROWS, kind, **options)


@each_kind
def test_the_same_rows_give_the_same_bytes(kind: str, options: dict[str, Any]) -> None:
    assert figure_svg(ROWS, kind, **options) == figure_svg(figure_1(), kind, **options)


@each_kind
def test_no_text_is_cut_off_or_covers_another(kind: str, options: dict[str, Any]) -> None:
    check_texts(draw(kind, options).svg())


def check_texts(svg: str) -> None:
    root = ElementTree.fromstring(svg)
    width, height = (float(root.get(name, "")) for name in ("width", "height"))
    boxes = [*texts(root, 0, 0)]
    for _, left, top, right, bottom in boxes:
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
    for i, one in enumerate(boxes):
        for other in boxes[:i]:
            apart = (
                one[3] <= other[1] or other[3] <= one[1] or one[4] <= other[2] or other[4] <= one[2]
            )
            assert apart, (one, other)  # fmt: skip


def test_a_figure_with_long_texts() -> None:
    rows = [
        {"sweep": "s", "cell": {"method": f"a method with a long name {i}", "d": d}, "seed": 0,
         "scores": {"linear_top1": 0.9 + i / 100}}
        for i in range(7) for d in (1000, 1010, 1020, 64000)
    ]  # fmt: skip
    title = (
        "A title that is much longer than the only panel of this figure is wide, so it is broken"
    )
    drawn = figure(rows, "score", score="linear_top1", x="d", title=title)
    check_texts(drawn.svg())
    assert drawn.svg().count('class="head"') == 2


def texts(
    node: ElementTree.Element, x: float, y: float
) -> Iterator[tuple[str, float, float, float, float]]:
    """Each text with its estimated box: left, top, right, bottom."""
    moved = re.fullmatch(r"translate\((\S+) (\S+)\)", node.get("transform", "translate(0 0)"))
    assert moved is not None
    x, y = x + float(moved[1]), y + float(moved[2])
    if node.tag.endswith("}text"):
        size = {"head": 16.0, "title": 13.5}.get(node.get("class", ""), 12.0)
        text = node.text or ""
        wide = width_of(text, size)
        anchor = {"end": wide, "middle": wide / 2}.get(node.get("text-anchor", ""), 0.0)
        left, base = x + float(node.get("x", 0)) - anchor, y + float(node.get("y", 0))
        yield text, left, base - 0.75 * size, left + wide, base + 0.2 * size
    for child in node:
        yield from texts(child, x, y)


@each_kind
def test_a_figure_says_what_it_shows(kind: str, options: dict[str, Any]) -> None:
    drawn = draw(kind, options)
    labels = {panel.x_label for panel in drawn.panels} | {panel.y_label for panel in drawn.panels}
    assert labels - {""}
    assert re.search(r"\d+ runs; seeds 0 to 2; data: digits\.$", drawn.caption)
    assert drawn.title in drawn.svg().replace("</text>\n", "").replace("&amp;", "&")
    assert "http" not in drawn.svg().replace("http://www.w3.org/2000/svg", "")


def test_points_are_means_with_bars_of_one_deviation() -> None:
    drawn = draw("score", {"score": "linear_top1", "x": "d", "panel": "projector"})
    assert [panel.title for panel in drawn.panels] == ["d-d-d", "128-d", "512-512-d"]
    (series,) = [one for one in drawn.panels[1].series if one.name == "VICReg-exp"]
    runs = [
        100 * row["scores"]["linear_top1"]
        for row in ROWS
        if row["cell"] == {"method": "VICReg-exp", "projector": "128-{d}", "d": 128}
    ]
    mean, std = statistics.fmean(runs), statistics.stdev(runs)
    assert series.points[3][:4] == pytest.approx((128, mean, mean - std, mean + std), rel=1e-12)


def test_a_mean_never_mixes_cells() -> None:
    with pytest.raises(ValueError, match="9 runs of 3 seeds that differ in projector: make that"):
        figure_svg(ROWS, "score", score="linear_top1", x="d")
    with pytest.raises(ValueError, match="45 runs of 3 seeds that differ in projector, d: make"):
        figure_svg(ROWS, "curves")


def test_what_rows_lack_is_named() -> None:
    with pytest.raises(
        ValueError, match=r"rows with lidar, d, method, d = 7, but none of 225 rows is such"
    ):
        figure_svg(ROWS, "score", score="lidar", x="d", where={"d": 7})


def test_a_caption_counts_the_seeds_of_a_point() -> None:
    rows = [*methods_alone(["A", "B"])]
    drawn = figure([*rows[:2], rows[5]], "score", score="linear_top1", x="method")
    assert drawn.caption.startswith("Points: mean over 1 to 2 seeds; bars")
    assert drawn.caption.endswith("3 runs; seeds 0 to 2; data: digits.")
    drawn = figure(rows, "score", score="linear_top1", x="method", where={"seed": 1})
    assert drawn.caption.startswith("Each point is one run. Shown: seed = 1. 2 runs; seed 1; data")


def test_curves_leave_out_epochs_without_a_value() -> None:
    rows = figure_1(methods=["VICReg"], projectors=["128-{d}"], dimensions=[16])
    for row in rows:
        row["curves"]["val/probe_top1"][3] = None
    rows[0]["curves"]["val/probe_top1"][5] = 0.5
    drawn = figure(rows, "curves")
    (series,) = drawn.panels[0].series
    assert [point.x for point in series.points][:5] == [1, 3, 5, 9, 11]
    values = [100 * row["curves"]["val/probe_top1"][5] for row in rows]
    assert series.points[4].y == pytest.approx(statistics.fmean(values))
    assert "mean over 3 seeds" in drawn.caption


def test_a_spectrum_is_the_geometric_mean_relative_to_the_largest() -> None:
    rows = figure_1(methods=["VICReg"], projectors=["128-{d}"], dimensions=[16], seeds=[0, 1])
    rows[0]["arrays"]["spectrum"] = [10.0, 1.0, 1e-9]
    rows[1]["arrays"]["spectrum"] = [2.0, 0.02, 1.0]
    (series,) = figure(rows, "spectrum").panels[0].series
    second = math.sqrt(0.1 * 0.01)
    spread = math.exp(statistics.stdev([math.log(0.1), math.log(0.01)]))
    assert [point.x for point in series.points] == [1, 2]  # the third is below 1e-6
    assert series.points[1][1:4] == pytest.approx((second, second / spread, second * spread))


def test_a_histogram_is_the_mean_density_without_its_tails() -> None:
    rows = figure_1(methods=["VICReg"], projectors=["128-{d}"], dimensions=[16], seeds=[0, 1])
    histograms = [row["arrays"]["gram_histogram"] for row in rows]
    histograms[0] |= {"edges": [-1.0, 0.0, 1.0, 2.0, 9.0], "density": [0.25, 0.5, 0.25, 1e-5]}
    histograms[1] |= {"edges": [-1.0, 0.0, 1.0, 2.0, 9.0], "density": [0.35, 0.4, 0.25, 0.0]}
    (series,) = figure(rows, "histogram").panels[0].series
    std = statistics.stdev([0.25, 0.35])
    assert series.points[0][:4] == pytest.approx((-0.5, 0.3, 0.3 - std, 0.3 + std))
    assert [point.x for point in series.points] == [-0.5, 0.5, 1.5]
    histograms[1] |= {"edges": [-1.0, 1.0, 2.0], "density": [0.35, 0.3]}
    (series,) = figure(rows, "histogram").panels[0].series
    assert [point.y for point in series.points] == pytest.approx([1 / 3])  # one bin from -1 to 2


def test_a_run_in_two_cells_is_one_point() -> None:
    rows = figure_1(methods=["VICReg"], projectors=["512-512-{d}", "{d}-{d}-{d}"], dimensions=[512])
    drawn = figure(rows, "scatter", x="online_top1", y="linear_top1")
    assert len(drawn.panels[0].series[0].points) == 3
    assert drawn.panels[0].note.endswith("n = 3")


def test_a_reference_is_a_line_of_its_own() -> None:
    rows = [row for row in ROWS if row["cell"]["projector"] == "128-{d}"]
    drawn = figure(rows, "score", score="rankme", x="d", reference={"d": lambda d: d})
    line = drawn.panels[0].series[-1]
    assert [point[:4] for point in line.points] == [(d, d, d, d) for d in (16, 32, 64, 128, 512)]
    assert [one.name for one in drawn.legend][-1] == "d"
    assert drawn.panels[0].y.fraction(512) < 1


def test_colors_stand_out_from_the_paper() -> None:
    for colors, paper in ((LIGHT, PAPER), (DARK, DARK_PAPER)):
        assert min(contrast(color, paper) for color in colors) >= 3


def contrast(one: str, other: str) -> float:
    """Ratio of luminances (WCAG 2.2)."""
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def luminance(color: str) -> float:
    parts = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_lines_look_the_same_in_each_panel_and_figure() -> None:
    rows = [row for row in ROWS if row["cell"]["method"] != "VICReg"]
    order = ["VICReg", "SimCLR, tuned"]
    drawn = figure(rows, "score", score="linear_top1", x="d", panel="projector", order=order)
    for panel in drawn.panels:
        looks = {series.name: series.line for series in panel.series}
        assert looks == {
            "SimCLR, tuned": 1,
            "VICReg-exp": 2,
            "VICReg-ctr": 3,
            "SimCLR, original": 4,
        }


def test_lines_differ_without_their_color() -> None:
    lines = [look(index) for index in range(2 * len(LIGHT))]
    assert len({(line.color, line.dash) for line in lines}) == len(lines)
    assert len({(line.dash, line.marker, line.hollow) for line in lines}) == len(lines)


def test_no_legend_of_one_line() -> None:
    rows = [*methods_alone()]
    assert figure(rows, "score", score="linear_top1", x="method", line=None).legend == []
    assert [one.name for one in draw(*KINDS[0].values).legend] == [
        *("VICReg", "VICReg-exp", "VICReg-ctr", "SimCLR, original", "SimCLR, tuned")
    ]


def test_labels_are_text_whatever_they_hold() -> None:
    rows = [row | {"cell": {"method": '<b a="1">&'}} for row in methods_alone(["A"])]
    root = ElementTree.fromstring(figure_svg(rows, "score", score="linear_top1", x="method"))
    assert '<b a="1">&' in [text for text, *_ in texts(root, 0, 0)]


def test_markers_of_a_band_are_few_and_apart() -> None:
    place = Place(0, 0, 600, 100, Scale(0, 9, ()), Scale(0, 1, ()))
    series = Series("a", [Point(x, 0.5, 0.5, 0.5) for x in (0, 0.1, 0.2, 7, 8, 8.1, 9)], 0)
    found = re.findall(r'transform="translate\((\S+) 50\)"', bands(series, place))
    assert [float(x) for x in found] == pytest.approx([0, 466.7, 533.3, 600], abs=0.1)


def test_places_of_values() -> None:
    place = Place(10, 20, 110, 220, Scale(0, 10, ()), linear_scale([0, 4]))
    assert (place.x(2.5), place.y(0), place.y(place.y_scale.high)) == (35, 220, 20)
    assert Point(1, 2, 1, 3).note == ""
