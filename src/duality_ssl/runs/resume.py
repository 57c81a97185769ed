"""What a fit resumes: decided here, before anything is built, whatever way it was asked for."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch.utilities import rank_zero_warn

from duality_ssl.runs.folder import (
    Checkpoint,
    last_checkpoint,
    newest_checkpoint,
    one_before,
    read_checkpoint,
    run_of,
    runs_folder,
    versions,
)

LAST = "last"
"""What ``--ckpt_path`` takes for the newest run."""

Options = dict[str, Any]
Changes = dict[str, tuple[Any, Any]]
_MISSING = object()

# of the model and the data, what changes rounding, places, speed or messages only
_INCIDENTAL = {
    *("model.channels_last", "model.compile", "model.in_channels"),
    *("model.optimizer.lr", "model.optimizer.weight_decay"),  # replaced by the method's
    *("data.batch_size", "data.download", "data.num_workers", "data.on_bad_image"),
    *("data.predict_split", "data.probe_root", "data.root", "data.seed"),
}
_PRECISIONS = {None: "32-true", "16": "16-mixed", "bf16": "bf16-mixed", "32": "32-true"}
_HELD = {"model.base_lr", "model.weight_decay"}  # by the checkpoint's optimizer


class Resume(NamedTuple):
    """How a fit starts; without an argument as a new run from scratch."""

    run: Path | None = None
    """Folder to resume in; None for a new version."""
    checkpoint: Checkpoint | None = None
    """What the fit starts from; None for scratch."""
    complete: bool = False
    """Whether nothing is left to do."""
    note: str = ""
    """The decision in a sentence; empty where there was nothing to decide."""


def resolve_resume(
    given: str,
    load: Callable[[Path], Options | None],
    merge: Callable[[Options | None], Options],
) -> Resume:
    """Decide which run a fit resumes, and from which checkpoint.

    A run is resumed in its own folder if what the user says now contradicts none of the values
    that decided its result (`deciding_values`). Otherwise a new version starts: from scratch if
    ``given`` is ``"last"`` and no run fits, from the checkpoint if ``given`` names one.

    Args:
        given: ``"last"``, the path of a checkpoint, or the folder of a run.
        load: Reads the options of a run from its folder; None if it has no ``config.yaml``.
        merge: Puts the options that the user gives now over those of a run, or over the defaults
            for None.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        ValueError: If the checkpoint cannot be read.
    """
    if given == LAST:
        return _resume_last(load, merge)
    return _resume_checkpoint(find_checkpoint(given), load, merge)


def find_checkpoint(given: str, folder: Callable[[], Path] | None = None) -> Path:
    """The checkpoint that a path names; the last one if it is the folder of a run.

    Args:
        given: The path, or ``"last"`` where ``folder`` is given.
        folder: Finds the runs of an experiment and method.

    Raises:
        FileNotFoundError: If there is none.
    """
    if given == LAST and folder is not None:
        checkpoints = (last_checkpoint(run) for run in reversed(versions(folder())))
        found = next((path for path in checkpoints if path.is_file()), None)
        if found is None:
            raise FileNotFoundError(
                f"There is no run with a checkpoint in {folder()}. Name the run's --model and "
                "--experiment, or its folder with --ckpt_path."
            )
        return found
    path = Path(given)
    checkpoint = last_checkpoint(path) if path.is_dir() else path
    if not checkpoint.is_file():
        remedy = one_before(checkpoint) or " Name a .ckpt file, or the folder of a run."
        raise FileNotFoundError(f"There is no checkpoint {checkpoint}.{remedy}")
    return checkpoint


def _resume_last(
    load: Callable[[Path], Options | None], merge: Callable[[Options | None], Options]
) -> Resume:
    folder = runs_folder(merge(None))
    said: dict[str, Any] = {}
    note = ""
    for run in reversed(versions(folder)):
        former = load(run)
        if former is None:  # another process has just claimed it, or it was killed at once
            continue
        values = deciding_values(former)
        if any(values.get(name, _MISSING) != value for name, value in said.items()):
            continue
        options = merge(former)
        changes = _contradictions(former, options)
        if not changes:
            return _resume_run(run, _furthest(run, options), former, options)
        said |= {name: now for name, (_, now) in changes.items() if name != "global batch"}
        note = note or f"Start a new version in {folder}: {run.name} had {_listed(changes)}."
    return Resume(note=note)


def _resume_checkpoint(
    path: Path,
    load: Callable[[Path], Options | None],
    merge: Callable[[Options | None], Options],
) -> Resume:
    checkpoint = read_checkpoint(path)
    run = run_of(path)
    former = load(run)
    options = merge(former)
    folder = runs_folder(options)
    start = f"Start a new version in {folder} from {path}"
    complete = _is_complete(checkpoint, options)
    if former is None:
        return Resume(None, checkpoint, complete, f"{start}.")
    if _folder(former) != folder:
        return Resume(None, checkpoint, complete, f"{start}, of {_folder(former)}.")
    changes = _contradictions(former, options)
    if changes:
        held = ", ".join(sorted(_HELD & changes.keys()))
        keeps = f" The optimizer in the checkpoint keeps its own {held}." if held else ""
        note = f"{start}, whose run had {_listed(changes)}.{keeps}"
        return Resume(None, checkpoint, complete, note)
    spelt = folder / run.name  # as the options spell it, if that is the same place
    run = spelt if spelt.resolve() == run.resolve() else run
    newest = newest_checkpoint(run)
    if newest and newest.step > checkpoint.step:
        rank_zero_warn(
            f"{path} is of step {checkpoint.step}, and {newest.path} of step {newest.step}: what "
            "the run has done since is overwritten. To keep it, choose another --experiment."
        )
    return _resume_run(run, checkpoint, former, options)


def _resume_run(
    run: Path, checkpoint: Checkpoint | None, former: Options, options: Options
) -> Resume:
    if checkpoint is None:
        return Resume(run, note=f"Start {run} again: it has no checkpoint.")
    if _is_complete(checkpoint, options):
        note = (
            f"{checkpoint.path} is complete, at epoch {checkpoint.epochs} and step "
            f"{checkpoint.step}: nothing to do. To train on, raise --trainer.max_epochs."
        )
        return Resume(run, checkpoint, True, note)
    changes = _changes(dict(_flat(former)), dict(_flat(options)))
    changes = {name: both for name, both in changes.items() if not _has_list(both)}
    now = f"; changed: {_listed(changes)}" if changes else ""
    return Resume(run, checkpoint, note=f"Resume {checkpoint.path} at step {checkpoint.step}{now}.")


def _furthest(run: Path, options: Options) -> Checkpoint | None:
    newest = newest_checkpoint(run)
    if newest and newest.path.stem == "best" and _is_complete(newest, options):
        # of the last step, but written before its end: resumed, it would have no step left to end
        return newest_checkpoint(run, but=newest.path)
    return newest


def _is_complete(checkpoint: Checkpoint, options: Options) -> bool:
    trainer = options.get("trainer") or {}
    return checkpoint.is_complete(trainer.get("max_epochs"), trainer.get("max_steps", -1))


def _folder(options: Options) -> Path | None:
    """Where the runs of a config are; None if it is not a run's."""
    try:
        return runs_folder(options)
    except (AttributeError, KeyError, TypeError):
        return None


