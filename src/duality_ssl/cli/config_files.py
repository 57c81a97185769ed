"""YAML files of the command: each is read once, checked, and refused with its line if it is bad."""

import inspect
import pkgutil
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch.utilities import rank_zero_warn

from duality_ssl import __version__
from duality_ssl.registry import did_you_mean, named_modules
from duality_ssl.runs.folder import CONFIG

Config = dict[str, Any]


class CommandLine:
    """The words of a command, with the content of each config in place of its name.

    Args:
        words: What the user typed.

    Raises:
        ValueError: If a config does not exist, or is not one.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.words: list[str] = []
        """For the parser."""
        self.configs: dict[Path, Config] = {}
        """What the files hold."""
        self.ckpt_path: str | None = None
        """The checkpoint that is named last, by the option or in a config."""
        rest = iter(words)
        for word in rest:
            flag, equals, value = word.partition("=")
            if re.match("-c[^=]", word):
                flag, equals, value = "-c", "=", word[2:]
            if flag not in ("-c", "--config", "--ckpt_path"):
                self.words.append(word)
            elif equals or (value := next(rest, "")):
                self._add(flag, value)
            else:  # the parser will miss the value
                self.words.append(flag)

    def _add(self, flag: str, value: str) -> None:
        if flag == "--ckpt_path":
            self.words += [flag, value]
            self.ckpt_path = None if value == "null" else value
            return
        path = Path(value)
        text, content = _read(path)
        self.words += ["--config", text]
        self.configs[path] = content
        if "ckpt_path" in content:
            named = content["ckpt_path"]
            self.ckpt_path = None if named is None else str(named)

    def modules(self) -> set[str]:
        """Modules of the classes and functions that the user names."""
        words = [word for flag, word in pairwise(["", *self.words]) if flag != "--config"]
        return named_modules([*words, *self.configs.values()])

    def over(self, config: Config | None) -> list[str]:
        """The words with the config of a run before all others.

        A list that the words append to (``--trainer.callbacks+``) starts without what the run has.
        """
        if config is None or not self.words:
            return self.words
        for name in self._appended():
            config = _without(config, name.split("."))
        return [self.words[0], "--config", yaml.safe_dump(config), *self.words[1:]]

    def _appended(self) -> set[str]:
        flags = {word.split("=")[0].removeprefix("--") for word in self.words}
        keys = {name for config in self.configs.values() for name in _names(config)}
        return {name.removesuffix("+") for name in flags | keys if name.endswith("+")}


def _names(config: Mapping[Any, Any], above: str = "") -> Iterator[str]:
    for key, value in config.items():
        name = f"{above}{key}"
        yield name
        if isinstance(value, dict):
            yield from _names(value, f"{name}.")


def _without(config: Config, path: Sequence[str]) -> Config:
    """A config without one of its keys; ``init_args`` may be left out of the path."""
    key, *deeper = path
    if key not in config and isinstance(config.get("init_args"), dict):
        return config | {"init_args": _without(config["init_args"], path)}
    if not deeper:
        return {name: value for name, value in config.items() if name != key}
    inside = config.get(key)
    return config | {key: _without(inside, deeper)} if isinstance(inside, dict) else config


def check_groups(config: Config, path: Path, options: Collection[str], above: str = "") -> None:
    """Raise ``ValueError`` where a config has a value in place of a group of options.

    Args:
        config: Content of the file, or a group in it.
        path: The file.
        options: Names of all options, such as ``data.view1.scale``.
        above: Name of the group, with a dot.
    """
    for key, value in config.items():
        name = f"{above}{key}"
        if not any(option.startswith(f"{name}.") for option in options):
            continue
        if not isinstance(value, dict):
            raise ValueError(
                f"Expected {name} in {path} to be a group of options, but got "
                f"{type(value).__name__}. Write `{key}: {{OPTION: VALUE}}`."
            )
        check_groups(value, path, options, f"{name}.")


def _read(path: Path) -> tuple[str, Config]:
    if not path.is_file():
        others = [*Path("configs").glob("*/*.yaml"), *path.parent.glob("*.yaml")]
        what = " It is a folder: name a file in it." if path.is_dir() else ""
        raise ValueError(
            f"There is no config {path}.{what or did_you_mean(str(path), map(str, others))}"
        )
    text, content = _parse(path)
    found = "" if isinstance(content, dict) else type(content).__name__
    if isinstance(content, dict):
        names = [f"{key!r} for an option" for key in content if not isinstance(key, str)]
        empty = content and all(value is None for value in content.values())
        found = names[0] if names else "no value" if empty else ""
    if found:
        raise ValueError(
            f"Expected {path} to map options to values, but it holds {found}. Write lines such as "
            "`trainer: {max_epochs: 10}`."
        )
    if "config" in content:
        raise ValueError(f"Expected no config inside {path}: give each file its own -c.")
    _check_classes(content, path)
    return text, content


def _check_classes(value: Any, path: Path) -> None:
    """Refuse a class that is not written as ``{class_path: str, init_args: {}}``."""
    if isinstance(value, dict):
        kinds = {"class_path": str, "init_args": dict}
        wrong = [k for k, kind in kinds.items() if k in value and not isinstance(value[k], kind)]
        if wrong or "dict_kwargs" in value:
            raise ValueError(
                f"Expected {path} to name a class as `class_path: NAME` with `init_args: {{OPTION: "
                f"VALUE}}`, but {wrong[0] if wrong else 'dict_kwargs'} is something else there."
            )
    for inside in value.values() if isinstance(value, dict) else value:
        if isinstance(inside, dict | list):
            _check_classes(inside, path)


def _parse(path: Path) -> tuple[str, Any]:
    try:
        text = path.read_bytes().decode("utf-8")
        return text, yaml.load(text, _StrictLoader)
    except UnicodeDecodeError as error:
        reason = f"byte {error.start + 1} is not UTF-8"
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason = f"{f'line {mark.line + 1}: ' if mark else ''}{error.problem or error.context}"
    except (yaml.YAMLError, RecursionError) as error:
        reason = str(error)
    except OSError:
        raise
    except Exception:  # the constructor of a tag raises anything
        reason = "a value does not fit its tag"
    raise ValueError(
        f"{path} is not valid YAML: {' '.join(reason.split())}. Write lines of `option: value`, "
        "indented by spaces, without tags."
    )


class _StrictLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """The loader of jsonargparse, which reads a date as a string; no key may stand twice."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, looks) for tag, looks in found if tag != "tag:yaml.org,2002:timestamp"]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping, if it has each key once."""
        seen = set()
        for key, _ in node.value:
            if key.value in seen and isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(
                    problem=f"{key.value!r} is there twice", problem_mark=key.start_mark
                )
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


