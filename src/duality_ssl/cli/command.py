"""The command ``duality-ssl fit|validate|test|predict``."""

import os
import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from textwrap import fill
from typing import Any, Literal, NoReturn

import torch
from jsonargparse import ActionConfigFile, DefaultHelpFormatter, Namespace
from lightning import Callback, Trainer
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.exceptions import MisconfigurationException

import duality_ssl
from duality_ssl import callbacks
from duality_ssl._internals.lightning import silence
from duality_ssl.callbacks.duration import DurationEstimate
from duality_ssl.callbacks.memory import MemoryEstimate
from duality_ssl.cli.config_files import CommandLine
from duality_ssl.cli.messages import explain, no_method, options_of, refuse, sentence_of, subclasses
from duality_ssl.cli.tools import TOOLS, run_tool
from duality_ssl.data import SSLDataModule, create_source, recipe
from duality_ssl.methods import FrozenBackbone, JointEmbedding
from duality_ssl.methods.strategy import check_strategy, end_together
from duality_ssl.registry import imports_as_before, limit_imports
from duality_ssl.runs.checkpoint_io import AtomicCheckpointIO
from duality_ssl.runs.config import Config, dump_run_config, read_run_config, unknown_options
from duality_ssl.runs.folder import RunFolder, read_checkpoint, run_of, runs_folder
from duality_ssl.runs.loggers import named_loggers
from duality_ssl.runs.resume import LAST, Resume, find_checkpoint, flatten, resolve_resume

_DESCRIPTION = """\
Self-supervised image pretraining: contrastive and non-contrastive methods under one roof.

  duality-ssl fit -c configs/data/digits.yaml --model VICReg
  duality-ssl fit -c configs/data/digits.yaml --model SimCLR --model.temperature 0.2
  duality-ssl test --ckpt_path runs/digits/VICReg/version_0/checkpoints/last.ckpt

Without training: duality-ssl sweep|report|export --help.
Methods: {methods}.
What a method takes: duality-ssl fit --model.help VICReg; all the rest: duality-ssl fit --help."""

_SUBCOMMANDS = {
    "fit": "Pretrain, watch the probes, write runs/EXPERIMENT/METHOD/version_N.",
    "validate": "Print the metrics of a checkpoint: its online probes and RankMe.",
    "test": "Evaluate frozen features offline; write evaluation.json beside the checkpoint.",
    "predict": "Write features and labels to features.npz beside the checkpoint.",
}

_CALLBACKS = {
    "probe": callbacks.OnlineLinearProbe,
    "knn": callbacks.OnlineKNN,
    "rankme": callbacks.RankMe,
    "duality": callbacks.DualityMonitor,
    "guard": callbacks.CollapseGuard,
    "views": callbacks.ViewGrid,
    "preemption": callbacks.Preemption,
    "last_checkpoint": callbacks.LastCheckpoint,
    "best_checkpoint": callbacks.BestCheckpoint,
    "backbone": callbacks.BackboneWriter,
    "evaluation": callbacks.OfflineEvaluation,
    "features": callbacks.FeatureWriter,
}

# options whose 0 the Trainer takes for a run without a step, or divides by
_ABOVE_ZERO = (
    *("accumulate_grad_batches", "check_val_every_n_epoch", "limit_train_batches"),
    *("max_epochs", "max_steps", "val_check_interval"),
)


def method_names() -> list[str]:
    """Names that ``--model`` takes, imported methods of the user's included."""
    return sorted(cls.__name__ for cls in subclasses(JointEmbedding))


