"""The command line: its verbs, arguments and config files."""

from dmole.cli.main import main

__all__ = ["main"]
