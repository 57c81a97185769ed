"""The command ``duality-ssl fit|validate|test|predict``."""

import logging
import os
import sys
import warnings
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from jsonargparse import ActionConfigFile, DefaultHelpFormatter
from lightning import Callback, Trainer
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from duality_ssl.callbacks import (
    BackboneWriter,
    BestCheckpoint,
    ChangedValues,
    CollapseGuard,
    DualityMonitor,
    FeatureWriter,
    GuardError,
    LastCheckpoint,
    OfflineEvaluation,
    OnlineKNN,
    OnlineLinearProbe,
    Preemption,
    RankMe,
    RunProgress,
    RunSummary,
    StepSeed,
    ViewGrid,
)
from duality_ssl.checkpoint_io import AtomicCheckpointIO
from duality_ssl.config_files import check_configs, check_groups, config_files
from duality_ssl.data import SSLDataModule
from duality_ssl.imports import imports_as_before, limit_imports, named_modules
from duality_ssl.loggers import RunCSVLogger, RunTensorBoardLogger
from duality_ssl.memory import MemoryEstimate
from duality_ssl.messages import (
    explain,
    no_method,
    options_of,
    refuse,
    sentence_of,
    subclasses,
)
from duality_ssl.methods import JointEmbedding
from duality_ssl.runs import (
    CONFIG,
    RunFolder,
    alone_in,
    last_checkpoint,
    newest_checkpoint,
    newest_run,
    one_before,
    own_folder,
    read_checkpoint,
    run_of,
    runs_folder,
)
from duality_ssl.strategy import LostProcessError, check_strategy, one_for_all

_DESCRIPTION = """\
Self-supervised image pretraining: contrastive and non-contrastive methods under one roof.

  duality-ssl fit -c configs/data/digits.yaml --model VICReg
  duality-ssl fit -c configs/data/digits.yaml --model SimCLR --model.temperature 0.2
  duality-ssl test --ckpt_path runs/digits/VICReg/version_0/checkpoints/last.ckpt

Methods: {methods}.
What a method takes: duality-ssl fit --model.help VICReg; all the rest: duality-ssl fit --help."""

# what --ckpt_path takes for the newest run
LAST = "last"

_SUBCOMMANDS = {
    "fit": "Pretrain, watch the probes, write runs/EXPERIMENT/METHOD/version_N.",
    "validate": "Print the metrics of a checkpoint: its online probes and RankMe.",
    "test": "Evaluate frozen features offline; write evaluation.json beside the checkpoint.",
    "predict": "Write features and labels to features.npz beside the checkpoint.",
}

_CALLBACKS = {
    "probe": OnlineLinearProbe,
    "knn": OnlineKNN,
    "rankme": RankMe,
    "duality": DualityMonitor,
    "guard": CollapseGuard,
    "views": ViewGrid,
    "preemption": Preemption,
    "last_checkpoint": LastCheckpoint,
    "best_checkpoint": BestCheckpoint,
    "backbone": BackboneWriter,
    "evaluation": OfflineEvaluation,
    "features": FeatureWriter,
}

# options that the Trainer takes for a run without a step, or divides by
_ABOVE_ZERO = (
    *("accumulate_grad_batches", "check_val_every_n_epoch", "limit_train_batches"),
    *("max_epochs", "max_steps", "val_check_interval"),
)


def method_names() -> list[str]:
    """Names that ``--model`` takes, a user's own imported methods included."""
    return sorted(cls.__name__ for cls in subclasses(JointEmbedding))


