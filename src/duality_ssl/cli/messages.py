"""Errors of the command in a sentence: what is wrong, and the nearest valid names."""

import inspect
import re
import sys
import traceback
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten
from types import UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

from lightning import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from duality_ssl._internals.jsonargparse import actions, type_hint
from duality_ssl.registry import did_you_mean


def explain(message: str, parser: ArgumentParser, methods: Sequence[str]) -> str:
    """Turn a message of jsonargparse into a sentence or two."""
    if found := re.search(r"does not accept option '([^']+)'", message):
        return _unknown_option(found[1], options_of(parser))
    if found := re.search(r"[Uu]nrecognized arguments: (\S+)", message):
        name, flags = found[1].split("=")[0], [f"--{action.dest}" for action in actions(parser)]
        return f"Unknown argument {name!r}.{did_you_mean(name, flags)}"
    if "required" in message and re.search(r"\bmodel\b", message):
        return no_method(methods)
    key = ".".join(re.findall(r'Parser key "([^"]+)"', message))
    if found := re.search(r"Unable to load config '([^']*)'", message):
        group = key.rpartition(".")[2]
        return f"--{group} takes a YAML file, not {found[1]!r}; one option: --{group}.OPTION VALUE."
    if found := re.search(r"Importing '([^']+)' is not allowed", message):
        return _unknown_import(key, found[1])
    if found := re.search(r"No module named '([^']+)'", message):
        return f"{key}: there is no module {found[1]!r}."
    if found := re.search(r"Option '([^']+)' is not accepted", message):
        return _unknown_init_arg(key, found[1], message, methods)
    if found := re.search(r"module '([^']+)' has no attribute '([^']+)'", message):
        return _unknown_class(key, ".".join(found.groups()), methods)
    if found := re.search(r"classes with name (\S+)\. Give .*: (.*)\.$", message, re.MULTILINE):
        return f"{key}: several classes are named {found[1]}. Give the module, too: {found[2]}."
    if found := re.search(r"\.(\w+)':\s+the following arguments are required: (\w+)", message):
        return f"{found[1]} needs {found[2]}: set --{key}.{found[2]}."
    if key == "model" and (found := re.search(r"Given value: ([\w.]+)$", message)):
        return _unknown_class(key, found[1], methods)
    if found := re.search(r"Expected a dot import path string: (\S+)", message):
        return _unknown_class(key, found[1], methods)
    if key == "model":
        got = message.rpartition("Given value: ")[2]
        return f"Expected model to be a method, but got {_short(got)}. Take {', '.join(methods)}."
    if key:
        return _bad_value(key, message, parser)
    return shorten(message, 400, placeholder="...")


def options_of(parser: ArgumentParser) -> list[str]:
    """Names of the options that a config may set, such as ``data.view1.scale``."""
    alone = ("help", "config", "print_config")  # for the command line only
    names = [action.dest for action in actions(parser)]
    return [name for name in names if name.rpartition(".")[2] not in alone]


def _unknown_option(name: str, options: Sequence[str]) -> str:
    group, groups = name.partition(".")[0], {option.partition(".")[0] for option in options}
    hint = did_you_mean(name, options) if group in groups else did_you_mean(group, groups)
    return f"Unknown option {name!r} in a config.{hint}"


def _short(text: str) -> str:
    return repr(shorten(text, 80, placeholder="..."))


def no_method(methods: Sequence[str]) -> str:
    """Ask for a method."""
    return f"No method was chosen. Name one with --model: {', '.join(methods)}."


def _unknown_init_arg(key: str, name: str, message: str, methods: Sequence[str]) -> str:
    cls = _class_named_in(message)
    if cls is None or cls.__name__ == "JointEmbedding":
        return (
            f"Option {key}.{name} belongs to a method, and no method is chosen before it. "
            f"Name one with --model: {', '.join(methods)}."
        )
    known = list(inspect.signature(cls).parameters)
    hint = did_you_mean(name, known) or f" It takes {', '.join(known)}."
    return f"{cls.__name__} has no option {name!r}.{hint}"


