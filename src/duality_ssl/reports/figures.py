"""A figure: panels that share a legend, as one SVG file or as part of an HTML page."""

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from duality_ssl.reports import marks
from duality_ssl.reports.marks import Place, Series, element, text, width_of
from duality_ssl.reports.scales import Scale
from duality_ssl.reports.style import PAPER, STYLE

Mark = Callable[[Series, Place], str]

COLUMNS = 3
PADDING = 16
GAP = 20
NAMESPACE = "http://www.w3.org/2000/svg"


@dataclass(frozen=True)
class Panel:
    """One pair of axes with the series on it."""

    title: str
    series: Sequence[Series]
    x_label: str
    y_label: str
    x: Scale
    y: Scale
    mark: Mark
    note: str = ""

    @property
    def height(self) -> float:
        """Pixels: fixed, or a row for each label of dots."""
        header = 20 * bool(self.title) + 18 * bool(self.note) + 18 * bool(self.y_label)
        return header + (62 + 30 * len(self.y.ticks) if self.mark is marks.dots else 250)

    def draw(self, width: float) -> str:
        """Return the panel as SVG text of a width in pixels, from the origin."""
        heads = ((self.title, "title"), (self.note, "muted"), (self.y_label, "muted"))
        parts, top = [], 0.0
        for content, kind in heads:
            if content:
                top += 18
                parts.append(text(content, 4, top - 4, class_=kind))
        labels = [label for _, label in self.y.ticks]
        left = 12 + max(map(width_of, labels), default=0)
        right = width - max(12.0, width_of(self.x.ticks[-1][1]) / 2)
        place = Place(left, top + 12, right, self.height - 42, self.x, self.y)
        parts += [_grid(place), _ticks(place)]
        parts.append(text(self.x_label, (left + right) / 2, self.height - 5, text_anchor="middle"))
        # lines that were drawn first stand in front
        parts += [self.mark(series, place) for series in reversed(self.series)]
        return "".join(parts)


@dataclass(frozen=True)
class Figure:
    """Panels with a title, a caption and a common legend.

    Args:
        name: Stem of the file.
        title: What is shown, a few words.
        caption: Sentences: what the marks are, how many runs and seeds, of which data.
        panels: At least one.
    """

    name: str
    title: str
    caption: str
    panels: Sequence[Panel]

    @property
    def legend(self) -> list[Series]:
        """One series of each name; none if there is one name only."""
        named = {series.name: series for panel in self.panels for series in panel.series}
        return sorted(named.values(), key=lambda series: series.line) if len(named) > 1 else []

    @property
    def panel_width(self) -> float:
        """Pixels: a panel that is alone is wider."""
        return 520 if len(self.panels) == 1 else 350

    def svg(self) -> str:
        """Return a file: title, legend and panels, legible on light and on dark pages."""
        columns = min(COLUMNS, len(self.panels))
        inner = columns * self.panel_width + (columns - 1) * GAP
        lines = textwrap.wrap(self.title, int(inner / width_of("m", 16)))
        parts, y = [], float(PADDING)
        for line in lines:
            parts.append(text(line, PADDING + 4, y + 14, class_="head"))
            y += 22
        legend, height = self._legend_rows(inner, y + 6)
        parts.append(legend)
        y += height + 10
        for first in range(0, len(self.panels), columns):
            row = self.panels[first : first + columns]
            for column, panel in enumerate(row):
                x = PADDING + column * (self.panel_width + GAP)
                move = f"translate({marks.number(x)} {marks.number(y)})"
                parts.append(element("g", panel.draw(self.panel_width), transform=move))
            y += max(panel.height for panel in row) + GAP
        size = (inner + 2 * PADDING, y - GAP + PADDING)
        paper = element("rect", width="100%", height="100%", class_="paper", fill=PAPER)
        content = element("style", STYLE) + paper + "".join(parts)
        return _svg(content, size, self.title, xmlns=NAMESPACE).replace("<g ", "\n<g ") + "\n"

    def html(self) -> str:
        """Return an element for a page with `style.STYLE`: panels stand side by side, or below."""
        legend = "".join(
            f"<li>{_svg(marks.sample(series.line, self._has_lines), (30, 12), '')}"
            f"{escape(series.name)}</li>"
            for series in self.legend
        )
        drawn = "\n".join(
            _svg(
                panel.draw(self.panel_width),
                (self.panel_width, panel.height),
                f"{self.title} {panel.title}".strip(),
            )
            for panel in self.panels
        )
        return (
            f'<figure id="{self.name}"><h3>{escape(self.title)}</h3>'
            + f'<ul class="legend">{legend}</ul>' * bool(legend)
            + f'\n<div class="panels">\n{drawn}\n</div>\n'
            f"<figcaption>{escape(self.caption)}</figcaption></figure>\n"
        )

    def markdown(self) -> str:
        """Return the image beside the page, with the caption below."""
        return f"![{self.title}]({self.name}.svg)\n\n*{self.caption}*\n"

    @property
    def _has_lines(self) -> bool:
        return self.panels[0].mark in (marks.lines, marks.bands)

    def _legend_rows(self, width: float, y: float) -> tuple[str, float]:
        """The legend in rows of a width, and its height."""
        parts, x, row = [], 0.0, 0
        for series in self.legend:
            needed = 36 + width_of(series.name) + 20
            if x > 0 and x + needed > width:
                x, row = 0.0, row + 1
            move = f"translate({marks.number(PADDING + 4 + x)} {marks.number(y + 20 * row)})"
            entry = marks.sample(series.line, self._has_lines) + text(series.name, 36, 10)
            parts.append(element("g", entry, transform=move))
            x += needed
        return "".join(parts), 20.0 * (row + 1) + 4 if parts else 0.0


def _svg(content: str, size: tuple[float, float], label: str, **attributes: str) -> str:
    """The root of an image; without a label it is an ornament."""
    width, height = size
    described = {"role": "img", "aria_label": label} if label else {"aria_hidden": "true"}
    box = f"0 0 {marks.number(width)} {marks.number(height)}"
    return element(
        "svg",
        content,
        **attributes,
        class_="figure",
        viewBox=box,
        width=width,
        height=height,
        **described,
    )


def _grid(place: Place) -> str:
    """Lines across at the ticks, and the axis below."""
    across = "".join(
        f"M{marks.number(place.left)} {marks.number(place.y(tick))}H{marks.number(place.right)}"
        for tick, _ in place.y_scale.ticks
    )
    base = f"M{marks.number(place.left)} {marks.number(place.bottom)}H{marks.number(place.right)}"
    return element("path", d=across, class_="grid") + element("path", d=base, class_="axis")


def _ticks(place: Place) -> str:
    """Ticks and their labels, of which those that would touch another are left out."""
    parts = [
        text(label, place.left - 6, place.y(tick) + 4, text_anchor="end", class_="muted")
        for tick, label in place.y_scale.ticks
    ]
    free = -1.0
    for tick, label in place.x_scale.ticks:
        x, half = place.x(tick), width_of(label) / 2
        at = f"M{marks.number(x)} {marks.number(place.bottom)}v4"
        parts.append(element("path", d=at, class_="axis"))
        if x - half >= free:
            parts.append(text(label, x, place.bottom + 17, text_anchor="middle", class_="muted"))
            free = x + half + 4
    return "".join(parts)
