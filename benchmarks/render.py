"""Write the tables of docs/benchmarks.md and draw its plots, from the figures in docs/benchmarks/.

Measures nothing: the other scripts of this folder write the figures.
"""

import argparse
import json
import math
import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from targets import reached

ROOT = Path(__file__).parents[1]
FIGURES = ROOT / "docs" / "benchmarks"
PAGE = ROOT / "docs" / "benchmarks.md"
MISSING = "*Not measured yet.*"

Row = dict[str, Any]
Rows = list[Row]
MACHINE = ("processor", "gpu", "threads", "versions")


def digits(value: float) -> str:
    """Format with three significant digits and no exponent."""
    return f"{value:,.{max(0, 2 - math.floor(math.log10(abs(value))))}f}" if value else "0"


def plain(value: Any) -> str:
    """Format a word, an integer, or a float with three digits."""
    if isinstance(value, float):
        return digits(value) if abs(value) >= 0.001 or not value else f"{value:.0e}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def seconds(value: float) -> str:
    """Format seconds; below one as milliseconds."""
    return f"{digits(value)} s" if value >= 1 else f"{digits(1000 * value)} ms"


def size(value: float) -> str:
    """Format bytes in the largest unit that gives at least one."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if value >= unit:
            return f"{digits(value / unit)} {name}"
    return f"{value:.0f} B"


def times(value: float) -> str:
    """Format a ratio."""
    return f"{digits(value)}x"


# Keys whose heading differs from the key, or whose unit is not part of it.
COLUMNS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "what": ("", plain),
    "who": ("", plain),
    "n": ("N", plain),
    "d": ("D", plain),
    "note": ("", plain),
    **{name: (name, seconds) for name in ("ours", "lightly", "textbook", "dense", "floor")},
    **{name: (name, seconds) for name in ("bolts", "timm", "torch_loop", "kornia", "pil")},
    "of_floor": ("ours / floor", times),
    "of_allowance": ("ours / allowance", times),
    "products": ("products / floor's", times),
}


def column(key: str) -> tuple[str, Callable[[Any], str]]:
    """Return heading and format of a key, from :data:`COLUMNS` or from its prefix and suffix."""
    if key in COLUMNS:
        return COLUMNS[key]
    if key.startswith("times_"):
        return f"{key.removeprefix('times_')} / ours".replace("_", " "), times
    for ending, form in (("_bytes", size), ("_seconds", seconds), ("_ratio", times)):
        if key.endswith(ending):
            name = key.removesuffix(ending).replace("_", " ")
            return f"{name} memory" if form is size else name, form
    return key.replace("_", " "), {"seconds": seconds, "bytes": size, "ratio": times}.get(
        key, plain
    )


class View(NamedTuple):
    """A table that shows a file in another form."""

    source: str
    columns: str = ""
    """The keys, in order; all of the rows' if empty."""
    rows: Callable[[Rows], Rows] = list


def machine_of(row: Row) -> Row:
    """Return the keys of a row that describe the machine."""
    return {key: row[key] for key in MACHINE if key in row}


def by_size(grows: str) -> Callable[[Rows], Rows]:
    """Return a table with a row per curve and a column per size: time and memory."""

    def rows(points: Rows) -> Rows:
        curves: dict[tuple[str, str], Row] = {}
        for point in points:
            if point["grows"] == grows:
                curve = {"what": point["what"], "who": point["who"], **machine_of(point)}
                row = curves.setdefault((point["what"], point["who"]), curve)
                cell = point.get("note") or f"{seconds(point['seconds'])}, {size(point['bytes'])}"
                row[f"{grows} = {point[grows.lower()]:,}"] = cell
        return list(curves.values())

    return rows


