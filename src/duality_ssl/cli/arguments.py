"""What the words of a command line mean: options, configs, and the run that a fit goes on with."""

import os
import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

from jsonargparse import ActionConfigFile, DefaultHelpFormatter
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from duality_ssl.callbacks import (
    BackboneWriter,
    BestCheckpoint,
    CollapseGuard,
    DualityMonitor,
    FeatureWriter,
    LastCheckpoint,
    OfflineEvaluation,
    OnlineKNN,
    OnlineLinearProbe,
    Preemption,
    RankMe,
    ViewGrid,
)
from duality_ssl.cli.config_files import check_groups, config_files
from duality_ssl.cli.messages import explain, options_of, refuse, subclasses
from duality_ssl.methods import JointEmbedding
from duality_ssl.registry import limit_imports, named_modules
from duality_ssl.runs.folder import (
    CONFIG,
    last_checkpoint,
    newest_checkpoint,
    newest_run,
    one_before,
    own_folder,
    read_checkpoint,
    run_of,
    runs_folder,
)

# what --ckpt_path takes for the newest run
LAST = "last"

SUBCOMMANDS = {
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


def method_names() -> list[str]:
    """Names that ``--model`` takes, a user's own imported methods included."""
    return sorted(cls.__name__ for cls in subclasses(JointEmbedding))


class HelpFormatter(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Keeps the lines of the description as they are written."""


class CommandParser(LightningArgumentParser):
    """A parser whose errors are a sentence, with the nearest valid names, and no page of usage."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print what is wrong and what would be right; exit with code 2."""
        if debugging() or not self.exit_on_error:
            super().error(message, ex)
        refuse(explain(message, getattr(ex, "subcommand_parser", None) or self, method_names()))


class Arguments(LightningCLI):
    """LightningCLI up to the config that a command line means, and the run that it goes on with.

    Args:
        words: The command line.
        **kwargs: Those of LightningCLI.
    """

    run: Path | None = None
    """Folder of the run that a fit goes on with."""

    def __init__(self, words: list[str], **kwargs: Any) -> None:
        first = words[0] if words else None
        # collecting the options of a subcommand takes a while: only of those that are asked for
        self._wanted = {first} if first in SUBCOMMANDS else {*SUBCOMMANDS}
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
            choice.help = SUBCOMMANDS[choice.dest]

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
                limit_imports_of(self._words)
                self.config = parser.parse_args(_after_config(self.run, self._words))
                options = self.config.fit
            limits = options.trainer.max_epochs, options.trainer.max_steps
            checkpoint = newest_checkpoint(self.run) if self.run else None
            best = checkpoint is not None and checkpoint.path.stem == "best"
            if self.run and checkpoint and best and checkpoint.is_complete(*limits):
                # from before the end of the run: with no step left, nothing would lead there
                checkpoint = newest_checkpoint(self.run, but=checkpoint.path)
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


def limit_imports_of(words: Sequence[str]) -> None:
    """Before a run's own config is read: it may name what the package, or these words, name."""
    own = {method.__module__ for method in subclasses(JointEmbedding)}
    limit_imports(own | named_modules(words, config_files(words)))


def _split(word: str) -> list[str]:
    return word.split("=", 1) if word.startswith("--ckpt_path=") else [word]


def debugging() -> bool:
    """Whether the user wants to see tracebacks, by ``DUALITY_SSL_DEBUG=1``."""
    return os.environ.get("DUALITY_SSL_DEBUG", "") not in ("", "0")
