"""The look of lines: colors, dashes and markers that also differ in print and to the color-blind.

Colors are those of Okabe and Ito (*Color universal design*, 2008), dimmed or lightened where the
background asks for it. Each is a CSS variable with one value for light and one for dark.
"""

import re
from typing import NamedTuple

# blue, vermilion, bluish green, reddish purple, orange, sky blue, black
LIGHT = ("#0072b2", "#d55e00", "#009e73", "#b8578f", "#bf8300", "#3a9ad9", "#1c2024")
DARK = ("#4aa3df", "#ff8a3c", "#2cc79b", "#e39ac4", "#f0b429", "#8fd0f7", "#e8eaed")
DASHES = ("", "7 3", "2 2.5", "9 3 2 3")
MARKERS = (
    "M4 0A4 4 0 1 1-4 0A4 4 0 1 1 4 0Z",
    "M-3.5-3.5H3.5V3.5H-3.5Z",
    "M0-4.8L4.4 3.2H-4.4Z",
    "M0-5L5 0L0 5L-5 0Z",
    "M0 4.8L4.4-3.2H-4.4Z",
    "M-1.6-4.6H1.6V-1.6H4.6V1.6H1.6V4.6H-1.6V1.6H-4.6V-1.6H-1.6Z",
    "M0-5L4.8-1.5L2.9 4.1H-2.9L-4.8-1.5Z",
)
FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'


class Look(NamedTuple):
    """Color, dash pattern and marker of a line; every second marker is hollow."""

    color: int
    dash: str
    marker: str
    hollow: bool


def look(index: int) -> Look:
    """Return the look of the line of this index; the first 28 differ in color or dash pattern."""
    color, turn = index % len(LIGHT), index // len(LIGHT)
    dash = DASHES[(color + turn) % len(DASHES)]
    return Look(color, dash, MARKERS[(color + 2 * turn) % len(MARKERS)], hollow=index % 2 == 1)


def _variables(ink: str, muted: str, grid: str, paper: str, colors: tuple[str, ...]) -> str:
    named = {"ink": ink, "muted": muted, "grid": grid, "paper": paper}
    named |= {f"c{index}": color for index, color in enumerate(colors)}
    return "".join(f"--{name}:{value};" for name, value in named.items())


PAPER, DARK_PAPER = "#ffffff", "#15191e"
VARIABLES = (
    f":root{{color-scheme:light dark;{_variables('#1c2024', '#5b646e', '#e3e6ea', PAPER, LIGHT)}}}"
    "@media screen and (prefers-color-scheme:dark){:root{"
    f"{_variables('#e8eaed', '#a3acb6', '#333a43', DARK_PAPER, DARK)}}}}}"
)
FIGURE = f"""
svg.figure{{font-family:{FONT};font-size:12px;color:var(--ink)}}
.figure text{{fill:var(--ink)}}
.figure .muted{{fill:var(--muted)}}
.figure .title{{font-size:13.5px;font-weight:600}}
.figure .head{{font-size:16px;font-weight:600}}
.figure .grid{{stroke:var(--grid)}}
.figure .axis{{stroke:var(--muted)}}
.figure .paper{{fill:var(--paper)}}
.figure .line{{fill:none;stroke:currentColor;stroke-width:1.9;stroke-linejoin:round}}
.figure .bar{{fill:none;stroke:currentColor;stroke-width:1.2}}
.figure .band{{fill:currentColor;fill-opacity:.15;stroke:none}}
.figure .full{{fill:currentColor;stroke:var(--paper);stroke-width:1}}
.figure .hollow{{fill:var(--paper);stroke:currentColor;stroke-width:1.7}}
""" + "".join(f".figure .c{index}{{color:var(--c{index})}}" for index in range(len(LIGHT)))
STYLE = re.sub(r"\n", "", VARIABLES + FIGURE)
