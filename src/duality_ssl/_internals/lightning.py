"""Private names and messages of Lightning 2.6."""

import logging
import warnings
from collections.abc import Mapping
from typing import Any

from lightning import Trainer
from lightning.pytorch.plugins.environments import ClusterEnvironment

# Entry of the epoch loop's state: the step that rows of metrics are logged at. `exact_resume`
# corrects it; without that, rows after a resume within an epoch may be one step late.
LOGGED_STEPS = "_batches_that_stepped"


def load_loader_states(trainer: Trainer) -> None:
    """Give the training loaders the states of a checkpoint; does nothing a second time.

    Lightning does so when it makes the loaders. A schedule that asks for the number of steps has
    them made earlier, before the states are read: a resumed epoch would start at its first batch.
    """
    trainer.fit_loop._load_combined_loader_states()


def cluster_environment(trainer: Trainer) -> ClusterEnvironment:
    """The environment that started the processes, given as a plugin or detected.

    Only strategies of several processes have it as a public attribute. Without it `Preemption`
    would requeue no job of a single process, or one that is not to be requeued.
    """
    return trainer._accelerator_connector.cluster_environment


def restore_at_teardown(trainer: Trainer, handlers: Mapping[int, Any]) -> None:
    """Have the trainer restore these signal handlers when the fit ends.

    It would restore those it has found, which are `Preemption`'s, after the last hook of a fit that
    ends in an exception: they would stay.
    """
    trainer._signal_connector._original_handlers.update(handlers)


def has_sync_batchnorm(trainer: Trainer) -> bool:
    """Whether a trainer has ``sync_batchnorm=True``, which no public attribute says.

    Without it timm's norms would lose their activation, and a fit on CPUs would fail.
    """
    return getattr(trainer.strategy, "_layer_sync", None) is not None


def silence_evaluation_modes() -> None:
    """Silence the warning, when training starts, of modules that are in evaluation mode."""
    warnings.filterwarnings("ignore", r"Found \d+ module\(s\) in eval mode at the start")


def silence() -> None:
    """Silence messages that the user can do nothing about."""
    # a resumed run's
    warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")
    warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated")
    # the interval is shortened to the epoch when training starts
    warnings.filterwarnings("ignore", ".*is smaller than the logging interval")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: "litlogger" not in record.getMessage()
    )
    # untrue: the callback `Preemption` sets its own handlers
    logging.getLogger("lightning.pytorch.trainer.connectors.signal_connector").addFilter(
        lambda record: "auto-requeueing enabled" not in record.getMessage()
    )
