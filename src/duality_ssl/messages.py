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
from typing import NoReturn

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
    key = ".".join(re.findall(r'Parser key "([^"]+)"', message))
    if found := re.search(r"Option '([^']+)' is not accepted", message):
        return _unknown_init_arg(key, found[1], message, methods)
    if found := re.search(r"Expected a dot import path string: (\S+)", message):
        return _unknown_class(key, found[1], methods)
    if key:
        return _bad_value(key, message)
    return " ".join(message.split())


def _unknown_init_arg(key: str, name: str, message: str, methods: Sequence[str]) -> str:
    found = re.findall(r"Problem with given class_path '([^']+)'", message)
    module, _, class_name = found[-1].rpartition(".") if found else ("", "", "")
    if class_name == "JointEmbedding":
        return (
            f"Option {key}.{name} belongs to a method, and none is chosen before it. "
            f"Name one with --model: {', '.join(methods)}."
        )
    known = list(inspect.signature(getattr(import_module(module), class_name)).parameters)
    hint = nearest(name, known) or f" It takes {', '.join(known)}."
    return f"{class_name} has no option {name!r}.{hint}"


def _unknown_class(key: str, name: str, methods: Sequence[str]) -> str:
    if key == "model":
        hint = nearest(name, methods)
        return f"Unknown method {name!r}.{hint} Methods: {', '.join(methods)}."
    known = {cls.__name__ for base in (Optimizer, LRScheduler) for cls in subclasses(base)}
    return f"Unknown class {name!r} for {key}.{nearest(name, known)}"


def subclasses(cls: type) -> list[type]:
    """The subclasses of a class, theirs included."""
    children: list[type] = cls.__subclasses__()
    return [sub for child in children for sub in (child, *subclasses(child))]


def _bad_value(key: str, message: str) -> str:
    expected = re.findall(r"Expected an? (.+?)(?:\. Got value.*)?$", message, re.MULTILINE)
    names = [re.sub(r"<class '(?:\w+\.)*(\w+)'>|typing\.", r"\1", kind) for kind in expected]
    kinds = " or ".join(dict.fromkeys(name for name in names if name != "NoneType"))
    got = re.findall(r"Got value: (.+)", message) or re.findall(r"Given value: (.+)", message)
    if kinds and got:
        choices = re.findall(r"'([^']+)'", kinds)
        kinds = re.sub(r"Literal\[(.+?)\]", r"one of \1", kinds)
        return f"Expected {key} to be {kinds}, but got {got[0]!r}.{nearest(got[0], choices)}"
    reason = message.partition(":")[2] or message
    return f"{key}: {' '.join(reason.split())}"


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
        if "Original Traceback" in text:  # a worker of the data loader passes on what it caught
            return text.rstrip().splitlines()[-1].partition(": ")[2]
        frames = traceback.extract_tb(link.__traceback__)
        ours = frames and Path(frames[-1].filename).is_relative_to(Path(__file__).parent)
        if ours and isinstance(link, ValueError | OSError):
            return text
        if isinstance(link, MisconfigurationException | OSError):
            return " ".join(text.split())
    return None


def refuse(sentence: str) -> NoReturn:
    """Print the sentence as the command's one error and exit with code 2."""
    sys.stderr.write(f"duality-ssl: error: {sentence}\n")
    sys.exit(2)
