"""A run of a sweep: its two commands, its folder, and the content that identifies it."""

import contextlib
import hashlib
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from duality_ssl.runs.config import Config
from duality_ssl.runs.folder import CONFIG, runs_folder, versions
from duality_ssl.runs.resume import flatten
from duality_ssl.sweeps.specification import Cell, Options, Specification, substituted

Command = Callable[[Sequence[str]], object]
"""Runs the words of a command line, such as `duality_ssl.cli.main`."""

FOLDER = Path("runs/sweeps")

# options that change places, speed or what is shown, and no score
_INCIDENTAL = {
    *("ckpt_path", "experiment", "resume", "weights_only"),
    *("data.download", "data.num_workers", "data.predict_split", "data.seed"),
    *("model.compile", "model.in_channels"),
    *("trainer.accelerator", "trainer.default_root_dir", "trainer.enable_model_summary"),
    *("trainer.enable_progress_bar", "trainer.log_every_n_steps", "trainer.logger"),
    *("trainer.profiler", "features.filename", "backbone.filename"),
}


@dataclass(frozen=True, eq=False)
class Run:
    """A cell with a seed.

    Args:
        sweep: Name of the sweep.
        phase: "tune" or "grid".
        cell: A label for each axis.
        options: What the sweep sets.
        configs: Configs of the fit.
        seed: Seed of everything.
        evaluation: Options of the evaluation.
        config: The resolved config, with the evaluation's options.
        deciding: What differs from the defaults and decides scores, the seed included.
        varied: Names of the options that tuning varies.
    """

    sweep: str
    phase: str
    cell: Cell
    options: Options
    configs: list[str]
    seed: int
    evaluation: Options
    config: Config
    deciding: Options
    varied: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether the network is trained."""
        return bool(self.options.get("fit", True))

    @cached_property
    def key(self) -> str:
        """Identifies the result: 16 hexadecimal digits."""
        return _digest(self.deciding)

    @cached_property
    def title(self) -> str:
        """The run in words, such as ``VICReg, 512-512-16, d 16, seed 0``."""
        labels = [(axis, substituted(label, self.cell)) for axis, label in self.cell.items()]
        words = [each if isinstance(each, str) else f"{axis} {each}" for axis, each in labels]
        varied = [f"{name} {value}" for name, value in self.tuned.items()]
        return ", ".join([*words, *varied, f"seed {self.seed}"])

    @property
    def tuned(self) -> Options:
        """The options that tuning varies, with their values."""
        return {name: self.options[name] for name in self.varied}

    @cached_property
    def slug(self) -> str:
        """Name of the run's folder: its title, and a hash of what decides its training."""
        fit = {k: v for k, v in self.deciding.items() if not k.startswith("evaluation.")}
        title = re.sub(r"[^\w.-]+", "_", self.title)[:100]
        return f"{title}-{_digest(fit)[:8]}"

    @property
    def folder(self) -> Path:
        """Where the run is, or will be."""
        runs = runs_folder(flatten(self.config) | {"experiment": self._experiment})
        if not self.fits:
            return runs
        found = [run for run in versions(runs) if (run / CONFIG).is_file()]
        return found[-1] if found else runs / "version_0"

    @property
    def _experiment(self) -> str:
        return f"sweeps/{self.sweep}/{self.slug}"

    @property
    def log(self) -> Path:
        """What its commands print."""
        return FOLDER / self.sweep / "logs" / f"{self.slug}.log"

    @property
    def result(self) -> Path:
        """Its row, until it stands in the file of rows."""
        return FOLDER / self.sweep / "jobs" / f"{self.slug}.json"

    def label(self) -> Options:
        """What its row begins with."""
        return {
            "sweep": self.sweep,
            **({"phase": self.phase} if self.phase == "tune" else {}),
            "cell": self.cell,
            "options": self.options,
            "configs": self.configs,
            "seed": self.seed,
            "key": self.key,
        }

    def fit_words(self, again: bool = False) -> list[str]:
        """The command that trains; resumes a run of this version that is there.

        Args:
            again: Start from scratch even if an older version has trained the same run.
        """
        words = ["fit", *_config_words(self.configs), "--experiment", self._experiment]
        words += ["--seed_everything", str(self.seed), *option_words(self.options)]
        resumed = (self.folder / CONFIG).is_file() and not again
        return [*words, "--ckpt_path", "last"] if resumed else words

    def test_words(self) -> list[str]:
        """The command that evaluates."""
        words = ["test", "--ckpt_path", str(self.folder)]
        if not self.fits:
            words = ["test", *_config_words(self.configs), "--seed_everything", str(self.seed)]
            words += [*option_words(self.options), "--trainer.default_root_dir", str(self.folder)]
        return words + evaluation_words(self.evaluation)


def evaluation_words(options: Mapping[str, Any]) -> list[str]:
    """Options of the evaluation as words."""
    return option_words({f"evaluation.{name}": value for name, value in options.items()})


def option_words(options: Mapping[str, Any]) -> list[str]:
    """Options as words; the method first, since it decides which others there are."""
    first = [name for name in options if name == "model"]
    rest = [name for name in options if name not in ("model", "fit")]
    return [word for name in [*first, *rest] for word in (f"--{name}", _word(options[name]))]


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _config_words(configs: Sequence[str]) -> list[str]:
    return [word for config in configs for word in ("-c", config)]


def _digest(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Planner:
    """Turns cells into runs: resolves their options as the command does, without running it.

    Args:
        specification: The sweep.
        command: Runs the words of a command line.
    """

    def __init__(self, specification: Specification, command: Command) -> None:
        self._specification = specification
        self._command = command
        self._defaults: dict[str, Options] = {}

    def runs(
        self, phase: str, cell: Cell, seeds: Sequence[int], more: Options | None = None
    ) -> list[Run]:
        """The runs of a cell, one for each seed.

        Args:
            phase: "tune" or "grid".
            cell: A label for each axis.
            seeds: Seeds.
            more: Options over those of the cell.

        Raises:
            ValueError: If the command refuses the options; the message is the command's.
        """
        specification = self._specification
        options = specification.options_of(cell, more)
        words = [*_config_words(specification.configs), *option_words(options)]
        where = f"{specification.name}, {', '.join(map(str, cell.values()))}"
        config = self._resolved([*words, *evaluation_words(specification.evaluation)], where)
        flat = flatten(config)
        method = str(flat["model.class_path"])
        if method not in self._defaults:
            self._defaults[method] = flatten(self._resolved(["--model", method], where))
        defaults = self._defaults[method]
        decides = {
            name: value
            for name, value in flat.items()
            if name not in _INCIDENTAL and (name not in defaults or defaults[name] != value)
        } | {"model": method, "fit": options.get("fit", True)}
        return [
            Run(
                sweep=specification.name,
                phase=phase,
                cell=cell,
                options=options,
                configs=specification.configs,
                seed=seed,
                evaluation=specification.evaluation,
                config=config,
                deciding=decides | {"seed_everything": seed},
                varied=tuple(more or ()),
            )
            for seed in seeds
        ]

    def _resolved(self, words: Sequence[str], where: str) -> Config:
        printed, refused = io.StringIO(), io.StringIO()
        try:
            with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(refused):
                self._command(["fit", *words, "--print_config"])
        except SystemExit as done:
            if done.code:
                sentence = refused.getvalue().strip().removeprefix("duality-ssl: error: ")
                raise ValueError(f"{where}: {sentence}") from done
        config: Config = yaml.safe_load(printed.getvalue())
        return config
