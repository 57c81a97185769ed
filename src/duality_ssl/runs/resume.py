"""What a fit resumes: decided here, before anything is built, however it was asked for."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch.utilities import rank_zero_warn

from duality_ssl.runs.folder import (
    Checkpoint,
    last_checkpoint,
    newest_checkpoint,
    read_checkpoint,
    run_of,
    runs_folder,
    versions,
)

LAST = "last"
"""What ``--ckpt_path`` takes for the newest run."""

Options = dict[str, Any]
Changes = dict[str, tuple[Any, Any]]

_DECIDING = (
    "seed_everything",
    *("trainer.precision", "trainer.gradient_clip_val", "trainer.gradient_clip_algorithm"),
)
# of the method and the data, what changes places, speed or rounding only
_INCIDENTAL = {
    *("model.channels_last", "model.compile", "model.in_channels"),
    *("model.optimizer.lr", "model.optimizer.weight_decay"),  # replaced by the method's
    *("data.batch_size", "data.download", "data.num_workers", "data.on_bad_image"),
    *("data.predict_split", "data.probe_root", "data.root", "data.seed"),
}
_PRECISIONS = {"None": "32-true", "32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}
_IN_OPTIMIZER = ("model.base_lr", "model.weight_decay")


class Resume(NamedTuple):
    """How a fit starts; by default as a new run from scratch."""

    run: Path | None = None  # folder to resume in; None for a new version
    checkpoint: Checkpoint | None = None  # what the fit starts from; None for scratch
    complete: bool = False  # whether nothing is left to do
    note: str = ""  # the decision in a sentence; empty where there was none to take


def resolve_resume(
    given: str,
    load: Callable[[Path], Options | None],
    merge: Callable[[Options | None], Options],
) -> Resume:
    """Decide which run a fit resumes, and from which checkpoint.

    A run is resumed in its own folder unless what the user says now contradicts a value that
    decided its result (`deciding_values`) or the global batch. ``"last"`` takes the newest such run
    of the experiment and method; if there is none, a new version starts from scratch. From a
    checkpoint whose run is contradicted, or of another experiment or method, a new version starts.

    Args:
        given: ``"last"``, the path of a checkpoint, or the folder of a run.
        load: Reads the options of a run from its folder; None if it has no config.
        merge: Puts what the user says now over the options of a run, or over the defaults for None.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        ValueError: If the checkpoint cannot be read.
    """
    if given == LAST:
        return _resume_last(load, merge)
    path = find_checkpoint(given)
    checkpoint, run = read_checkpoint(path), run_of(path)
    config = load(run)
    options, former = flatten(merge(config)), flatten(config or {})
    folder = runs_folder(options)
    changes = contradictions(former, options) if config else {}
    if config is None or _folder(former) != folder or changes:
        note = f"Start a new version in {folder} from {path}"
        if config is not None:
            note += f", whose run had {_listed(changes)}" if changes else f" of {_folder(former)}"
        if held := [name for name in _IN_OPTIMIZER if name in changes]:
            note += f"; the optimizer in the checkpoint keeps its own {' and '.join(held)}"
        return Resume(None, checkpoint, _is_complete(checkpoint, options), f"{note}.")
    spelt = folder / run.name  # as the options spell it, if that is the same place
    run = spelt if spelt.resolve() == run.resolve() else run
    newest = newest_checkpoint(run)
    if newest and newest.step > checkpoint.step:
        rank_zero_warn(
            f"{path} is of step {checkpoint.step}, and {newest.path} of step {newest.step}: what "
            "the run has done since is overwritten. To keep it, choose another --experiment."
        )
    return _resume_run(run, checkpoint, former, options)


def _resume_last(
    load: Callable[[Path], Options | None], merge: Callable[[Options | None], Options]
) -> Resume:
    folder = runs_folder(flatten(merge(None)))
    # what the options are known to change: runs that differ in it are skipped without merging
    known: Options = {}
    note = ""
    for run in reversed(versions(folder)):
        config = load(run)
        if config is None:  # just claimed by another process, or killed at once
            continue
        former = flatten(config)
        values = deciding_values(former)
        if any(values.get(name) != value for name, value in known.items()):
            continue
        options = flatten(merge(config))
        changes = contradictions(former, options)
        if not changes:
            newest = newest_checkpoint(run)
            if newest and newest.path.stem == "best" and _is_complete(newest, options):
                # written in the last step, before its end: a fit from it would not reach that end
                newest = newest_checkpoint(run, but=newest.path)
            return _resume_run(run, newest, former, options)
        known |= {name: now for name, (_, now) in changes.items() if name != "global batch"}
        note = note or f"Start a new version in {folder}: {run.name} had {_listed(changes)}."
    return Resume(note=note)


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
    changes = {
        name: values
        for name, values in _changes(former, options).items()
        if name not in ("ckpt_path", "data.seed", "resume") and list not in map(type, values)
    }
    now = f"; it had {_listed(changes)}" if changes else ""
    return Resume(run, checkpoint, note=f"Resume {checkpoint.path} at step {checkpoint.step}{now}.")


def find_checkpoint(given: str, folder: Callable[[], Path] | None = None) -> Path:
    """The checkpoint that a path names; the last one if it is the folder of a run.

    ``"last"`` is the newest in the ``folder`` of an experiment and method.
    """
    if given == LAST and folder is not None:
        checkpoints = map(last_checkpoint, reversed(versions(folder())))
        found = next((path for path in checkpoints if path.is_file()), None)
        if found is None:
            raise FileNotFoundError(
                f"There is no checkpoint of a run in {folder()}. Name its --experiment and "
                "--model, or its folder with --ckpt_path."
            )
        return found
    path = Path(given)
    return last_checkpoint(path) if path.is_dir() else path


def contradictions(former: Options, options: Options) -> Changes:
    """The deciding values of a run that the options change, and the global batch."""
    changes = _changes(deciding_values(former), deciding_values(options))
    # devices that only Lightning can count are taken to be as many as before
    was, now = _devices(former) or _devices(options), _devices(options) or _devices(former)
    batches = _batch(former) * (was or 1), _batch(options) * (now or 1)
    return changes | ({"global batch": batches} if batches[0] != batches[1] else {})


def deciding_values(options: Options) -> Options:
    """The options that decide the result of a fit, by their names on the command line."""
    own = [name for name in options if name.startswith(("model.", "data."))]
    values = {name: options.get(name) for name in (*own, *_DECIDING) if name not in _INCIDENTAL}
    precision = str(values["trainer.precision"])
    return values | {"trainer.precision": _PRECISIONS.get(precision, precision)}


def _batch(options: Options) -> int:
    """Images of one optimizer step for each device of a node."""
    factors = ("trainer.num_nodes", "trainer.accumulate_grad_batches")
    nodes, batches = (int(options.get(name) or 1) for name in factors)
    return int(options.get("data.batch_size") or 0) * nodes * batches


def _devices(options: Options) -> int | None:
    devices = options.get("trainer.devices")
    if isinstance(devices, str) and "," in devices:
        devices = devices.split(",")
    count = str(len(devices) if isinstance(devices, list) else devices)
    return int(count) if count.isdigit() else None


def _is_complete(checkpoint: Checkpoint, options: Options) -> bool:
    steps = options.get("trainer.max_steps", -1)
    return checkpoint.is_complete(options.get("trainer.max_epochs"), steps)


def _folder(options: Options) -> Path | None:
    """Where the runs of these options are; None if they are not a run's."""
    try:
        return runs_folder(options)
    except KeyError:
        return None


def flatten(options: Mapping[str, Any], above: str = "") -> Options:
    """Options by their dotted names on the command line, which have no ``init_args``."""
    flat: Options = {}
    for key, value in options.items():
        name = above if key == "init_args" else f"{above}.{key}".lstrip(".")
        if isinstance(value, Mapping):
            flat |= flatten(value, name)
        else:
            value = list(value) if isinstance(value, tuple) else value
            plain = isinstance(value, int | float | str | list | None)
            flat[name] = value if plain else str(value)  # as in a config
    return flat


def _changes(former: Options, options: Options) -> Changes:
    return {
        name: (former.get(name), now) for name, now in options.items() if former.get(name) != now
    }


def _listed(changes: Changes) -> str:
    named = {name.removesuffix(".class_path"): values for name, values in changes.items()}
    return ", ".join(f"{name} {was} (now {now})" for name, (was, now) in named.items())
