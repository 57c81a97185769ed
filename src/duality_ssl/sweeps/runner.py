"""The command ``duality-ssl sweep``: tunes where the file asks for it, then runs the grid."""

import shlex
import signal
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import duality_ssl
from duality_ssl.sweeps.pool import Pool, do_runs
from duality_ssl.sweeps.progress import Progress
from duality_ssl.sweeps.rows import Row, all_rows, append_row, identity
from duality_ssl.sweeps.runs import FOLDER, Command, Planner, Run
from duality_ssl.sweeps.specification import (
    Label,
    Options,
    Specification,
    Tuning,
    read_specification,
)
from duality_ssl.sweeps.tuning import choose


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of `sweep`."""
    parser.add_argument("file", type=Path, help="such as configs/sweeps/digits_methods.yaml")
    parser.add_argument("--jobs", type=int, metavar="N", help="runs at once (default: 1)")
    parser.add_argument("--rows", type=Path, help="default: runs/sweeps/NAME/rows.jsonl")
    parser.add_argument("--dry-run", action="store_true", help="print the commands, run nothing")
    parser.add_argument("--rerun", action="store_true", help="repeat the runs of other versions")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="AXIS=LABEL",
        help="a part of the grid; may be given several times",
    )
    parser.add_argument("--select", metavar="SCORE", help="tune by this score, such as rankme")
    parser.add_argument("--tune-only", action="store_true", help="stop after tuning")


def sweep(
    file: Path,
    *,
    command: Command,
    jobs: int | None = None,
    rows: Path | None = None,
    rerun: bool = False,
    dry_run: bool = False,
    select: str | None = None,
    only: Sequence[str] = (),
    tune_only: bool = False,
) -> None:
    """Run a grid of fits and tests, and append a row of each to a file.

    Runs that have a row are left out. Interrupted and failed ones are done again, from their last
    checkpoint.

    Args:
        file: The sweep, see docs/sweeps.md.
        command: Runs the words of a command line.
        jobs: Runs at once; by default one, on SLURM all.
        rows: File of rows; by default ``runs/sweeps/NAME/rows.jsonl``.
        rerun: Repeat the runs of other versions of this package.
        dry_run: Print the commands and run nothing.
        select: The score that tuning chooses by; by default the one in the file.
        only: Labels to which the sweep is limited, each ``AXIS=LABEL``.
        tune_only: Stop after tuning.

    Raises:
        ValueError: If the file is not valid, or the command refuses one of its options.
        SystemExit: With code 1 if a run failed, with 130 after Ctrl+C.
    """
    whole = read_specification(file)
    specification, tune = whole.only(only), whole.tune
    if tune is None and (tune_only or select):
        raise ValueError(f"Expected a block `tune` in {file} for --tune-only and --select.")
    path = rows or FOLDER / specification.name / "rows.jsonl"
    failed = 0
    if tune is not None:
        runs = _trials(whole, tune, [*specification.axes[tune.axis]], command)
        trials = _Phase(runs, path, rerun)
        failed += trials.do(command, jobs, specification.slurm, dry_run)
        specification = _tuned(specification, tune, trials, select or tune.score)
    if not tune_only:
        planner = Planner(specification, command)
        cells = specification.cells()
        runs = [run for cell in cells for run in planner.runs("grid", cell, specification.seeds)]
        failed += _Phase(runs, path, rerun).do(command, jobs, specification.slurm, dry_run)
    if failed:
        sys.stdout.write(f"{failed} failed. The same command does them again.\n")
        raise SystemExit(1)


def _trials(
    specification: Specification, tune: Tuning, labels: Sequence[Label], command: Command
) -> list[Run]:
    """A run for each configuration of the labels, scored on a part of the training set."""
    held_out = {"data.validation": tune.validation}
    planner = Planner(replace(specification, options=specification.options | held_out), command)
    runs = []
    for label in labels:
        at = {tune.axis: label, **tune.at}
        cell = {axis: at[axis] for axis in specification.axes}
        for options in tune.grids.get(label, []):
            runs += planner.runs("tune", cell, [tune.seed], options)
    return runs


def _tuned(
    specification: Specification, tune: Tuning, trials: "_Phase", score: str
) -> Specification:
    """The sweep with what tuning chose, without the labels for which it could not choose."""
    for label in [label for label in specification.axes[tune.axis] if label in tune.grids]:
        runs = [run for run in trials.runs if run.cell[tune.axis] == label]
        rows = [trials.finished[run.key] for run in runs if run.key in trials.finished]
        if not rows:
            sys.stdout.write(f"# {label} is not tuned yet: its grid is left out.\n")
            specification = specification.without(label)
            continue
        choice = choose(rows, score, tune.score)
        options, best = ({n: row["options"][n] for n in runs[0].varied} for row in choice[:2])
        specification = specification.with_choice(label, options)
        sys.stdout.write(
            f"# {label}: {score} {choice.chosen['scores'][score]:.4g} chooses {_listed(options)}\n"
        )
        if score != tune.score:
            ours, theirs = (row["scores"][tune.score] for row in choice[:2])
            sys.stdout.write(
                f"#   {tune.score} {ours:.4g}; by its own choice {theirs:.4g} with "
                f"{_listed(best)}: a gap of {choice.gap:.4g}\n"
            )
    return specification


def _listed(options: Options) -> str:
    return ", ".join(f"{name} {value}" for name, value in options.items())


class _Phase:
    """Runs of tuning, or of the grid, and what is known of them.

    Args:
        runs: All of them; some may coincide.
        path: File of rows.
        rerun: Whether rows of other versions do not count.
    """

    def __init__(self, runs: Sequence[Run], path: Path, rerun: bool) -> None:
        self.runs = runs
        self.path = path
        self._rerun = rerun
        self._rows = all_rows(path) if path.is_file() else []
        self.finished: dict[str, Row] = {
            row["key"]: row
            for row in [*_rows_beside(path), *self._rows]
            if "error" not in row and (row["version"] == duality_ssl.__version__ or not rerun)
        }
        """Rows by their keys."""

    def do(self, command: Command, jobs: int | None, slurm: Options, dry_run: bool = False) -> int:
        """Do what is not finished; return how many runs failed."""
        unique: dict[str, Run] = {}
        for run in self.runs:
            unique.setdefault(run.key, run)
        done = [run for key, run in unique.items() if key in self.finished]
        left = [run for key, run in unique.items() if key not in self.finished]
        if dry_run:
            for run in left:
                for words in [run.fit_words(self._rerun)] * run.fits + [run.test_words()]:
                    sys.stdout.write(f"duality-ssl {shlex.join(words)}\n")
            return 0
        present = {identity(row): row["key"] for row in self._rows}
        for run in self.runs:
            if run.key in self.finished and present.get(identity(run.label())) != run.key:
                append_row(self.path, _relabelled(self.finished[run.key], run))
        if not left:
            sys.stdout.write(f"All {len(done)} runs are done: {self.path}\n")
            return 0
        pool = Pool(FOLDER / left[0].sweep / "jobs", jobs, slurm)
        seconds = [self.finished[run.key]["seconds"] for run in done]
        progress = Progress([*done, *left], done, min(pool.size, len(left)), seconds)
        failed = []

        def on_row(run: Run, row: Row) -> None:
            for each in self.runs:
                if each.key == run.key:
                    append_row(self.path, _relabelled(row, each))
            if "error" in row:
                failed.append(run)
            else:
                self.finished[run.key] = row
            progress.ended(run, row)

        former = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            do_runs(left, command, pool, again=self._rerun, on_row=on_row, on_wait=progress.running)
        except KeyboardInterrupt:
            progress.close()
            sys.stdout.write("Interrupted. The same command resumes.\n")
            raise SystemExit(130) from None
        finally:
            progress.close()
            signal.signal(signal.SIGTERM, former)
        return len(failed)


def _rows_beside(path: Path) -> list[Row]:
    """Rows of other sweeps, whose runs need not be done twice."""
    found = []
    for other in sorted({*path.parent.glob("*.jsonl"), *FOLDER.glob("*/rows.jsonl")} - {path}):
        with suppress(ValueError):
            found += all_rows(other)
    return [row for row in found if "key" in row]


def _relabelled(row: Row, run: Run) -> Row:
    """The row of a run that coincides with another, whose row is given."""
    label = run.label()
    return label | {name: row[name] for name in row if name not in label and name != "phase"}
