"""What went wrong on the command line, in a sentence: the culprit, and the nearest valid names."""

import inspect
import re
import sys
import traceback
from argparse import ArgumentParser
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from types import UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

import yaml
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


def nearest(name: str, names: Iterable[str], count: int = 3) -> str:
    """``Did you mean a, b?``, or an empty string where nothing is near; case does not count."""
    by_case = {known.lower(): known for known in names}
    found = get_close_matches(name.lower(), by_case, n=count, cutoff=0.6)
    return f" Did you mean {', '.join(by_case[key] for key in found)}?" if found else ""


def explain(message: str, parser: ArgumentParser, methods: Sequence[str]) -> str:
    """Turn the parser's message into a sentence or two.

    Args:
        message: What jsonargparse says.
        parser: The parser that said it, for the options that it knows.
        methods: Names of the methods.
    """
    options = [action.dest for action in parser._actions]
    if found := re.search(r"does not accept option '([^']+)'", message):
        return f"Unknown option {found[1]!r} in a config.{nearest(found[1], options)}"
    if found := re.search(r"[Uu]nrecognized arguments: (\S+)", message):
        name = found[1].split("=")[0]
        return f"Unknown argument {name!r}.{nearest(name, [f'--{option}' for option in options])}"
    if "required" in message and re.search(r"\bmodel\b", message):
        return no_method(methods)
    key = ".".join(re.findall(r'Parser key "([^"]+)"', message))
    if found := re.search(r"No module named '([^']+)'", message):
        hint = " Install duality_ssl[bolts]." if found[1] == "pl_bolts" else ""
        return f"{key}: there is no module {found[1]!r}.{hint}"
    if found := re.search(r"Option '([^']+)' is not accepted", message):
        return _unknown_init_arg(key, found[1], message, methods)
    if key == "model" and (found := re.search(r"Given value: ([\w.]+)$", message)):
        return _unknown_class(key, found[1], methods)
    if found := re.search(r"Expected a dot import path string: (\S+)", message):
        return _unknown_class(key, found[1], methods)
    if key:
        return _bad_value(key, message, parser)
    return " ".join(message.split())


def no_method(methods: Sequence[str]) -> str:
    """What to say where a method is needed and none is named."""
    return f"No method was chosen. Name one with --model: {', '.join(methods)}."


def _unknown_init_arg(key: str, name: str, message: str, methods: Sequence[str]) -> str:
    cls = _class_named_in(message)
    if cls is None or cls.__name__ == "JointEmbedding":
        return (
            f"Option {key}.{name} belongs to a method, and none is chosen before it. "
            f"Name one with --model: {', '.join(methods)}."
        )
    known = list(inspect.signature(cls).parameters)
    hint = nearest(name, known) or f" It takes {', '.join(known)}."
    return f"{cls.__name__} has no option {name!r}.{hint}"


def _class_named_in(message: str) -> type | None:
    """The innermost class that a message of jsonargparse speaks of."""
    found = re.findall(r"class_path(?:=| )'([^']+)'", message)
    if not found:
        return None
    module, _, name = found[-1].rpartition(".")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        return None


def _unknown_class(key: str, name: str, methods: Sequence[str]) -> str:
    if key == "model":
        hint = nearest(name.rpartition(".")[2], methods)
        return f"Unknown method {name!r}.{hint} Methods: {', '.join(methods)}."
    known = {cls.__name__ for base in (Optimizer, LRScheduler) for cls in subclasses(base)}
    return f"Unknown class {name!r} for {key}.{nearest(name, known)}"


def subclasses(cls: type) -> list[type]:
    """The subclasses of a class, theirs included."""
    children: list[type] = cls.__subclasses__()
    return [sub for child in children for sub in (child, *subclasses(child))]


