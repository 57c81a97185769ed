"""The command ``duality-ssl fit|validate|test|predict``."""

import logging
import sys
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from lightning import Callback, Trainer
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from duality_ssl.callbacks import ChangedValues, GuardError, RunProgress, RunSummary, StepSeed
from duality_ssl.callbacks.memory import MemoryEstimate
from duality_ssl.cli.arguments import (
    SUBCOMMANDS,
    Arguments,
    debugging,
    limit_imports_of,
    method_names,
    with_config_of_run,
)
from duality_ssl.cli.config_files import check_configs, config_files
from duality_ssl.cli.messages import no_method, refuse, sentence_of
from duality_ssl.data import SSLDataModule, create_source
from duality_ssl.methods import JointEmbedding
from duality_ssl.methods.strategy import check_strategy
from duality_ssl.registry import imports_as_before
from duality_ssl.runs.checkpoint_io import AtomicCheckpointIO
from duality_ssl.runs.folder import RunFolder, alone_in, runs_folder
from duality_ssl.runs.loggers import RunCSVLogger, RunTensorBoardLogger
from duality_ssl.runs.supervision import end_together

_DESCRIPTION = """\
Self-supervised image pretraining: contrastive and non-contrastive methods under one roof.

  duality-ssl fit -c configs/data/digits.yaml --model VICReg
  duality-ssl fit -c configs/data/digits.yaml --model SimCLR --model.temperature 0.2
  duality-ssl test --ckpt_path runs/digits/VICReg/version_0/checkpoints/last.ckpt

Methods: {methods}.
What a method takes: duality-ssl fit --model.help VICReg; all the rest: duality-ssl fit --help."""

# options that the Trainer takes for a run without a step, or divides by
_ABOVE_ZERO = (
    *("accumulate_grad_batches", "check_val_every_n_epoch", "limit_train_batches"),
    *("max_epochs", "max_steps", "val_check_interval"),
)


