"""An argument parser that reports an error in one line, without the usage."""

from __future__ import annotations

import argparse
from typing import NoReturn


class ArgumentParser(argparse.ArgumentParser):
    """Raises an error instead of printing the usage and ending the process."""

    def error(self, message: str) -> NoReturn:
        """Refuse the command line.

        Raises:
            ValueError: Always; names the error and the help command.
        """
        raise ValueError(f"{message}; see {self.prog} --help")