class HelpFormatter(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Keeps the lines of the description as they are written."""


class CommandParser(LightningArgumentParser):
    """A parser whose errors are a sentence, with the nearest valid names, and no page of usage."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print what is wrong and what would be right; exit with code 2."""
        if _debugging() or not self.exit_on_error:
            super().error(message, ex)
        refuse(explain(message, getattr(ex, "subcommand_parser", None) or self, method_names()))


class Command(LightningCLI):
    """LightningCLI with the callbacks of a run, its folder, and one seed for everything.

    Args:
        words: The command line.
        **kwargs: Those of LightningCLI.
    """

    run: Path | None = None
    """Folder of the run that a fit goes on with."""

    def __init__(self, words: list[str], **kwargs: Any) -> None:
        first = words[0] if words else None
        # collecting the options of a subcommand takes a while: only of those that are asked for
        self._wanted = {first} if first in _SUBCOMMANDS else {*_SUBCOMMANDS}
        if first in ("-h", "--help"):
            self._wanted.clear()
        self._words = words
        super().__init__(args=words, **kwargs)

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Take no abbreviation: a mistyped option must not set another one."""
        parser = CommandParser(allow_abbrev=False, formatter_class=HelpFormatter, **kwargs)
        parser.add_argument(
            "-c", "--config", action=ActionConfigFile, help="A YAML file of options."
        )
        return parser

    def setup_parser(self, *args: Any, **kwargs: Any) -> None:
        """Say what each subcommand does here, not what the Trainer's method does."""
        super().setup_parser(*args, **kwargs)
        for choice in self.parser._subcommands_action._choices_actions:  # type: ignore[union-attr]
            choice.help = _SUBCOMMANDS[choice.dest]

    def _prepare_subcommand_parser(
        self, klass: type, subcommand: str, **kwargs: Any
    ) -> LightningArgumentParser:
        if subcommand not in self._wanted:
            return self.init_parser(**kwargs)
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand == "test":
            # Lightning's table says every figure twice, once a loader; the evaluation says it once
            parser.set_defaults({"verbose": False})
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse what `main` made of the command line; Lightning would warn of it."""
        for known in self._subcommand_parsers.keys() & self._wanted:
            check_groups(self._words, options_of(self._subcommand_parsers[known]))
        self.config = parser.parse_args(args)  # type: ignore[arg-type]
        options = self.config[self.config.subcommand]
        seed = options.seed_everything
        if seed is None or not 0 <= seed < 2**32:
            refuse(f"Expected seed_everything in 0 ... 2^32 - 1, but got {seed}.")
        if self.config.subcommand == "fit":
            self._go_on(parser)
        elif options.ckpt_path is not None:
            read_checkpoint(Path(options.ckpt_path), of_fit=False)

    def _go_on(self, parser: LightningArgumentParser) -> None:
        """Find the run and the checkpoint that a fit goes on with, if it is to go on.

        Every process looks for itself: none writes before all have joined.
        """
        options = self.config.fit
        checkpoint = None
        if str(options.ckpt_path) == LAST or (options.resume and options.ckpt_path is None):
            if options.trainer.logger not in (None, True):
                refuse(
                    "Expected no --trainer.logger, as the folder of the run's own loggers tells "
                    "which run was the last. Name its checkpoint with --ckpt_path."
                )
            self.run = newest_run(runs_folder(options))
            if self.run:
                _limit_imports(self._words)
                self.config = parser.parse_args(_after_config(self.run, self._words))
                options = self.config.fit
            checkpoint = newest_checkpoint(self.run) if self.run else None
            options.ckpt_path = str(checkpoint.path) if checkpoint else None
        elif options.ckpt_path is not None:
            checkpoint = read_checkpoint(Path(options.ckpt_path))
            self.run = own_folder(checkpoint.path, options)
            newest = newest_checkpoint(self.run) if self.run else None
            if newest and newest.step > checkpoint.step:
                rank_zero_warn(
                    f"{checkpoint.path} is of step {checkpoint.step}, and {newest.path} of step "
                    f"{newest.step}: what the run has done since is overwritten. To keep it, go on "
                    "under another name with --experiment."
                )
        trainer = options.trainer
        if checkpoint and checkpoint.is_complete(trainer.max_epochs, trainer.max_steps):
            rank_zero_info(
                f"{checkpoint.path} is complete, at epoch {checkpoint.epochs} and step "
                f"{checkpoint.step}: nothing to do. To train on, raise --trainer.max_epochs."
            )
            sys.exit(0)

    def _parse_ckpt_path(self) -> None:
        """The config of the checkpoint's run is read already, and the user's words come after it.

        What Lightning would take from the checkpoint instead has no optimiser and overrides them.
        """

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add what a run decides first, and the Trainer's many options last."""
        parser.usage = "%(prog)s [-c FILE.yaml ...] [--model METHOD] [--GROUP.OPTION VALUE ...]"
        parser.add_argument(
            "--experiment",
            type=str | None,
            default=None,
            help="Names the run's folder, runs/EXPERIMENT/METHOD/version_N; default: the source.",
        )
        parser.add_argument(
            "--without",
            type=list[Literal[tuple(_CALLBACKS)]],  # type: ignore[misc]
            default=[],
            help="Callbacks to leave out, such as --without '[views, duality]'.",
        )
        parser.add_argument(
            "--resume",
            type=bool,
            default=False,
            help="Go on with the newest run of this experiment and method, as --ckpt_path last.",
        )
        parser.add_lightning_class_args(self._model_class, "model", subclass_mode=True)
        parser.add_lightning_class_args(self._datamodule_class, "data")
        for key, callback in _CALLBACKS.items():
            parser.add_lightning_class_args(callback, key)
        parser.add_lightning_class_args(self.trainer_class, "trainer")
        parser.set_defaults({"trainer.default_root_dir": "runs"})
        # one seed for all
        parser.link_arguments("seed_everything", "data.seed", compute_fn=lambda x: int(x or 0))

    def before_instantiate_classes(self) -> None:
        """Refuse to go on without a method; hand the data the seed that was drawn."""
        method = self._get(self.config, "model")["class_path"].rpartition(".")[2]
        if method == JointEmbedding.__name__:
            refuse(no_method(method_names()))
        self._get(self.config, "data").seed = int(self._get(self.config, "seed_everything"))
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
        with alone, one_for_all(self.trainer):
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
                _limit_imports(own)
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
                    **{name: {"description": text} for name, text in _SUBCOMMANDS.items()},
                },
            )
    except Exception as error:
        sentence = sentence_of(error)
        if sentence is None or _debugging():
            raise
        codes = {LostProcessError: 1, GuardError: 3}
        refuse(sentence, code=codes.get(type(error), 2))


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


