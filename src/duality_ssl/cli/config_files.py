"""The YAML files of the command line: refused, with the line, before any of them is put to use."""

from collections.abc import Collection, Sequence
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import yaml

from duality_ssl.registry import did_you_mean

_FLAGS = ("-c", "--config")
_BYTES = 2**20  # a config has some kilobytes; more is another file, and slow to parse
_VALUES = 10_000  # what aliases may unfold to
_LIBYAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # what the options are read with


def check_configs(words: Sequence[str]) -> None:
    """Raise ``ValueError`` unless every ``-c FILE`` is there and maps options to values."""
    for path in config_files(words):
        if not path.is_file():
            others = [*Path("configs").glob("*/*.yaml"), *path.parent.glob("*.yaml")]
            what = " It is a folder: name a file in it." if path.is_dir() else ""
            hint = what or did_you_mean(str(path), map(str, others))
            raise ValueError(f"There is no config {path}.{hint}")
        content = _read(path)
        found = type(content).__name__
        if isinstance(content, dict):
            names = [f"{key!r} for an option" for key in content if not isinstance(key, str)]
            empty = content and all(value is None for value in content.values())
            found = names[0] if names else "no value" if empty else ""
        if found:
            raise ValueError(
                f"Expected {path} to map options to values, but it holds {found}. Write lines such "
                "as `trainer: {max_epochs: 10}`."
            )
        if "config" in content:
            raise ValueError(f"Expected no config inside {path}: give each file its own -c.")
        _check_classes(content, path)


def check_groups(words: Sequence[str], options: Collection[str]) -> None:
    """Raise ``ValueError`` where a config has a value for a group of options.

    Args:
        words: The command line.
        options: What the parser knows, such as ``data.view1.scale``.
    """
    for path in config_files(words):
        _check_group(_read(path), "", path, options)


def _check_group(group: dict[str, Any], above: str, path: Path, options: Collection[str]) -> None:
    for key, value in group.items():
        name = f"{above}{key}"
        if not any(option.startswith(f"{name}.") for option in options):
            continue
        if not isinstance(value, dict):
            raise ValueError(
                f"Expected {name} in {path} to be a group of options, but got "
                f"{type(value).__name__}. Write `{key}: {{OPTION: VALUE}}`."
            )
        _check_group(value, f"{name}.", path, options)


def _check_classes(value: Any, path: Path) -> None:
    """Refuse what names a class in another way than ``{class_path: str, init_args: {}}``."""
    if isinstance(value, dict):
        kinds = {"class_path": str, "init_args": dict}
        wrong = [k for k, kind in kinds.items() if k in value and not isinstance(value[k], kind)]
        if wrong or "dict_kwargs" in value:
            raise ValueError(
                f"Expected {path} to name a class as `class_path: NAME` with `init_args: {{OPTION: "
                f"VALUE}}`, but {wrong[0] if wrong else 'dict_kwargs'} is another thing there."
            )
    for inside in value.values() if isinstance(value, dict) else value:
        if isinstance(inside, dict | list):
            _check_classes(inside, path)


def config_files(words: Sequence[str]) -> list[Path]:
    """The files given as ``-c FILE``, ``-cFILE``, ``--config FILE`` or ``--config=FILE``."""
    files = [value for flag, value in pairwise(words) if flag in _FLAGS]
    files += [word.partition("=")[2] for word in words if word.startswith("--config=")]
    files += [word[2:].removeprefix("=") for word in words if word.startswith("-c") and word[2:]]
    return [Path(file) for file in files]


def _read(path: Path) -> Any:
    if (size := path.stat().st_size) > _BYTES:
        raise ValueError(f"Expected {path} to be a config, but it has {size:,} bytes.")
    content = path.read_bytes()
    try:
        text = content.decode("utf-8")
        value = yaml.load(text, _StrictLoader)
        yaml.compose(text, _LIBYAML)  # refuses `{scale:[0, 1]}`, which Python's loader takes
        return value
    except UnicodeDecodeError as error:
        reason = f"byte {error.start + 1} is not UTF-8"
    except RecursionError:
        reason = "it is nested too deep"
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason = f"{f'line {mark.line + 1}: ' if mark else ''}{error.problem or error.context}"
    except yaml.YAMLError as error:
        reason = str(error)
    except Exception:  # a tag's constructor raises whatever it happens upon
        reason = "a value is not what its tag says"
    raise ValueError(
        f"{path} is not YAML that can be read: {' '.join(reason.split())}. Write lines of "
        "`option: value`, indented by spaces, without tags."
    )


class _StrictLoader(yaml.SafeLoader):
    """Takes no key twice, and no aliases that unfold to more than a config can be.

    A date is a string, as it is to the parser of the options.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, looks) for tag, looks in found if tag != "tag:yaml.org,2002:timestamp"]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def get_single_node(self) -> yaml.Node | None:
        """The document, if it is of a size."""
        node = super().get_single_node()
        if node is not None and _unfolded(node, {}) > _VALUES:
            raise yaml.MarkedYAMLError(problem="its aliases unfold to too many values")
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """The mapping, if each of its keys is there once."""
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else key
            if name in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"{name!r} is there twice", problem_mark=key.start_mark
                )
            seen.add(name)
        return node


def _unfolded(node: yaml.Node, known: dict[int, float]) -> float:
    """How many values a node is with each alias in full; endless where it holds itself."""
    if id(node) not in known:
        known[id(node)] = float("inf")
        within = node.value if isinstance(node, yaml.CollectionNode) else ()
        children = chain.from_iterable(within) if isinstance(node, yaml.MappingNode) else within
        known[id(node)] = 1 + sum(_unfolded(child, known) for child in children)
    return known[id(node)]