class _HelpFormatter(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Keeps the line breaks of the description."""


class _Parser(LightningArgumentParser):
    """A parser whose errors are one sentence, without the usage."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print what is wrong and what would be right; exit with code 2."""
        if _debugging() or not self.exit_on_error:
            super().error(message, ex)
        refuse(explain(message, getattr(ex, "subcommand_parser", None) or self, method_names()))


class Command(LightningCLI):
    """The command: parses the options, finds what to resume, and runs the Trainer."""

    resume = Resume()
    checkpoint: Path | None = None  # of the weights
    plain: str | None = None  # weights without a checkpoint: a backbone's file
    run_options: Config | None = None  # of the run that is resumed or evaluated

    def __init__(self, line: CommandLine) -> None:
        self.line = line
        super().__init__(
            args=line.words,
            model_class=JointEmbedding,
            datamodule_class=SSLDataModule,
            subclass_mode_model=True,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            parser_kwargs={
                "prog": "duality-ssl",
                "description": _DESCRIPTION.format(methods=fill(", ".join(method_names()), 90)),
                **{name: {"description": _SUBCOMMANDS[name]} for name in self.subcommands()},
            },
        )

    @property
    def options(self) -> Namespace:
        """The options of the subcommand."""
        return self.config[self.config.subcommand]

    @property
    def folder(self) -> Path:
        """Where the runs of this experiment and method are."""
        return runs_folder(flatten(self.options.as_dict()))

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """The subcommands; only the one that is run, as collecting its options takes a while."""
        known = super().subcommands()
        named = self.line.words[:1]
        return {name: known[name] for name in named if name in known} or known

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """A parser without abbreviations: a mistyped option must not set another one."""
        kwargs |= {"dump_header": [f"duality_ssl {duality_ssl.__version__}"]}
        parser = _Parser(allow_abbrev=False, formatter_class=_HelpFormatter, **kwargs)
        config = "A YAML file of options."
        parser.add_argument("-c", "--config", action=ActionConfigFile, help=config)
        return parser

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add what a run decides first, and the many options of the Trainer last."""
        self.options_parser = parser
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
            help="Resume the newest run of this experiment and method, as --ckpt_path last.",
        )
        parser.add_argument(
            "--recipe",
            type=Literal["none", "auto"],
            default="none",
            help="auto: options that are not set follow from the number and size of the images.",
        )
        parser.add_lightning_class_args(JointEmbedding, "model", subclass_mode=True)
        parser.add_lightning_class_args(SSLDataModule, "data")
        for key, callback in _CALLBACKS.items():
            parser.add_lightning_class_args(callback, key)
        parser.add_lightning_class_args(self.trainer_class, "trainer")
        parser.set_defaults({"trainer.default_root_dir": "runs"})
        # one seed for all
        parser.link_arguments("seed_everything", "data.seed", compute_fn=lambda x: int(x or 0))

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse, find the run, compare, and parse again with the run's config underneath."""
        for path, content in self.line.configs.items():
            unknown_options(content, path, options_of(parser))  # the parser names those
        given = self.line.ckpt_path
        if given in (None, LAST):
            self.config = parser.parse_args(self.line.words)
            if given is None and self.config.subcommand == "fit" and self.options.resume:
                given = LAST
        if given is not None:
            self._start_from(given, parser)
        if self.options.recipe == "auto" and self.run_options is None:
            self._follow_recipe(parser)
        options, seed = self.options, self.options.seed_everything
        if seed is None or not 0 <= seed < 2**32:
            refuse(f"Expected seed_everything in 0 ... 2^32 - 1, but got {seed}.")
        if options.weights_only is False:
            refuse("Expected no weights_only of false: nothing in a checkpoint is unpickled here.")
        options.ckpt_path = None  # or Lightning would set the model's options from the checkpoint

    def _start_from(self, given: str, parser: LightningArgumentParser) -> None:
        """Decide what ``--ckpt_path`` means, and parse with the run's config underneath."""
        own = {method.__module__ for method in subclasses(JointEmbedding)}
        limit_imports(own | self.line.modules())

        @cache
        def load(run: Path) -> Config | None:
            return read_run_config(run, options_of(parser))

        def merge(config: Config | None) -> Config:
            parsed = parser.parse_args(self.line.over(config), defaults=config is None)
            return dict(parsed[parsed.subcommand].as_dict())

        if self.line.words[0] == "fit":
            if given == LAST and self.options.trainer.logger is False:
                refuse(
                    "Expected no --trainer.logger false with --ckpt_path last: such a fit has no "
                    "folder. Name a checkpoint with --ckpt_path."
                )
            self.resume = resolve_resume(given, load, merge)
            if self.resume.note:
                rank_zero_info(self.resume.note)
            if self.resume.complete:
                sys.exit(0)
            self.checkpoint = self.resume.checkpoint.path if self.resume.checkpoint else None
        else:
            self.checkpoint = find_checkpoint(given, lambda: self.folder)
            read_checkpoint(self.checkpoint, of_fit=False)
        run = self.resume.run or (run_of(self.checkpoint) if self.checkpoint else None)
        self.run_options = load(run) if run else None
        self.config = parser.parse_args(self.line.over(self.run_options))

    def _follow_recipe(self, parser: LightningArgumentParser) -> None:
        """Parse with the options that suit the images underneath, and say what they are."""
        options = self.options
        data = options.data
        found = recipe.survey(data.source, data.root, data.subset)
        if found is None:
            return
        accelerator, epochs = str(options.trainer.accelerator), options.trainer.max_epochs
        choices = recipe.recommend_here(found.images, found.side, accelerator, epochs)
        config = recipe.as_config(choices)
        self.config = parser.parse_args(self.line.over(config))
        chosen, now = flatten(config), flatten(self.options.as_dict())
        kept = {name for name, value in chosen.items() if now.get(name) == value}
        rank_zero_info(recipe.describe(found, choices, kept))

    def before_instantiate_classes(self) -> None:
        """Refuse a missing method; give the data the seed and the method the channels."""
        options = self.options
        model, data = options.model, options.data
        if self.subcommand in ("test", "predict") and self.checkpoint is None:
            self.plain = model.get("init_args.pretrained")
        if self.plain is None and model.class_path.rpartition(".")[2] == JointEmbedding.__name__:
            refuse(no_method(method_names()))
        data.seed = int(options.seed_everything)
        if model.get("init_args.in_channels", 3) is None:  # a method may not take any
            model.init_args.in_channels = create_source(data.source, data.root).channels
        if self.subcommand != "fit" and self.checkpoint is None and self.plain is None:
            rank_zero_warn("Without --ckpt_path the network is untrained: its weights are random.")
        self.run_config = dump_run_config(self.options_parser, options)
        # the folder of a run is known later, and a logger may write as soon as it is built
        named = options.trainer.logger
        self.logs = named is not False and not options.trainer.fast_dev_run
        listed = named if isinstance(named, list) else [named]
        self.named = [each.as_dict() for each in listed if isinstance(each, Namespace)]
        options.trainer.logger = False

    def instantiate_classes(self) -> None:
        """Build what the options name; of plain weights the backbone alone, without a method."""
        if self.plain is None:
            super().instantiate_classes()
            return
        config = self.config.clone()
        named = config[self.subcommand].pop("model").init_args
        self.config_init = self.parser.instantiate(config)
        self.datamodule = self.config_init[self.subcommand].data
        shape = {name: named.get(name) for name in ("backbone", "in_channels", "image_size")}
        self.model = FrozenBackbone(weights=self.plain, **shape)
        self.trainer = self.instantiate_trainer()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """A trainer with the callbacks of the subcommand; a fit has its folder, too."""
        options = self.config_init[self.subcommand]
        settings = {**options.trainer, **kwargs}
        check_strategy(settings["strategy"])
        fits = self.subcommand == "fit"
        for name in _ABOVE_ZERO if fits else ():
            value = settings[name]
            no_limit = value == -1 and name.startswith("max_")
            if isinstance(value, int | float) and value <= 0 and not no_limit:
                refuse(f"Expected trainer.{name} to be above 0, but got {value}.")
        without = {*options.without}
        if settings["enable_checkpointing"] is False:
            without |= {"last_checkpoint", "best_checkpoint"}
        named = settings["callbacks"] or []
        chosen: list[Callback] = [*(named if isinstance(named, list) else [named])]
        chosen += [options[key] for key in _CALLBACKS if key not in without]
        if fits:
            chosen += [callbacks.StepSeed(), MemoryEstimate()]
        if fits and options.recipe == "auto":
            chosen.append(DurationEstimate())
        if fits and self.logs:
            start = self.resume.run, self.resume.checkpoint
            folder = RunFolder(self.folder, self.run_config, *start, self.named)
            chosen = [folder, *chosen, LearningRateMonitor("step")]
        elif self.named and self.logs:  # the other commands log to what the user names
            run = run_of(self.checkpoint) if self.checkpoint else self.folder
            settings["logger"] = named_loggers(run, self.named)
        quiet = settings["enable_progress_bar"] is False
        settings["enable_progress_bar"] = True  # of ours, also for the last line alone
        # last: what comes after it counts as waiting for data
        chosen.append(callbacks.RunProgress(0) if quiet else callbacks.RunProgress())
        plugins = settings["plugins"]
        plugins = plugins if isinstance(plugins, list) else [plugins]
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            settings["plugins"] = [*filter(None, plugins), AtomicCheckpointIO()]
        try:
            return Trainer(**settings | {"callbacks": chosen})
        except (ImportError, TypeError, ValueError, MisconfigurationException) as error:
            hint = " On a machine without a GPU take -c configs/hardware/cpu.yaml."
            no_gpu = "No supported gpu" in str(error)
            raise ValueError(f"The Trainer refuses: {error}{hint if no_gpu else ''}") from error

    def after_instantiate_classes(self) -> None:
        """Refuse what cannot work before a folder is made or another process is started."""
        self.datamodule.setup(self.subcommand)
        self.model.check_images(self.datamodule.channels, self.datamodule.image_size)
        if self.checkpoint is not None:
            content = torch.load(self.checkpoint, map_location="cpu", weights_only=True, mmap=True)
            self.model.check_weights(content)
        if self.subcommand == "fit":
            self.datamodule.check_batch(self.trainer.world_size)
            self.model.build_optimizer(lr=0.1)
            if self.checkpoint is None:
                self.model.load_pretrained()
            else:
                self.model.check_groups(content)

    def run(self, **arguments: Any) -> None:
        """Run the Trainer; exit with code 1 if the last checkpoint could not be written."""
        arguments |= {"ckpt_path": self.checkpoint, "weights_only": True}
        if self.subcommand == "test":
            # Lightning's table repeats each figure for each loader; the evaluation prints its own
            arguments["verbose"] = False
        with end_together(self.trainer):
            getattr(self.trainer, self.config.subcommand)(**arguments)
        plugin = self.trainer.strategy.checkpoint_io
        if isinstance(plugin, AtomicCheckpointIO) and plugin.failed:
            refuse("The fit has ended, but its last checkpoint could not be written.", code=1)

    fit = validate = test = predict = run


def main(args: Sequence[str] | None = None) -> None:
    """Run ``duality-ssl`` with these arguments, by default those of the command line.

    A mistake ends in one sentence and exit code 2, a fit that the guard stops in exit code 3.
    """
    silence()
    words = sys.argv[1:] if args is None else args
    try:
        if words[:1] and words[0] in TOOLS:
            return run_tool(words, **({"command": main} if words[0] == "sweep" else {}))
        with imports_as_before():
            Command(CommandLine(words))
    except Exception as error:
        sentence = sentence_of(error)
        if sentence is None or _debugging():
            raise
        line = f"{sentence} (DUALITY_SSL_DEBUG=1 shows the traceback.)"
        refuse(line, code=3 if isinstance(error, callbacks.GuardError) else 2)


def _debugging() -> bool:
    return os.environ.get("DUALITY_SSL_DEBUG", "") not in ("", "0")
