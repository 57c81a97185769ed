"""The command ``duality-ssl fit|validate|test|predict``."""

from duality_ssl.cli.command import main

__all__ = ["main"]
