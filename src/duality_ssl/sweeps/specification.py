"""The file of a sweep, read strictly: axes of cells, options of every run, and what is tuned."""

import itertools
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from duality_ssl.registry import did_you_mean
from duality_ssl.runs.config import read_config

Options = dict[str, Any]
"""Options of the command by their dotted names."""
Label = str | int | float | bool
Cell = dict[str, Label]
"""One label for each axis."""

_KEYS = ("configs", "seeds", "options", "evaluation", "axes", "tune", "slurm")
_TUNE_KEYS = ("at", "seed", "validation", "score")
_NAME = re.compile(r"\{([\w.-]+)\}")


@dataclass(frozen=True)
class Tuning:
    """What is chosen before the grid runs.

    Args:
        axis: The axis whose labels have their own options, usually the methods.
        grids: Configurations to compare, for each label; as many for every label.
        at: The cell of the other axes.
        seed: Seed of every run.
        validation: Part of the training set that the runs are scored on.
        score: The score that decides, a key of ``evaluation.json``.
    """

    axis: str
    grids: dict[Label, list[Options]]
    at: Cell
    seed: int
    validation: float
    score: str


@dataclass(frozen=True)
class Specification:
    """A sweep: every cell of the product of the axes, with every seed.

    Args:
        name: Stem of the file.
        configs: Configs of every fit, in order.
        seeds: Seeds of every cell.
        options: Options of every run.
        evaluation: Options of the evaluation, without ``evaluation.``.
        axes: Options of each label of each axis.
        tune: What is chosen first; None for nothing.
        slurm: Parameters of submitit for SLURM.
    """

    name: str
    configs: list[str]
    seeds: list[int]
    options: Options
    evaluation: Options
    axes: dict[str, dict[Label, Options]]
    tune: Tuning | None
    slurm: Options

    def cells(self) -> list[Cell]:
        """All cells, the first axis slowest."""
        labels = itertools.product(*self.axes.values())
        return [dict(zip(self.axes, chosen, strict=True)) for chosen in labels]

    def options_of(self, cell: Cell, more: Options | None = None) -> Options:
        """Options of a cell, with each ``{axis}`` replaced by the cell's label of that axis.

        Args:
            cell: A label for each axis.
            more: Options over those of the cell.
        """
        options = dict(self.options)
        for axis, label in cell.items():
            # a list is not limited to its values while tuning
            options |= self.axes[axis].get(label, {axis: label} if "." in axis else {})
        return {
            name: substituted(each, cell) for name, each in (options | {**(more or {})}).items()
        }

    def only(self, wanted: Collection[str]) -> "Specification":
        """The part of the sweep that has one of the given labels, each ``AXIS=LABEL``."""
        axes = dict(self.axes)
        pairs = [word.partition("=") for word in wanted]
        for axis in dict.fromkeys(axis for axis, _, _ in pairs):
            labels = [label for name, _, label in pairs if name == axis]
            if axis not in axes:
                raise ValueError(f"The sweep has no axis {axis!r}.{did_you_mean(axis, axes)}")
            known = {str(label): label for label in self.axes[axis]}
            for label in labels:
                _known("label", label, known, f"of the axis {axis}")
            axes[axis] = {known[label]: self.axes[axis][known[label]] for label in labels}
        return replace(self, axes=axes)

    def without(self, label: Label) -> "Specification":
        """The sweep without a label of the tuned axis."""
        axis = self.tune.axis if self.tune else ""
        rest = {name: options for name, options in self.axes[axis].items() if name != label}
        return replace(self, axes=self.axes | {axis: rest})

    def with_choice(self, label: Label, options: Options) -> "Specification":
        """The sweep with tuned options for a label."""
        axis = self.tune.axis if self.tune else ""
        tuned = self.axes[axis] | {label: self.axes[axis][label] | options}
        return replace(self, axes=self.axes | {axis: tuned})


def substituted(value: Any, cell: Cell) -> Any:
    """A value with each ``{axis}`` replaced by the label of the cell, also inside labels.

    Raises:
        ValueError: If there is no such axis, or labels name each other in a circle.
    """
    if isinstance(value, list):
        return [substituted(each, cell) for each in value]
    if isinstance(value, dict):
        return {name: substituted(each, cell) for name, each in value.items()}
    for _ in range(len(cell) + 1):
        found = _NAME.findall(value) if isinstance(value, str) else []
        if not found:
            return value
        for name in found:
            _known("axis", name, cell, f"in {value!r}")
        whole = _NAME.fullmatch(value)
        value = cell[whole[1]] if whole else _NAME.sub(lambda name: str(cell[name[1]]), value)
    raise ValueError(f"The labels of the axes name each other in a circle: {value!r}.")


def read_specification(path: Path) -> Specification:
    """Read the file of a sweep.

    Raises:
        ValueError: If the file is not YAML, has an unknown key, or a value of another kind.
        OSError: If the file cannot be read.
    """
    try:
        return _specification(path.stem, read_config(path)[1])
    except ValueError as error:
        text = str(error)
        raise ValueError(text if str(path) in text else f"{path}: {text}") from error


