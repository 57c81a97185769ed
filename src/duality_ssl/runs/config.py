"""Configs: YAML that is read strictly, and the ``config.yaml`` of a run, also of older releases."""

import inspect
import pkgutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch.utilities import rank_zero_warn

import duality_ssl
from duality_ssl.runs.folder import CONFIG

Config = dict[str, Any]

# Names of older releases, as a run's config.yaml has them. A module stands for all names in it.
_RENAMED_PATHS = {
    "duality_ssl.backbones": "duality_ssl.networks.backbones",
    "duality_ssl.callbacks.backbone": "duality_ssl.runs.backbone",
    "duality_ssl.callbacks.checkpoint": "duality_ssl.runs.checkpoint",
    "duality_ssl.callbacks.preemption": "duality_ssl.runs.preemption",
    "duality_ssl.checkpoint_io": "duality_ssl.runs.checkpoint_io",
    "duality_ssl.data.folder": "duality_ssl.data.sources.folder",
    "duality_ssl.loggers": "duality_ssl.runs.loggers",
    "duality_ssl.profiler.StepProfiler": "lightning.pytorch.profilers.SimpleProfiler",
}
_RENAMED_ARGUMENTS = {("SpectralContrastive", "radius"): "mu"}  # the squared radius, also then


def dump_run_config(parser: ArgumentParser, options: Namespace) -> str:
    """Content of ``config.yaml``: every option, except how the run was resumed.

    The optimizer's own learning rate and weight decay are left out: the method's replace them.
    """
    options = options.clone()
    options.ckpt_path, options.resume = None, False
    optimizer = options.model.get("init_args.optimizer")
    if isinstance(optimizer, Namespace):  # and no function
        parameters = inspect.signature(pkgutil.resolve_name(optimizer.class_path)).parameters
        for name in ("lr", "weight_decay"):
            # one without a default is needed to read the file again
            if name in parameters and parameters[name].default is not inspect.Parameter.empty:
                optimizer.init_args.pop(name, None)
    return parser.dump(options, skip_unset=False)


def read_run_config(run: Path, options: Collection[str]) -> Config | None:
    """Read the ``config.yaml`` of a run, by today's names; None if there is none.

    Unknown options are left out with a warning. A class checks its own arguments later.
    """
    path = run / CONFIG
    if not path.is_file():
        return None
    config: Config = _renamed(read_config(path)[1])
    if unknown := unknown_options(config, path, options):
        for name in unknown:
            config = without(config, name.split("."))
        rank_zero_warn(
            f"{path} sets {', '.join(unknown)}: unknown to duality_ssl {duality_ssl.__version__}, "
            "and left out."
        )
    return config


def _renamed(value: Any) -> Any:
    if isinstance(value, list):
        return [_renamed(each) for each in value]
    if isinstance(value, str):
        old = next((old for old in _RENAMED_PATHS if f"{value}.".startswith(f"{old}.")), None)
        return value.replace(old, _RENAMED_PATHS[old], 1) if old else value
    if not isinstance(value, dict):
        return value
    method = str(value.get("class_path")).rpartition(".")[2]
    renamed = {key: _renamed(each) for key, each in value.items()}
    if isinstance(arguments := renamed.get("init_args"), dict):
        names = [_RENAMED_ARGUMENTS.get((method, key), key) for key in arguments]
        renamed["init_args"] = dict(zip(names, arguments.values(), strict=True))
    return renamed


def without(config: Config, path: Sequence[str]) -> Config:
    """A config without one of its keys; ``init_args`` may be left out of the path."""
    key, *deeper = path
    if key not in config and isinstance(config.get("init_args"), dict):
        return config | {"init_args": without(config["init_args"], path)}
    if not deeper:
        return {name: value for name, value in config.items() if name != key}
    inside = config.get(key)
    return config | {key: without(inside, deeper)} if isinstance(inside, dict) else config


def unknown_options(
    config: Config, path: Path, options: Collection[str], above: str = ""
) -> list[str]:
    """Names in a config, or in the group ``above`` of it, that are no options.

    Raises:
        ValueError: If the config has a value in place of a group of options.
    """
    unknown = []
    for key, value in config.items():
        name = f"{above}{key}"
        if name not in options:
            unknown.append(name)
        elif any(option.startswith(f"{name}.") for option in options):
            if not isinstance(value, dict):
                raise ValueError(
                    f"Expected {name} in {path} to be a group of options, but got "
                    f"{type(value).__name__}. Write `{key}: {{OPTION: VALUE}}`."
                )
            unknown += unknown_options(value, path, options, f"{name}.")
    return unknown


def read_config(path: Path) -> tuple[str, Config]:
    """Read the text and the content of a config.

    Raises:
        ValueError: If the file is not YAML, or does not map options to values.
    """
    content = path.read_bytes()
    try:
        text = content.decode("utf-8")
        config = yaml.load(text, _StrictLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"line {mark.line + 1}: " if mark else ""
        raise _not_yaml(path, f"{line}{error.problem or error.context}") from error
    except Exception as error:  # the constructor of a tag raises anything
        raise _not_yaml(path, str(error)) from error
    found = type(config).__name__
    if isinstance(config, dict):
        names = [f"{key!r} for an option" for key in config if not isinstance(key, str)]
        empty = config and all(value is None for value in config.values())
        found = names[0] if names else "no value" if empty else ""
    if found:
        raise ValueError(
            f"Expected {path} to map options to values, but it holds {found}. Write lines such as "
            "`trainer: {max_epochs: 10}`."
        )
    if "config" in config:
        raise ValueError(f"Expected no config inside {path}: give each file its own -c.")
    return text, config


def _not_yaml(path: Path, reason: str) -> ValueError:
    return ValueError(
        f"{path} is not valid YAML: {' '.join(reason.split())}. Write lines of `option: value`, "
        "indented by spaces, without tags."
    )


class _StrictLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Refuses a key that stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else id(key)
            if name in seen:
                problem = f"{name!r} occurs twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)