def slopes(points: Rows) -> Rows:
    """Return the exponents of each curve over its last three sizes."""
    curves: dict[tuple[str, str], Rows] = {}
    for point in points:
        curves.setdefault((point["what"], point["who"]), []).append(point)
    rows = []
    for (what, who), curve in curves.items():
        row = {"what": what, "who": who, **machine_of(curve[0])}
        for grows in ("N", "D"):
            last = [p for p in curve if p["grows"] == grows and "seconds" in p][-3:]
            for key, word in (("seconds", "time"), ("bytes", "memory")):
                if len(last) > 1:
                    row[f"{word} by {grows}"] = slope([(p[grows.lower()], p[key]) for p in last])
        rows.append(row)
    return rows


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Return the exponent of the power law through points, by least squares of logarithms."""
    logs = [(math.log(a), math.log(b)) for a, b in points]
    x, y = (sum(axis) / len(logs) for axis in zip(*logs, strict=True))
    return sum((a - x) * (b - y) for a, b in logs) / sum((a - x) ** 2 for a, _ in logs)


def noise(rows: Rows) -> Rows:
    """Return the spread of the rounds, for short and for long times."""
    groups = {
        "under 5 ms": [row for row in rows if row["ours"] < 5e-3],
        "over 5 ms": [row for row in rows if row["ours"] >= 5e-3],
    }
    return [
        {
            "what": what,
            "figures": len(group),
            "median": f"{statistics.median(row['spread'] for row in group):.1%}",
            "largest": f"{max(row['spread'] for row in group):.1%}",
        }
        for what, group in groups.items()
        if group
    ]


def beside(rows: Rows) -> Rows:
    """Put times and sizes into one column, beside the reference and its value."""

    def measured(row: Row, prefix: str) -> str:
        key = f"{prefix}seconds"
        if key in row:
            return seconds(row[key])
        return size(row[f"{prefix}bytes"]) if f"{prefix}bytes" in row else ""

    return [
        {
            "what": row["what"],
            "takes": measured(row, ""),
            "beside": row.get("against", ""),
            "which takes": measured(row, "against_"),
            **{key: row[key] for key in ("ratio",) if key in row},
            **machine_of(row),
        }
        for row in rows
    ]


_TIME = (
    "what n d dtype ours lightly textbook times_lightly times_textbook floor of_floor products note"
)
_MEMORY = (
    "what n d dtype ours_bytes lightly_bytes textbook_bytes of_allowance textbook_error "
    "lightly_error"
)
VIEWS = {"startup": View("startup", "", beside)} | {
    name + device: View(source + device, columns, rows)
    for device in ("", "-cuda")
    for name, source, columns, rows in (
        ("criteria", "criteria", _TIME, list),
        ("criteria_memory", "criteria", _MEMORY, list),
        ("noise", "criteria", "", noise),
        ("growth_n", "growth", "", by_size("N")),
        ("growth_d", "growth", "", by_size("D")),
        ("slopes", "growth", "", slopes),
    )
}


def table(name: str, rows: Iterable[Row]) -> str:
    """Render rows as the Markdown table ``name``, with the machine under it."""
    view = VIEWS.get(name, View(name))
    rows = view.rows(list(rows))
    keys = [key for row in rows for key in row if key not in MACHINE]
    shown = [
        key
        for key in view.columns.split() or dict.fromkeys(keys)
        if any(row.get(key, "") != "" for row in rows)
        and not (key == "dtype" and {row[key] for row in rows} == {"float32"})
    ]
    heads, forms = zip(*map(column, shown), strict=True)
    words = [all(isinstance(row.get(key, ""), str) for row in rows) for key in shown]
    cells = [
        [form(row[key]) if key in row else "" for key, form in zip(shown, forms, strict=True)]
        for row in rows
    ]
    lines = [heads, ["---" if word else "---:" for word in words], *cells]
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"{text}\n\n{measured_on(rows)}".strip()


def measured_on(rows: Rows) -> str:
    """Describe the machine in a sentence; lists all values if rows differ."""
    found = {key: sorted({row[key] for row in rows if key in row}) for key in MACHINE}
    said = {key: " or ".join(values) for key, values in found.items() if values}
    if "threads" in said:
        said["threads"] += " threads" if said["threads"] != "1" else " thread"
    return f"{', '.join(said.values())}." if said else ""


def read(name: str, figures: Path) -> Rows:
    """Read the rows of a file; none if it does not exist."""
    path = figures / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


PLOTS = {"growth_n": "Time and memory against N", "growth_d": "Time and memory against D"}


def render(page: Path = PAGE, figures: Path = FIGURES) -> None:
    """Write each table of the page between its markers, below its plot if it has one."""

    def content(match: re.Match[str]) -> str:
        name = match[1]
        if name == "targets":
            rows = reached(lambda source: read(source, figures))
        else:
            rows = read(VIEWS[name].source if name in VIEWS else name, figures)
        text = table(name, rows) if rows else MISSING
        if (figures / f"{name}.svg").is_file():
            text = f"![{PLOTS[name]}]({figures.name}/{name}.svg)\n\n{text}"
        return f"<!-- table {name} -->\n{text}\n<!-- end {name} -->"

    text = page.read_text()
    text = re.sub(r"<!-- table ([\w-]+) -->.*?<!-- end \1 -->", content, text, flags=re.DOTALL)
    page.write_text(text)


def plot(figures: Path = FIGURES) -> list[Path]:
    """Draw time and memory against N and against D, as ``growth_n.svg`` and ``growth_d.svg``."""
    import matplotlib.pyplot as plt

    plt.rcParams.update({"svg.hashsalt": "growth", "font.size": 9})
    points = [point for point in read("growth", figures) if "seconds" in point]
    names = list(dict.fromkeys(point["what"] for point in points))
    written = []
    for grows in ("N", "D") if points else ():
        figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
        for axis, (key, label, unit) in zip(
            axes, (("seconds", "time / s", 1), ("bytes", "extra memory / MiB", 2**20)), strict=True
        ):
            for who, style in (("ours", "-"), ("lightly", "--")):
                for number, name in enumerate(names):
                    curve = [
                        (point[grows.lower()], point[key] / unit)
                        for point in points
                        if (point["what"], point["who"], point["grows"]) == (name, who, grows)
                    ]
                    if curve:
                        label_of = name if who == "ours" else f"{name}, lightly"
                        style_of = {"color": f"C{number}", "linestyle": style, "marker": "."}
                        axis.plot(*zip(*curve, strict=True), label=label_of, **style_of)
            axis.set_xscale("log", base=2)
            axis.set_yscale("log")
            axis.set_xlabel(f"{grows}, at {'D' if grows == 'N' else 'N'} = 256")
            axis.set_ylabel(label)
            axis.grid(alpha=0.3)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center")
        written.append(figures / f"growth_{grows.lower()}.svg")
        figure.savefig(written[-1], metadata={"Date": None})
        plt.close(figure)
    return written


def plot_for_readme(figures: Path = FIGURES) -> Path:
    """Draw the time of VICReg and Barlow Twins against D, ours and lightly's, as ``speed.svg``.

    The ratio stands at the largest D that both have. The background is opaque, for dark pages.
    """
    import matplotlib.pyplot as plt

    plt.rcParams.update({"svg.hashsalt": "speed", "font.size": 10})
    curves: dict[tuple[str, str], dict[int, float]] = {}
    for point in read("growth", figures):
        if point["grows"] == "D" and "seconds" in point:
            curves.setdefault((point["what"], point["who"]), {})[point["d"]] = point["seconds"]
    figure, axis = plt.subplots(figsize=(7.2, 3.6), layout="constrained", facecolor="white")
    for name, color, marker in (("VICReg", "#0072b2", "o"), ("Barlow Twins", "#d55e00", "s")):
        ours, peer = curves[name, "ours"], curves[name, "lightly"]
        for who, curve, line in (("duality_ssl", ours, "-"), ("lightly", peer, "--")):
            style = {"color": color, "marker": marker, "markersize": 4.5, "linestyle": line}
            axis.plot(*zip(*curve.items(), strict=True), label=f"{name}, {who}", **style)
        last = max(ours.keys() & peer.keys())
        axis.vlines(last, ours[last], peer[last], color=color, linewidth=0.8, alpha=0.6)
        ratio = f" {peer[last] / ours[last]:.0f}x"
        middle = math.sqrt(ours[last] * peer[last])
        axis.text(last, middle, ratio, color=color, weight="bold", va="center")
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xticks(sizes := sorted(curves["VICReg", "ours"]), [f"{size:,}" for size in sizes])
    axis.set_yticks(marks := [1e-3, 1e-2, 1e-1, 1, 10], ["1 ms", "10 ms", "100 ms", "1 s", "10 s"])
    axis.set_ylim(marks[0], marks[-1])
    axis.set_xlim(right=1.5 * sizes[-1])
    axis.minorticks_off()
    axis.set_xlabel("embedding dimension D, batch of 256")
    axis.set_ylabel("forward and backward pass")
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(loc="upper left", frameon=False)
    path = figures / "speed.svg"
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    return path


if __name__ == "__main__":
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    plot()
    plot_for_readme()
    render()