def _class_named_in(message: str) -> type | None:
    """The innermost class that a message of jsonargparse names."""
    found = re.findall(r"class_path(?:=| )'([^']+)'", message)
    if not found:
        return None
    module, _, name = found[-1].rpartition(".")
    # jsonargparse has imported the class, or refused to
    cls = getattr(sys.modules.get(module), name, None)
    return cls if isinstance(cls, type) else None


def _unknown_import(key: str, name: str) -> str:
    return (
        f"{key}: the config.yaml of the run names {name}. From a config that you do not pass with "
        "-c, only classes of duality_ssl, Lightning and torch.optim are imported, and none that "
        f"calls other code. If you trust it, pass that file with -c, or name {name} yourself."
    )


def _unknown_class(key: str, name: str, methods: Sequence[str]) -> str:
    if key == "model":
        hint = did_you_mean(name.rpartition(".")[2], methods)
        return f"Unknown method {name!r}.{hint} Methods: {', '.join(methods)}."
    bases = (Optimizer, LRScheduler, Callback, Logger)
    known = {cls.__name__ for base in bases for cls in subclasses(base)}
    hint = did_you_mean(name.rpartition(".")[2], known)
    return f"Unknown class {name!r} for {key}.{hint or ' Name it with its module: package.Class.'}"


def subclasses(cls: type) -> list[type]:
    """The subclasses of a class, theirs included."""
    children: list[type] = cls.__subclasses__()
    return [sub for child in children for sub in (child, *subclasses(child))]


def _bad_value(key: str, message: str, parser: ArgumentParser) -> str:
    got = re.findall(r"(?:Got value: |Given value: )(.*?)(?:\. Got value|$)", message, re.MULTILINE)
    hint = _annotation(key, message, parser)
    if hint is None or not got:
        reason = message.partition(":")[2] or message
        return f"{key}: {shorten(reason, 400, placeholder='...')}"
    parts = [member for part in (hint, *get_args(hint)) for member in _members(part)]
    choices = [value for value in parts if isinstance(value, str)]
    remedy = did_you_mean(got[0], choices)
    if got[0] in choices:  # only the brackets of the list are missing
        remedy = f" Write it in brackets: '[{got[0]}]'."
    return f"Expected {key} to be {_kind(hint)}, but got {_short(got[0])}.{remedy}"


def _annotation(key: str, message: str, parser: ArgumentParser) -> Any:
    """The type of an option, from the parser or from the signature of the class that takes it."""
    for action in actions(parser):
        if action.dest == key and key != "model":
            return type_hint(action)
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
        if get_origin(member) in (tuple, list, Sequence)
        else getattr(member, "__name__", str(member))
        for member in members
        if not isinstance(member, str | int)
    ]
    return " or ".join([*kinds, *([f"one of {', '.join(choices)}"] if choices else [])])


def sentence_of(error: BaseException) -> str | None:
    """The message of this package's error in the chain of causes; None for a bug.

    An error of a library is a bug. So is one raised while another was handled, but not ``from`` it.
    """
    chain = [error]
    while cause := chain[-1].__cause__:
        chain.append(cause)
    for link in chain:
        text = str(link)
        if isinstance(link, MisconfigurationException):
            return " ".join(text.split())
        if not isinstance(link, ValueError | OSError):
            continue
        package = str(Path(__file__).parents[1])
        if "Original Traceback" in text:  # raised in a worker of the data loader
            frames = re.findall(r'File "([^"]+)"', text)
            if frames[-1].startswith(package):
                return text.rstrip().splitlines()[-1].partition(": ")[2]
            continue
        if isinstance(link, OSError) and link.strerror and link.filename is not None:
            remedy = "Check that path, and who may read and write it."
            return f"{link.strerror}: {link.filename}. {remedy}"
        files = [frame.filename for frame in traceback.extract_tb(link.__traceback__)]
        if isinstance(link, OSError) or (files and files[-1].startswith(package)):
            return text
    return None


def refuse(sentence: str, code: int = 2) -> NoReturn:
    """Print the sentence as the one error of the command and exit; 2 is a mistake of the user."""
    # the name of a file may hold line breaks, and bytes that are no text
    line = " ".join(map(str.strip, sentence.splitlines()))
    line = line.encode(errors="backslashreplace").decode()
    sys.stderr.write(f"duality-ssl: error: {line}\n")
    sys.exit(code)
