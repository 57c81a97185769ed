"""The command ``duality-ssl fit|validate|test|predict``."""

import logging
import os
import sys
import warnings
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

from jsonargparse import ActionConfigFile, DefaultHelpFormatter
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from duality_ssl.callbacks import (
    BestCheckpoint,
    CollapseGuard,
    DualityMonitor,
    FeatureWriter,
    LastCheckpoint,
    OfflineEvaluation,
    OnlineKNN,
    OnlineLinearProbe,
    RankMe,
    RunProgress,
    RunSummary,
    ViewGrid,
)
from duality_ssl.data import SSLDataModule
from duality_ssl.memory import MemoryEstimate
from duality_ssl.messages import (
    check_configs,
    explain,
    no_method,
    refuse,
    sentence_of,
    subclasses,
)
from duality_ssl.methods import JointEmbedding

_DESCRIPTION = """\
Self-supervised image pretraining: contrastive and non-contrastive methods under one roof.

  duality-ssl fit -c configs/data/digits.yaml --model VICReg
  duality-ssl fit -c configs/data/digits.yaml --model SimCLR --model.temperature 0.2
  duality-ssl test --ckpt_path runs/digits/VICReg/version_0/checkpoints/last.ckpt

Methods: {methods}.
What a method takes: duality-ssl fit --model.help VICReg; all the rest: duality-ssl fit --help."""

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
    "last_checkpoint": LastCheckpoint,
    "best_checkpoint": BestCheckpoint,
    "evaluation": OfflineEvaluation,
    "features": FeatureWriter,
}


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

    def __init__(self, words: list[str], **kwargs: Any) -> None:
        first = words[0] if words else None
        # collecting the options of a subcommand takes a while: only of those that are asked for
        self._wanted = {first} if first in _SUBCOMMANDS else {*_SUBCOMMANDS}
        if first in ("-h", "--help"):
            self._wanted.clear()
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
        self.config = parser.parse_args(args)  # type: ignore[arg-type]
        seed = self.config[self.config.subcommand].seed_everything
        if not 0 <= seed < 2**32:
            refuse(f"Expected seed_everything in 0 ... 2^32 - 1, but got {seed}.")

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
        parser.add_lightning_class_args(self._model_class, "model", subclass_mode=True)
        parser.add_lightning_class_args(self._datamodule_class, "data")
        for key, callback in _CALLBACKS.items():
            parser.add_lightning_class_args(callback, key)
        parser.add_lightning_class_args(self.trainer_class, "trainer")
        parser.set_defaults({"trainer.default_root_dir": "runs"})
        parser.link_arguments("seed_everything", "data.seed", compute_fn=int)  # one seed for all

    def before_instantiate_classes(self) -> None:
        """Refuse to go on without a method; hand the data the seed that was drawn."""
        method = self._get(self.config, "model")["class_path"].rpartition(".")[2]
        if method == JointEmbedding.__name__:
            refuse(no_method(method_names()))
        self._get(self.config, "data").seed = int(self._get(self.config, "seed_everything"))
        if self.subcommand != "fit" and self._get(self.config, "ckpt_path") is None:
            rank_zero_warn("Without --ckpt_path the network is as it was drawn, untrained.")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Log a fit to ``runs/EXPERIMENT/METHOD/version_N``; the other commands log nothing."""
        config = self._get(self.config_init, "trainer")
        if self.subcommand != "fit" or config.logger is False:  # no folder of a new run
            self.save_config_callback = None
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
            callbacks.append(MemoryEstimate())
        # last: what comes after it counts as a wait for data
        callbacks.append(RunSummary() if config.enable_progress_bar is False else RunProgress())
        self.trainer_defaults["callbacks"] = callbacks
        try:
            return super().instantiate_trainer(**kwargs)
        except (ValueError, MisconfigurationException) as error:
            hint = " On a machine without a GPU take -c configs/hardware/cpu.yaml."
            no_gpu = "No supported gpu" in str(error)
            raise ValueError(f"The Trainer refuses: {error}{hint if no_gpu else ''}") from error

    def _loggers(self) -> list[TensorBoardLogger | CSVLogger]:
        experiment = self._get(self.config, "experiment") or self._get(self.config, "data").source
        folder = Path(self._get(self.config, "trainer").default_root_dir) / experiment
        method = type(self.model).__name__
        tensorboard = TensorBoardLogger(folder, name=method, default_hp_metric=False)
        return [tensorboard, CSVLogger(folder, name=method, version=tensorboard.version)]


def main(args: Sequence[str] | None = None) -> None:
    """Run ``duality-ssl`` with these arguments, by default those of the command line.

    A mistake of the user ends in one sentence and exit code 2; with ``DUALITY_SSL_DEBUG=1`` the
    traceback is shown.
    """
    words = list(sys.argv[1:] if args is None else args)
    _quiet()
    try:
        words = with_config_of_run(words)
        check_configs(words)
        Command(
            words,
            model_class=JointEmbedding,
            datamodule_class=SSLDataModule,
            subclass_mode_model=True,
            auto_configure_optimizers=False,
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
        refuse(sentence)


def _quiet() -> None:
    """Silence what libraries say of each other and the user can do nothing about."""
    # config.yaml and the events of TensorBoard are in the run's folder before metrics.csv is
    warnings.filterwarnings("ignore", "Experiment logs directory .* exists and is not empty")
    warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated")
    # the interval is shortened to the epoch when training starts
    warnings.filterwarnings("ignore", ".*is smaller than the logging interval")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: "litlogger" not in record.getMessage()
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
    checkpoint = Path(words[at])
    if checkpoint.is_dir():
        checkpoint = checkpoint / "checkpoints" / "last.ckpt"
    if not checkpoint.is_file():
        raise FileNotFoundError(f"There is no checkpoint {checkpoint}.")
    words = [*words[:at], str(checkpoint), *words[at + 1 :]]
    config = checkpoint.absolute().parent.parent / "config.yaml"
    return [words[0], "--config", str(config), *words[1:]] if config.is_file() else words


def _split(word: str) -> list[str]:
    return word.split("=", 1) if word.startswith("--ckpt_path=") else [word]


def _debugging() -> bool:
    return os.environ.get("DUALITY_SSL_DEBUG", "") not in ("", "0")
