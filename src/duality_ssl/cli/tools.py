"""The commands without a network to train: ``duality-ssl sweep|report|export``."""

import argparse
from collections.abc import Sequence

from duality_ssl import reports, sweeps
from duality_ssl.runs import export

TOOLS = {"sweep": sweeps, "report": reports, "export": export}


def run_tool(words: Sequence[str], **options: object) -> None:
    """Run the command that the first word names, with more options of its function."""
    name, *rest = words
    function = getattr(TOOLS[name], name)
    about = function.__doc__.partition("\n")[0]
    parser = argparse.ArgumentParser(f"duality-ssl {name}", description=about, allow_abbrev=False)
    TOOLS[name].add_arguments(parser)
    function(**vars(parser.parse_args(rest)), **options)
