"""Marks of a figure as SVG text: elements, and lines, bands, points and dots of a series."""

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

from duality_ssl.reports.scales import Scale
from duality_ssl.reports.style import LIGHT, Look, look

WIDTH_OF_A_LETTER = 0.58  # of the font size; an average of wide fonts


class Point(NamedTuple):
    """A value at ``x``, its range, and the text that is shown when the mouse is over it."""

    x: float
    y: float
    low: float
    high: float
    note: str = ""


class Place(NamedTuple):
    """The rectangle of an axis pair, in pixels, with both scales."""

    left: float
    top: float
    right: float
    bottom: float
    x_scale: Scale
    y_scale: Scale

    def x(self, value: float) -> float:
        """Return the horizontal place of a value."""
        return self.left + self.x_scale.fraction(value) * (self.right - self.left)

    def y(self, value: float) -> float:
        """Return the vertical place of a value."""
        return self.bottom - self.y_scale.fraction(value) * (self.bottom - self.top)


class Series(NamedTuple):
    """Points of one line; ``line`` numbers its look, ``shift`` moves its points, in pixels."""

    name: str
    points: Sequence[Point]
    line: int
    shift: float = 0.0


def width_of(text: str, size: float = 12) -> float:
    """Return about how wide a text is, in pixels."""
    return len(text) * size * WIDTH_OF_A_LETTER


def number(value: float) -> str:
    """Format a coordinate with one decimal at most."""
    text = f"{value:.1f}".removesuffix(".0")
    return "0" if text == "-0" else text


def element(name: str, content: str = "", **attributes: str | float) -> str:
    """Return an SVG element; ``_`` in the name of an attribute stands for ``-``."""
    words = [
        f' {key.rstrip("_").replace("_", "-")}="{escape(_value(value))}"'
        for key, value in attributes.items()
        if value != ""
    ]
    return (
        f"<{name}{''.join(words)}>{content}</{name}>" if content else f"<{name}{''.join(words)}/>"
    )


def text(content: str, x: float, y: float, **attributes: str | float) -> str:
    """Return a line of text."""
    return element("text", escape(content, quote=False), x=x, y=y, **attributes)


def lines(series: Series, place: Place) -> str:
    """Return a line through points, with a marker and a vertical error bar at each."""
    spots = [(place.x(point.x) + series.shift, point) for point in series.points]
    path = _path((x, place.y(point.y)) for x, point in spots)
    bars = [_bar(x, place.y(point.low), place.y(point.high)) for x, point in spots if _has(point)]
    marks = [_marker(x, place.y(point.y), look(series.line), point.note) for x, point in spots]
    return colored(_line(path, look(series.line)) + "".join(bars + marks), series.line)


def bands(series: Series, place: Place) -> str:
    """Return a line in a band, with a few markers that tell it from others in print."""
    spots = [(place.x(point.x), point) for point in series.points]
    upper = [(x, place.y(point.high)) for x, point in spots]
    lower = [(x, place.y(point.low)) for x, point in reversed(spots)]
    band = element("path", d=f"{_path(upper + lower)}Z", class_="band")
    gap = (place.right - place.left) / 6
    due, marks = place.left + gap * (series.line * 0.38 % 1), list[str]()
    for x, point in spots:
        if x >= due:
            marks.append(_marker(x, place.y(point.y), look(series.line), point.note))
            due += gap * max(1, math.ceil((x - due) / gap))
    curve = _line(_path((x, place.y(point.y)) for x, point in spots), look(series.line))
    wide = any(_has(point) for _, point in spots)
    return colored(band * wide + curve + "".join(marks), series.line)


def points(series: Series, place: Place) -> str:
    """Return a marker at each point."""
    marks = [
        _marker(place.x(point.x), place.y(point.y), look(series.line), point.note)
        for point in series.points
    ]
    return colored("".join(marks), series.line)


def dots(series: Series, place: Place) -> str:
    """Return a marker in the row ``x`` of each point, with a horizontal error bar."""
    marks = []
    for point in series.points:
        x, y = place.x(point.y), place.y(point.x) + series.shift
        low, high = place.x(point.low), place.x(point.high)
        ends = f"M{number(low)} {number(y)}H{number(high)}"
        ends += "".join(f"M{number(end)} {number(y - 3)}v6" for end in (low, high))
        marks.append(element("path", d=ends, class_="bar") * _has(point))
        marks.append(_marker(x, y, look(series.line), point.note))
    return colored("".join(marks), series.line)


def sample(index: int, line: bool) -> str:
    """Return the piece of a line that stands in the legend, 30 x 12 pixels."""
    path = _line("M1 6H29", look(index)) if line else ""
    return colored(path + _marker(15, 6, look(index), ""), index)


def colored(content: str, index: int) -> str:
    """Return marks in the color of a line; the attribute is for readers without CSS variables."""
    color = look(index).color
    return element("g", content, class_=f"c{color}", color=LIGHT[color])


def _value(value: str | float) -> str:
    return value if isinstance(value, str) else number(value)


def _has(point: Point) -> bool:
    """Whether a point has a range that can be drawn."""
    return point.high > point.low


def _path(spots: Iterable[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{number(x)} {number(y)}" for x, y in spots)


def _line(path: str, style: Look) -> str:
    return element("path", d=path, class_="line", stroke_dasharray=style.dash)


def _bar(x: float, low: float, high: float) -> str:
    caps = "".join(f"M{number(x - 3)} {number(end)}h6" for end in (low, high))
    return element("path", d=f"M{number(x)} {number(low)}V{number(high)}{caps}", class_="bar")


def _marker(x: float, y: float, style: Look, note: str) -> str:
    tip = element("title", escape(note, quote=False)) if note else ""
    move = f"translate({number(x)} {number(y)})"
    return element(
        "path", tip, d=style.marker, transform=move, class_="hollow" if style.hollow else "full"
    )