def deciding_values(options: Options) -> dict[str, Any]:
    """The options that decide the result of a fit, by their names on the command line.

    These are the method with its optimizer and schedule, the data but for how they are loaded, the
    seed, the precision and the clipping of gradients. The global batch, which is compared too, is
    no single option.
    """
    kept = {key: options.get(key) or {} for key in ("model", "data")}
    values = {name: value for name, value in _flat(kept) if name not in _INCIDENTAL}
    trainer = options.get("trainer") or {}
    precision = trainer.get("precision")
    precision = precision if precision is None else str(precision)
    return values | {
        "seed_everything": options.get("seed_everything"),
        "trainer.precision": _PRECISIONS.get(precision, precision),
        "trainer.gradient_clip_val": trainer.get("gradient_clip_val"),
        "trainer.gradient_clip_algorithm": trainer.get("gradient_clip_algorithm"),
    }


def _contradictions(former: Options, options: Options) -> Changes:
    """The deciding values of a run that the options change."""
    changes = _changes(deciding_values(former), deciding_values(options))
    counts = _devices(former), _devices(options)
    # what only Lightning can count is taken to be as it was
    batches = (
        _batch(former) * (counts[0] or counts[1] or 1),
        _batch(options) * (counts[1] or counts[0] or 1),
    )
    return changes | ({"global batch": batches} if batches[0] != batches[1] else {})


def _batch(options: Options) -> int:
    """Images of one optimizer step for each device of a node."""
    data, trainer = options.get("data") or {}, options.get("trainer") or {}
    factors = trainer.get("num_nodes", 1), trainer.get("accumulate_grad_batches", 1)
    size: int = (data.get("batch_size") or 0) * factors[0] * factors[1]
    return size


def _devices(options: Options) -> int | None:
    devices = (options.get("trainer") or {}).get("devices", "auto")
    listed = devices.split(",") if isinstance(devices, str) and "," in devices else devices
    if isinstance(listed, list):
        return len(listed)
    return int(devices) if str(devices).isdigit() else None


def _changes(former: Options, options: Options) -> Changes:
    return {
        name: (former.get(name), now)
        for name, now in options.items()
        if former.get(name) != now and name not in ("ckpt_path", "resume", "config")
    }


def _flat(options: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Options by their names on the command line, where a class has the name of its option."""
    for key, value in options.items():
        name = above if key in ("class_path", "init_args") else f"{above}.{key}".lstrip(".")
        if isinstance(value, Mapping):
            yield from _flat(value, name)
        else:
            value = list(value) if isinstance(value, tuple) else value
            yield name, str(value) if isinstance(value, Path) else value


def _has_list(values: tuple[Any, Any]) -> bool:
    return any(isinstance(value, list) for value in values)


def _listed(changes: Changes) -> str:
    return ", ".join(f"{name} {was} (now {now})" for name, (was, now) in changes.items())
