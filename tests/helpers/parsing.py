"""The command up to the moment at which it would build something."""

from unittest.mock import patch

from duality_ssl.cli import Command, main


class Parsed(Exception):
    """The command line has been parsed to its end."""


def parsed(*words: str) -> Command:
    """The command after parsing and the decision on what to resume."""
    seen = []

    def stop(command: Command) -> None:
        seen.append(command)
        raise Parsed

    with patch.object(Command, "before_instantiate_classes", stop):
        try:
            main(words)
        except Parsed:
            return seen[0]
    raise AssertionError("The command has not been parsed.")