def _specification(name: str, content: dict[str, Any]) -> Specification:
    for key in content:
        _known("key", key, _KEYS)
    axes = {axis: _axis(axis, labels) for axis, labels in _mapping("axes", content).items()}
    seeds = content.get("seeds", [0])
    if not isinstance(seeds, list) or not seeds or {type(seed) for seed in seeds} != {int}:
        raise ValueError(f"Expected seeds to be a list of whole numbers, but got {seeds!r}.")
    configs = content.get("configs", [])
    if not isinstance(configs, list):
        raise ValueError(f"Expected configs to be a list of files, but got {configs!r}.")
    specification = Specification(
        name=name,
        configs=[str(config) for config in configs],
        seeds=seeds,
        options=_mapping("options", content),
        evaluation=_mapping("evaluation", content),
        axes=axes,
        tune=_tuning(_mapping("tune", content), axes) if "tune" in content else None,
        slurm=_mapping("slurm", content),
    )
    _check_use(specification)
    return specification


def _axis(axis: str, labels: Any) -> dict[Label, Options]:
    """Options of each label; a value of a list sets the option that the axis is named after."""
    if isinstance(labels, list) and labels:
        return {label: {axis: label} if "." in axis else {} for label in labels}
    if not isinstance(labels, dict) or not labels:
        raise ValueError(
            f"Expected the axis {axis} to be a list of values, or to map labels to options, but "
            f"got {labels!r}."
        )
    return {label: _mapping(label, labels) for label in labels}


def _mapping(key: Any, content: Mapping[Any, Any]) -> dict[Any, Any]:
    value = content.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError(
            f"Expected {key} to map names to values, but got {value!r}. Write `{key}: "
            "{NAME: VALUE}`."
        )
    return value


def _known(kind: str, name: Any, known: Collection[Any], where: str = "in the file") -> None:
    if name not in known:
        names = [str(each) for each in known]
        hint = did_you_mean(str(name), names) or f" Known: {', '.join(names)}."
        raise ValueError(f"Unknown {kind} {name!r} {where}.{hint}")


def _check_use(specification: Specification) -> None:
    """Refuse a list that no option uses: its cells would all be the same."""
    cell = specification.cells()[0]
    for axis, labels in specification.axes.items():
        named = str([specification.options, *specification.axes.values()])
        if not any(labels.values()) and f"{{{axis}}}" not in named:
            raise ValueError(
                f"No option uses the axis {axis}. Write `{{{axis}}}` in the value of one, as in "
                f'`options: {{model.projector: "{{{axis}}}"}}`.'
            )
    specification.options_of(cell)


def _tuning(content: dict[str, Any], axes: dict[str, dict[Label, Options]]) -> Tuning:
    for key in content:
        _known("key", key, (*_TUNE_KEYS, *axes), "in tune")
    tuned = [key for key in content if key in axes]
    if len(tuned) != 1:
        raise ValueError(
            f"Expected tune to name one of the axes {', '.join(axes)}, but got {tuned}."
        )
    axis, grids = tuned[0], {}
    for label, grid in _mapping(tuned[0], content).items():
        _known("label", label, axes[axis], f"of the axis {axis} in tune")
        values = _mapping(label, {label: grid})
        if not all(isinstance(each, list) and each for each in values.values()):
            raise ValueError(f"Expected tune to give {label} a list of values for each option.")
        grids[label] = [
            dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())
        ]
    sizes = {label: len(grid) for label, grid in grids.items()}
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{label} {size}" for label, size in sizes.items())
        raise ValueError(
            "Expected tune to have as many configurations for each label, or the comparison is not "
            f"fair, but got {listed}. Add values to the smaller grids."
        )
    validation = content.get("validation", 0.2)
    if not isinstance(validation, float) or not 0 < validation < 1 or not math.isfinite(validation):
        raise ValueError(f"Expected tune.validation to be a fraction, but got {validation!r}.")
    return Tuning(
        axis=axis,
        grids=grids,
        at=_at(_mapping("at", content), {name: axes[name] for name in axes if name != axis}),
        seed=content.get("seed", 0),
        validation=validation,
        score=str(content.get("score", "few_label_top1")),
    )


def _at(given: Cell, axes: dict[str, dict[Label, Options]]) -> Cell:
    """The cell of the other axes; an axis of one label needs not be named."""
    for axis in given:
        _known("axis", axis, axes, "in tune.at")
    cell = {}
    for axis, labels in axes.items():
        if axis not in given and len(labels) > 1:
            raise ValueError(f"Expected tune.at to choose a value of the axis {axis}.")
        cell[axis] = given.get(axis, next(iter(labels)))
        if any(labels.values()) and "." not in axis:
            _known("label", str(cell[axis]), [*map(str, labels)], f"of the axis {axis} in tune.at")
    return cell
