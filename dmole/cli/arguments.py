"""Command lines whose faults are said in one line, without the usage."""

from __future__ import annotations

import argparse
from typing import NoReturn


class ArgumentParser(argparse.ArgumentParser):
    """Raises where the standard one prints its usage and ends the process."""

    def error(self, message: str) -> NoReturn:
        """Refuse the command line.

        Raises:
            ValueError: Always; says what is wrong and where to look.
        """
        raise ValueError(f"{message}; see {self.prog} --help")
