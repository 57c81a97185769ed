"""What a resumed fit needs and Lightning leaves out of a checkpoint.

The running means of ``self.log(..., on_epoch=True)`` in a training step are not part of it.
"""

from typing import Any

from lightning import Trainer

from duality_ssl._internals.lightning import LOGGED_STEPS, load_loader_states
from duality_ssl.runs.loggers import RunCSVLogger

KEY = "exact_resume"
"""Entry of a checkpoint."""

_METRICS = ("callback_metrics", "logged_metrics", "progress_bar_metrics")


def complete(checkpoint: dict[str, Any], trainer: Trainer, validated: bool) -> None:
    """Correct the counters of a checkpoint; add the metrics and the rows of ``metrics.csv``.

    Args:
        checkpoint: What Lightning has collected; changed in place.
        trainer: The trainer that is fitting.
        validated: Whether a validation followed the last batch.
    """
    _correct_counters(checkpoint["loops"]["fit_loop"], validated)
    tables = [logger for logger in trainer.loggers if isinstance(logger, RunCSVLogger)]
    checkpoint[KEY] = {
        "rows": tables[0].rows if tables and trainer.is_global_zero else None,
        "metrics": {name: dict(getattr(trainer, name)) for name in _METRICS},
    }


def restore(kept: dict[str, Any], trainer: Trainer) -> None:
    """Restore ``metrics.csv``, loaders and metrics; call it in ``on_train_start``.

    Args:
        kept: The entry `KEY` of the checkpoint; empty for a new fit or a checkpoint without it.
        trainer: The trainer, which has restored everything else.
    """
    for logger in trainer.loggers:
        if isinstance(logger, RunCSVLogger):
            logger.rewind(trainer.global_step, kept.get("rows"))
    load_loader_states(trainer)
    epochs = trainer.fit_loop.epoch_progress.current
    if epochs.ready == epochs.completed:
        # with `max_steps` Lightning takes a finished epoch for an interrupted one
        trainer.fit_loop.epoch_loop.restarting = False
    for name in _METRICS if kept else ():  # no other attribute, whatever the file names
        getattr(trainer, name).update(kept["metrics"][name])


def _correct_counters(loops: dict[str, Any], validated: bool) -> None:
    """Uncount an epoch or a batch that has only begun, or Lightning would skip it."""
    epochs, batches = loops["epoch_progress"], loops["epoch_loop.batch_progress"]
    if epochs["total"]["ready"] > epochs["total"]["started"]:
        begun, done = epochs, 0
    elif batches["total"]["ready"] > batches["total"]["started"]:
        begun, done = batches, batches["current"]["completed"]
        batches["is_last_batch"] = False
        # a resumed fit skips the validation that ran already, but counts its batch a second time
        loops["epoch_loop.state_dict"][LOGGED_STEPS] -= validated
    else:
        return
    for count in (begun["total"], begun["current"]):
        count["ready"] = count["started"]
    for loader in loops["state_dict"].get("combined_loader", []):
        if "batches" in loader:  # the state of a `BatchLoader`, which has fetched the next batch
            loader["batches"] = done
