"""Rows of scores: what they hold by name, their groups, and the spread over seeds."""

import math
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from duality_ssl.reports.names import is_accuracy, label

Row = Mapping[str, Any]
Where = Mapping[str, Any] | None
ACCURACIES = ("few_label_top1", "linear_top1", "knn_top1", "online_top1")
LABEL_FREE = ("rankme", "lidar", "alpha_req")


def measure(row: Row, name: str) -> Any:
    """Return what a row holds under a name, or None; accuracies in percent.

    Args:
        row: A row, as `duality_ssl.sweeps.sweep` writes them.
        name: An axis of the cell, a score, a key of ``curves`` or ``arrays``, a dotted option such
            as ``data.batch_size``, ``parameters.projector`` or ``parameters.backbone``, or a key of
            the row itself.
    """
    for part in ("cell", "scores", "curves", "arrays", "options"):
        if name in row.get(part, {}):
            value = row[part][name]
            return 100 * value if part == "scores" and is_accuracy(name) else value
    group, _, key = name.partition(".")
    return row.get(group, {}).get(key) if group == "parameters" and key else row.get(name)


def holds(row: Row, name: str) -> bool:
    """Say whether a row holds a name; a number that is not finite counts as missing."""
    value = measure(row, name)
    return value is not None and (not isinstance(value, float) or math.isfinite(value))


def usable(rows: Iterable[Row], where: Where, *names: str | None) -> list[Row]:
    """Return the rows of finished runs that hold all names, and the values of ``where``.

    Raises:
        ValueError: If there are none.
    """
    rows = list(rows)
    needed = [name for name in names if name is not None]
    found = [
        row
        for row in select(rows, where or {})
        if "error" not in row and all(holds(row, name) for name in needed)
    ]
    if not found:
        fixed = "".join(f", {name} = {value}" for name, value in (where or {}).items())
        raise ValueError(
            f"Expected rows with {', '.join(needed)}{fixed}, but none of {len(rows)} rows is such: "
            "name scores and axes that the rows have."
        )
    return found


def distinct(rows: Iterable[Row]) -> list[Row]:
    """Return one row for each run: a run that is two cells of a grid has two rows of one key."""
    return list({(row.get("key", id(row)), row.get("seed")): row for row in rows}.values())


def select(rows: Iterable[Row], where: Mapping[str, Any]) -> list[Row]:
    """Return the rows that have the given values under the given names."""
    return [row for row in rows if all(measure(row, name) == where[name] for name in where)]


def values(rows: Iterable[Row], name: str) -> list[Any]:
    """Return the values that rows have under a name: numbers sorted, labels as they first occur."""
    found = [measure(row, name) for row in rows]
    found = list(dict.fromkeys(value for value in found if value is not None))
    return sorted(found) if all(map(is_number, found)) else found


def axes(rows: Sequence[Row]) -> list[str]:
    """Return the axes of the grid: the keys of the cells that have more than one value."""
    names = dict.fromkeys(name for row in rows for name in row.get("cell", {}))
    return [name for name in names if len({measure(row, name) for row in rows}) > 1]


def is_number(value: object) -> bool:
    """Say whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def grouped(rows: Iterable[Row], names: Sequence[str]) -> dict[tuple[Any, ...], list[Row]]:
    """Return rows by their values under some names, in the order of their first appearance."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(measure(row, name) for name in names), []).append(row)
    return groups


def split(rows: Sequence[Row], name: str | None) -> dict[str, list[Row]]:
    """Return rows by the label of their value under a name; one group if there is no name."""
    if name is None:
        return {"": list(rows)}
    return {label(value): select(rows, {name: value}) for value in values(rows, name)}


class Spread(NamedTuple):
    """Mean and standard deviation (of a sample, ``n - 1``; zero of a single value)."""

    mean: float
    std: float
    n: int


def spread(numbers: Sequence[float]) -> Spread:
    """Return the mean and the standard deviation of at least one number."""
    std = statistics.stdev(numbers) if len(numbers) > 1 else 0.0
    return Spread(statistics.fmean(numbers), std, len(numbers))


def spread_over_seeds(rows: Iterable[Row], score: str) -> Spread | None:
    """Return the mean and deviation of a score over the seeds of one cell; None without it."""
    scored = one_a_seed([row for row in rows if is_number(measure(row, score))], score)
    return spread([measure(row, score) for row in scored]) if scored else None


def one_a_seed(rows: Sequence[Row], score: str) -> Sequence[Row]:
    """Return the rows.

    Raises:
        ValueError: If two have the same seed: then they are runs of different cells.
    """
    seeds = {row.get("seed") for row in rows}
    if len(seeds) < len(rows):
        raise ValueError(
            f"Expected one run a seed for each mean of {score}, but got {len(rows)} runs of "
            f"{len(seeds)} seeds that differ in {', '.join(axes(rows)) or 'none of their axes'}: "
            "make that an axis of the figure, or fix it with `where`."
        )
    return rows


def count_of_seeds(counts: Collection[int]) -> str:
    """Return how many seeds means are over: ``3``, or ``2 to 3`` where some runs are missing."""
    low, high = min(counts), max(counts)
    return str(high) if low == high else f"{low} to {high}"


def provenance(rows: Iterable[Row]) -> str:
    """Return a sentence that says how many runs these are, of which seeds, of which data."""
    runs = distinct(rows)
    seeds = values(runs, "seed")
    words = [f"{len(runs)} run{'s' * (len(runs) != 1)}"]
    if seeds:
        consecutive = len(seeds) > 2 and seeds == list(range(seeds[0], seeds[-1] + 1))
        listed = f"{seeds[0]} to {seeds[-1]}" if consecutive else ", ".join(map(str, seeds))
        words.append(f"seed{'s' * (len(seeds) > 1)} {listed}")
    if data := data_sets(runs):
        words.append(f"data: {', '.join(data)}")
    return "; ".join(words) + "."


def data_sets(rows: Iterable[Row]) -> list[str]:
    """Return the names of the data sets: of the configs in a folder ``data``."""
    configs = (path.removesuffix(".yaml") for row in rows for path in row.get("configs", ()))
    parts = (path.split("/") for path in configs)
    return list(dict.fromkeys(part[-1] for part in parts if part[-2:-1] == ["data"]))
