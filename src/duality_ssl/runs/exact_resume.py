"""What Lightning leaves out of a checkpoint, and a run that goes on exactly needs.

`complete` adds to a checkpoint, and `restore` takes from it:

- the means that ``self.log`` is accumulating over the epoch, of each process (a metric that is a
  torchmetrics object is its module's to keep), and the metrics that callbacks see;
- the number of rows of ``metrics.csv``: what comes after them is dropped, and logged again;
- counters of Lightning's loops that say what is the case where `LastCheckpoint` takes its
  checkpoints: nothing of the next batch, or of the next epoch, has happened. As they are, Lightning
  would skip a batch or an epoch.

Where a run goes on with another number of processes, the epoch's means start anew.
"""

from typing import Any

from lightning import Trainer

from duality_ssl.distributed import all_gather_rows, rank, world_size
from duality_ssl.runs.loggers import RunCSVLogger, RunTensorBoardLogger

KEY = "exact_resume"
"""Entry of a checkpoint."""

_SEEN = ("callback_metrics", "logged_metrics", "progress_bar_metrics")
# what a metric was logged with, and its values so far
_ARGUMENTS = ("fx", "name", "prog_bar", "logger", "on_step", "on_epoch", "enable_graph")
_VALUES = ("value", "cumulated_batch_size", "_forward_cache")


def complete(checkpoint: dict[str, Any], trainer: Trainer) -> None:
    """Add what is missing to a checkpoint that is to be written; all processes take part."""
    _settle(checkpoint["loops"]["fit_loop"])
    tables = [logger for logger in trainer.loggers if isinstance(logger, RunCSVLogger)]
    checkpoint[KEY] = {
        "rows": tables[0].rows if tables and trainer.is_global_zero else None,
        "metrics": {name: dict(getattr(trainer, name)) for name in _SEEN},
        "means": _means(trainer),
    }


def restore(kept: dict[str, Any], trainer: Trainer) -> None:
    """Restore counters, metrics and logs; to be called in ``on_train_start``.

    Args:
        kept: What `complete` has added to the checkpoint that the fit goes on from; nothing if
            there is none, or one of another origin.
        trainer: What has restored the rest.
    """
    loop = trainer.fit_loop
    steps = loop.epoch_loop
    for logger in trainer.loggers:
        if isinstance(logger, RunCSVLogger | RunTensorBoardLogger):
            logger.go_on(trainer.global_step, kept.get("rows"))
    # who asks for the number of steps has the loaders made before there are states to load
    loop._load_combined_loader_states()
    if loop.epoch_progress.current.ready == loop.epoch_progress.current.completed:
        # with a limit of steps Lightning takes a finished epoch for an interrupted one
        steps.restarting = False
    if not kept:
        return
    if steps.restarting and steps.restarted_on_last:
        # Lightning will pass over the validation that came last, and count its batch again
        assert loop._data_fetcher is not None
        again = steps._should_check_val_fx(loop._data_fetcher) and not steps._should_accumulate()
        steps._batches_that_stepped = trainer.global_step - again
    if loop.restarted_mid_epoch and steps.batch_progress.current.ready:
        # the next batch is not the epoch's first, at which the means would be reset
        trainer._logger_connector._first_loop_iter = True
    for name in _SEEN:  # and no other attribute, whatever the file may say
        getattr(trainer, name).update(kept["metrics"][name])
    _restore_means(kept["means"], trainer)


def _means(trainer: Trainer) -> list[dict[str, Any]]:
    """What each metric of the epoch was logged with, and its values in every process."""
    means = []
    for metric in trainer.fit_loop.epoch_loop._results.result_metrics:
        if metric.has_reset or not metric.is_tensor:
            continue
        meta = metric.meta
        arguments = {name: getattr(meta, name) for name in _ARGUMENTS}
        arguments["add_dataloader_idx"] = meta.add_dataloader_idx
        arguments["reduce_fx"] = meta.reduce_fx.__name__
        arguments["sync_dist"] = meta.sync.should
        arguments["rank_zero_only"] = meta.sync.rank_zero_only
        values = {name: getattr(metric, name, None) for name in _VALUES}
        everybodys = {
            name: all_gather_rows(value.reshape(1))
            for name, value in values.items()
            if value is not None
        }
        means.append({"arguments": arguments, "values": everybodys})
    return means


def _restore_means(means: list[dict[str, Any]], trainer: Trainer) -> None:
    results = trainer.fit_loop.epoch_loop._results
    for mean in means:
        arguments, everybodys = mean["arguments"], mean["values"]
        if len(everybodys["value"]) != world_size():
            continue
        device = trainer.strategy.root_device
        own = {n: everybodys[n][rank()].to(device) for n in _VALUES if n in everybodys}
        # logging makes it what it was, whatever the value; then it has its own
        reduce = trainer.strategy.reduce
        results.log(**arguments, value=own["value"], sync_dist_fn=reduce, batch_size=1)
        metric = results[f"{arguments['fx']}.{arguments['name']}"]
        for name, value in own.items():
            setattr(metric, name, value)


def _settle(loops: dict[str, Any]) -> None:
    """Take back what Lightning's counters have of an epoch or a batch that has only begun."""
    epochs, batches = loops["epoch_progress"], loops["epoch_loop.batch_progress"]
    if epochs["total"]["ready"] > epochs["total"]["started"]:
        begun, given = epochs, 0
    elif batches["total"]["ready"] > batches["total"]["started"]:
        begun, given = batches, batches["current"]["completed"]
        batches["is_last_batch"] = False
    else:
        return
    for count in (begun["total"], begun["current"]):
        count["ready"] = count["started"]
    for loader in loops["state_dict"].get("combined_loader", []):
        if "batches" in loader:  # of a `BatchLoader`
            loader["batches"] = given
