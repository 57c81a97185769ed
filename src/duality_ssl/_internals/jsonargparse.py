"""Private names of jsonargparse, and of argparse below it."""

from argparse import Action, ArgumentParser, _SubParsersAction
from typing import Any

# The error of an import that `limit_imports` has refused; without it the sentence names no remedy.
from jsonargparse._common import ImportDenied as ImportDenied

# The settings that `set_parsing_settings` writes; without it they cannot be put back.
from jsonargparse._common import parsing_settings as parsing_settings

# Imports a dotted path under those settings; without it a limit would not hold for our own options.
from jsonargparse._util import import_object as import_object


def actions(parser: ArgumentParser) -> list[Action]:
    """What a parser and its subcommands take; without it no message names the nearest option."""
    commands = [a.choices for a in parser._actions if isinstance(a, _SubParsersAction)]
    parsers = [parser, *(command for choices in commands for command in choices.values())]
    return [action for each in parsers for action in each._actions]


def type_hint(action: Action) -> Any:
    """The type of an option; without it a message says jsonargparse's words for a bad value."""
    return getattr(action, "_typehint", None)
