"""The command ``duality-ssl fit|validate|test|predict|sweep|report|export``."""

from duality_ssl.cli.command import Command, main

__all__ = ["Command", "main"]