class Command(Arguments):
    """The command, with the callbacks of a run, its folder, and one seed for everything."""

    def before_instantiate_classes(self) -> None:
        """Refuse to go on without a method; hand the data the seed, the method the channels."""
        model, data = self._get(self.config, "model"), self._get(self.config, "data")
        if model.class_path.rpartition(".")[2] == JointEmbedding.__name__:
            refuse(no_method(method_names()))
        data.seed = int(self._get(self.config, "seed_everything"))
        if model.get("init_args.in_channels", 3) is None:  # a method may have none of its own
            model.init_args.in_channels = create_source(data.source, data.root).channels
        if self.subcommand != "fit" and self._get(self.config, "ckpt_path") is None:
            rank_zero_warn("Without --ckpt_path the network is as it was drawn, untrained.")

    def after_instantiate_classes(self) -> None:
        """Refuse what cannot work while no folder is made and no other process is started."""
        self.datamodule.setup(self.subcommand)
        self.model.check_images(self.datamodule.channels, self.datamodule.image_size)
        checkpoint = self._get(self.config, "ckpt_path")
        if checkpoint is not None:
            content = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
            self.model.check_weights(content)
        if self.subcommand == "fit":
            self.datamodule.check_batch(self.trainer.world_size)
            self.model.build_optimizer(lr=0.1)
            if checkpoint is None:
                self.model.load_pretrained()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Log a fit to ``runs/EXPERIMENT/METHOD/version_N``; the other commands log nothing."""
        config = self._get(self.config_init, "trainer")
        check_strategy(config.strategy)
        for name in _ABOVE_ZERO if self.subcommand == "fit" else ():
            value = config[name]
            endless = value == -1 and name.startswith("max_")
            if isinstance(value, int | float) and value <= 0 and not endless:
                refuse(f"Expected trainer.{name} to be above 0, but got {value}.")
        if self.subcommand != "fit" or config.logger is False:  # no folder of a new run
            self.save_config_callback = None
        self.save_config_kwargs = {"overwrite": self.run is not None}
        without = {*self._get(self.config, "without")}
        if config.enable_checkpointing is False:
            without |= {"last_checkpoint", "best_checkpoint"}
        keys = self._parser(self.subcommand).callback_keys
        keys[:] = [key for key in keys if key not in without]
        callbacks: list[Callback] = []
        if config.logger in (None, True):
            kwargs["logger"] = self._loggers() if self.subcommand == "fit" else False
        if self.subcommand == "fit" and config.logger is not False:
            callbacks.append(LearningRateMonitor(logging_interval="step"))
        if self.subcommand == "fit":
            callbacks += [StepSeed(), ChangedValues(), MemoryEstimate()]
        plugins = config.plugins if isinstance(config.plugins, list) else [config.plugins]
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            kwargs["plugins"] = [*filter(None, plugins), AtomicCheckpointIO()]
        # last: what comes after it counts as a wait for data
        callbacks.append(RunSummary() if config.enable_progress_bar is False else RunProgress())
        self.trainer_defaults["callbacks"] = callbacks
        try:
            return super().instantiate_trainer(**kwargs)
        except (ImportError, TypeError, ValueError, MisconfigurationException) as error:
            hint = " On a machine without a GPU take -c configs/hardware/cpu.yaml."
            no_gpu = "No supported gpu" in str(error)
            raise ValueError(f"The Trainer refuses: {error}{hint if no_gpu else ''}") from error

    def after_fit(self) -> None:
        """Say so if the end of the run is not on the disk."""
        plugin = self.trainer.strategy.checkpoint_io
        if isinstance(plugin, AtomicCheckpointIO) and plugin.failed:
            refuse("The fit has ended, but its last checkpoint could not be written.", code=1)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        """Have Lightning unpickle nothing, whatever a config or the environment says of it."""
        arguments = super()._prepare_subcommand_kwargs(subcommand)
        if arguments.get("weights_only") is False:
            refuse("Expected no weights_only of false: nothing in a checkpoint is unpickled here.")
        return {**arguments, "weights_only": True}

    def _run_subcommand(self, subcommand: str) -> None:
        """Run it on all processes or on none, alone in the folder of a run that goes on."""
        alone = alone_in(self.run) if self.run and self.trainer.is_global_zero else nullcontext()
        with alone, end_together(self.trainer):
            super()._run_subcommand(subcommand)

    def _loggers(self) -> list[RunTensorBoardLogger | RunCSVLogger]:
        runs = self.run.parent if self.run else runs_folder(self.config.fit)
        place: dict[str, Any] = {"save_dir": runs.parent, "name": runs.name}
        version = self.run.name if self.run else None
        tensorboard = RunTensorBoardLogger(**place, version=version, default_hp_metric=False)
        return [tensorboard, RunCSVLogger(**place, version=tensorboard.version)]


def main(args: Sequence[str] | None = None) -> None:
    """Run ``duality-ssl`` with these arguments, by default those of the command line.

    A mistake of the user ends in one sentence and exit code 2, a fit that the guard ends in one and
    exit code 3; with ``DUALITY_SSL_DEBUG=1`` the traceback is shown.
    """
    own = list(sys.argv[1:] if args is None else args)
    _quiet()
    try:
        with imports_as_before():
            words = with_config_of_run(own)
            check_configs(words)
            if config_files(words) != config_files(own):
                limit_imports_of(own)
            Command(
                words,
                model_class=JointEmbedding,
                datamodule_class=SSLDataModule,
                subclass_mode_model=True,
                auto_configure_optimizers=False,
                save_config_callback=RunFolder,
                seed_everything_default=0,
                parser_kwargs={
                    "prog": "duality-ssl",
                    "description": _DESCRIPTION.format(methods=", ".join(method_names())),
                    **{name: {"description": text} for name, text in SUBCOMMANDS.items()},
                },
            )
    except Exception as error:
        sentence = sentence_of(error)
        if sentence is None or debugging():
            raise
        line = f"{sentence} (DUALITY_SSL_DEBUG=1 shows the traceback.)"
        refuse(line, code=3 if isinstance(error, GuardError) else 2)


def _quiet() -> None:
    """Silence what libraries say of each other and the user can do nothing about."""
    # config.yaml and the events of TensorBoard are in the run's folder before metrics.csv is
    warnings.filterwarnings("ignore", "Experiment logs directory .* exists and is not empty")
    # of a run that goes on
    warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")
    warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated")
    # the interval is shortened to the epoch when training starts
    warnings.filterwarnings("ignore", ".*is smaller than the logging interval")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: "litlogger" not in record.getMessage()
    )
    # each process says so, and it is not so: the callback `Preemption` sets its own
    logging.getLogger("lightning.pytorch.trainer.connectors.signal_connector").addFilter(
        lambda record: "auto-requeueing enabled" not in record.getMessage()
    )