def _bad_value(key: str, message: str, parser: ArgumentParser) -> str:
    got = re.findall(r"(?:Got value: |Given value: )(.+?)(?:\. Got value|$)", message, re.MULTILINE)
    hint = _annotation(key, message, parser)
    if hint is None or not got:
        reason = message.partition(":")[2] or message
        return f"{key}: {' '.join(reason.split())}"
    parts = [member for part in (hint, *get_args(hint)) for member in _members(part)]
    choices = [value for value in parts if isinstance(value, str)]
    return f"Expected {key} to be {_kind(hint)}, but got {got[0]!r}.{nearest(got[0], choices)}"


def _annotation(key: str, message: str, parser: ArgumentParser) -> Any:
    """The type of an option, from the parser or from the signature of the class that takes it."""
    for action in parser._actions:
        if action.dest == key and key != "model":
            return getattr(action, "_typehint", None)
    cls = _class_named_in(message)
    parameter = inspect.signature(cls).parameters.get(key.rpartition(".")[2]) if cls else None
    return None if parameter is None else parameter.annotation


def _members(hint: Any) -> list[Any]:
    """The alternatives of a union, the choices of a literal in their place."""
    if get_origin(hint) in (Union, UnionType):
        return [member for part in get_args(hint) for member in _members(part)]
    return list(get_args(hint)) if get_origin(hint) is Literal else [hint]


def _kind(hint: Any) -> str:
    """A type in words: ``int or float``, ``[float, float]``, ``one of 'error', 'skip'``."""
    members = [member for member in _members(hint) if member is not type(None)]
    choices = [repr(member) for member in members if isinstance(member, str | int)]
    kinds = [
        f"[{', '.join(map(_kind, get_args(member)))}]"
        if get_origin(member) in (tuple, list)
        else getattr(member, "__name__", str(member))
        for member in members
        if not isinstance(member, str | int)
    ]
    return " or ".join([*kinds, *([f"one of {', '.join(choices)}"] if choices else [])])


def check_configs(words: Sequence[str]) -> None:
    """Raise ``ValueError`` unless every ``-c FILE`` is there and is a YAML mapping."""
    for path in config_files(words):
        if not path.is_file():
            shipped = [str(file) for file in Path("configs").glob("*/*.yaml")]
            raise ValueError(f"There is no config {path}.{nearest(str(path), shipped)}")
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
        if not isinstance(content, dict):
            raise ValueError(
                f"Expected {path} to map options to values, but it holds {type(content).__name__}."
            )


def config_files(words: Sequence[str]) -> list[Path]:
    """The files given as ``-c FILE``, ``--config FILE`` or ``--config=FILE``."""
    files = [value for flag, value in pairwise(words) if flag in _CONFIG_FLAGS]
    files += [word.partition("=")[2] for word in words if word.startswith("--config=")]
    return [Path(file) for file in files]


_CONFIG_FLAGS = ("-c", "--config")


def sentence_of(error: BaseException) -> str | None:
    """The sentence of this package's error in the chain of causes, else ``None``.

    An error from the depths of a library is a bug to be seen whole, with its traceback.
    """
    chain = [error]
    while cause := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(cause)
    for link in chain:
        text = str(link)
        if isinstance(link, MisconfigurationException):
            return " ".join(text.split())
        if not isinstance(link, ValueError | OSError):
            continue
        package = str(Path(__file__).parent)
        if "Original Traceback" in text:  # what a worker of the data loader caught and passed on
            frames = re.findall(r'File "([^"]+)"', text)
            if frames[-1].startswith(package):
                return text.rstrip().splitlines()[-1].partition(": ")[2]
            continue
        files = [frame.filename for frame in traceback.extract_tb(link.__traceback__)]
        if isinstance(link, OSError) or (files and files[-1].startswith(package)):
            return text
    return None


def refuse(sentence: str) -> NoReturn:
    """Print the sentence as the command's one error and exit with code 2."""
    sys.stderr.write(f"duality-ssl: error: {sentence}\n")
    sys.exit(2)
