"""Refuses null where a setting is a number, a text or a switch; the parser lets it pass."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from typing import Any

from dmole.cli.hints import Explanation

_NAMES = {int: "an integer", float: "a number", str: "text", bool: "true or false"}


def null_setting(
    actions: Iterable[argparse.Action], value_of: Callable[[str], Any]
) -> Explanation | None:
    """Return what to say about the first setting that is null and must not be.

    Args:
        actions: The settings of a parser.
        value_of: Returns the parsed value of a dotted name.
    """
    for action in actions:
        kind: Any = getattr(action, "_typehint", action.type)
        plain = isinstance(kind, type) and kind in _NAMES
        if plain and action.default is not None and value_of(action.dest) is None:
            return Explanation(f"{action.dest}: expected {_NAMES[kind]}, got null", action.dest)
    return None