# --------------------------------------------------------------------------------------------------
# The config that a run writes

# what older releases called it; a module stands for all that it has
_RENAMED_MODULES = {
    "duality_ssl.backbones": "duality_ssl.networks.backbones",
    "duality_ssl.callbacks.backbone": "duality_ssl.runs.backbone",
    "duality_ssl.callbacks.checkpoint": "duality_ssl.runs.checkpoint",
    "duality_ssl.callbacks.preemption": "duality_ssl.runs.preemption",
    "duality_ssl.checkpoint_io": "duality_ssl.runs.checkpoint_io",
    "duality_ssl.loggers": "duality_ssl.runs.loggers",
    "duality_ssl.memory": "duality_ssl.callbacks.memory",
    "duality_ssl.profiler.StepProfiler": "lightning.pytorch.profilers.SimpleProfiler",
}
_RENAMED_OPTIONS = {("SpectralContrastive", "radius"): "mu"}


def dump_config(parser: ArgumentParser, options: Namespace) -> str:
    """What ``config.yaml`` says: every option of a run, but not how it was resumed.

    The optimizer's own learning rate and weight decay are left out: the method's replace them.
    """
    options = options.clone()
    options.ckpt_path, options.resume = None, False
    _leave_out_replaced(options.model.get("init_args.optimizer"))
    return parser.dump(options, skip_unset=False)


def _leave_out_replaced(optimizer: Any) -> None:
    if not isinstance(optimizer, Namespace):  # a function, or a method that takes none
        return
    parameters = inspect.signature(pkgutil.resolve_name(optimizer.class_path)).parameters
    for name in ("lr", "weight_decay"):
        # one without a default is needed to read the file again
        if name in parameters and parameters[name].default is not inspect.Parameter.empty:
            optimizer.init_args.pop(name, None)


def read_run_config(run: Path, options: Collection[str]) -> Config | None:
    """The config of a run, with what has been renamed since; None if the run has none.

    What is no option any more is left out with a warning.

    Args:
        run: Folder of the run.
        options: Names of all options.

    Raises:
        ValueError: If the file is no config.
    """
    path = run / CONFIG
    if not path.is_file():
        return None
    config: Config = _renamed(_read(path)[1])
    check_groups(config, path, options)
    unknown = [*_unknown(config, options)]
    for name in unknown:
        config = _without(config, name.split("."))
    if unknown:
        rank_zero_warn(
            f"{path} sets {', '.join(unknown)}, which duality_ssl {__version__} does not know and "
            "leaves out."
        )
    return config


def _renamed(value: Any) -> Any:
    if isinstance(value, list):
        return [_renamed(each) for each in value]
    if isinstance(value, str) and value.startswith("duality_ssl."):
        old = next((o for o in _RENAMED_MODULES if f"{value}.".startswith(f"{o}.")), None)
        return value.replace(old, _RENAMED_MODULES[old], 1) if old else value
    if not isinstance(value, dict):
        return value
    value = {key: _renamed(each) for key, each in value.items()}
    name = str(value.get("class_path")).rpartition(".")[2]
    if isinstance(value.get("init_args"), dict):
        arguments = value["init_args"].items()
        value["init_args"] = {_RENAMED_OPTIONS.get((name, k), k): v for k, v in arguments}
    return value


def _unknown(config: Config, options: Collection[str], above: str = "") -> Iterator[str]:
    """Names that are no options, but for those inside of classes, which check their own."""
    for key, value in config.items():
        name = f"{above}{key}"
        if name not in options:
            yield name
        elif isinstance(value, dict) and any(each.startswith(f"{name}.") for each in options):
            yield from _unknown(value, options, f"{name}.")
