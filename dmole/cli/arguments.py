"""An argument parser that reports an error in one line, without the usage, and checks of words."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

from dmole.messages import first_line


class ArgumentParser(argparse.ArgumentParser):
    """Raises an error instead of printing the usage and ending the process."""

    def error(self, message: str) -> NoReturn:
        """Refuse the command line.

        Raises:
            ValueError: Always; names the error and the help command.
        """
        raise ValueError(f"{message}; see {self.prog} --help")


def require_config(words: Sequence[str], verb: str) -> None:
    """Refuse words of a verb that name no config.

    Raises:
        ValueError: If there is no ``--config``; shows how to give one.
    """
    if not any(word.split("=")[0] in ("--config", "-c") for word in words):
        raise ValueError(f"no config is given: {verb} --config FILE")


def check_device(name: str) -> None:
    """Raise unless this machine has a device, before a model is loaded.

    Raises:
        ValueError: If there is no such device; names it.
    """
    import torch

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name}: {first_line(error)}") from error