def with_config_of_run(words: list[str]) -> list[str]:
    """Put the run's own ``config.yaml`` before all else where ``--ckpt_path`` names a checkpoint.

    ``--ckpt_path`` may also be the folder of a run: its last checkpoint is meant then.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
    """
    words = [part for word in words for part in _split(word)]
    if "--ckpt_path" not in words[:-1]:
        return words
    at = words.index("--ckpt_path") + 1
    if words[0] == "fit" and words[at] == LAST:  # which it is depends on the other words
        return words
    checkpoint = Path(words[at])
    if checkpoint.is_dir():
        checkpoint = last_checkpoint(checkpoint)
    if not checkpoint.is_file():
        remedy = one_before(checkpoint) or " Name a .ckpt file, or the folder of a run."
        raise FileNotFoundError(f"There is no checkpoint {checkpoint}.{remedy}")
    return _after_config(run_of(checkpoint), [*words[:at], str(checkpoint), *words[at + 1 :]])


def _after_config(run: Path, words: list[str]) -> list[str]:
    config = run / CONFIG
    return [words[0], "--config", str(config), *words[1:]] if config.is_file() else words


def _limit_imports(words: Sequence[str]) -> None:
    """Before a run's own config is read: it may name what the package, or these words, name."""
    own = {method.__module__ for method in subclasses(JointEmbedding)}
    limit_imports(own | named_modules(words, config_files(words)))


def _split(word: str) -> list[str]:
    return word.split("=", 1) if word.startswith("--ckpt_path=") else [word]


def _debugging() -> bool:
    return os.environ.get("DUALITY_SSL_DEBUG", "") not in ("", "0")
