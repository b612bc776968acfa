"""The command line: one file for each verb, arguments, config files."""

from dmole.cli.main import main

__all__ = ["main"]
