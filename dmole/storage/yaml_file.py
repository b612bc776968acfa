"""Reads YAML of plain values: no aliases, which can double without end, and no tags."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from dmole.storage.reading import read_text, unreadable
from dmole.storage.values import MAX_DEPTH, check_values

_LIMIT = 2 << 20
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the first is 10 times as fast


def read_yaml(path: str | Path, what: str = "") -> Any:
    """Return the content of a YAML file of plain values, at most 2 MiB.

    Args:
        path: The file, UTF-8.
        what: Description of the content, for the message.

    Raises:
        ValueError: If the file cannot be read, is not YAML, or has an alias, a tag, a key twice,
            a nesting deeper than `MAX_DEPTH` or a number of more than 64 bits; names the file,
            and the line or the key.
    """
    text = read_text(path, what, _LIMIT)
    try:
        _check_events(text)
        content = yaml.load(text, Loader=_LOADER)
        check_values(content, finite=False)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"broken YAML at line {mark.line + 1} column {mark.column + 1}" if mark else ""
        raise unreadable(path, what, f"{place or 'broken YAML'}: {error.problem}") from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise unreadable(path, what, f"broken YAML: {error}") from error
    return content


class _Mapping:
    """Keys of a mapping whose events are being read; a list has none."""

    def __init__(self, *, keyed: bool) -> None:
        self.keyed = self.at_key = keyed
        self.keys: set[str] = set()

    def takes(self, event: yaml.NodeEvent) -> bool:
        """Note the next key or value; return whether it is a key for the second time."""
        is_key, self.at_key = self.at_key, self.keyed and not self.at_key
        if not (is_key and isinstance(event, yaml.ScalarEvent)):
            return False
        twice = event.value in self.keys
        self.keys.add(event.value)
        return twice


def _check_events(text: str) -> None:
    """Check a text before values are made of it, in time and memory linear in its length."""
    open_nodes: list[_Mapping] = []
    for event in yaml.parse(text, Loader=_LOADER):
        if isinstance(event, yaml.CollectionEndEvent):
            open_nodes.pop()
        if not isinstance(event, yaml.NodeEvent):
            continue
        if isinstance(event, yaml.AliasEvent):
            raise _error("aliases (*name) are not read; write the value out", event)
        if event.tag not in (None, "!"):  # type: ignore[attr-defined]
            raise _error("tags (!name) are not read", event)
        if open_nodes and open_nodes[-1].takes(event):
            raise _error(f"key {event.value[:80]!r} is set twice", event)  # type: ignore[attr-defined]
        if isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append(_Mapping(keyed=isinstance(event, yaml.MappingStartEvent)))
            if len(open_nodes) > MAX_DEPTH:
                raise _error(f"it is nested deeper than {MAX_DEPTH} levels", event)


def _error(problem: str, event: yaml.NodeEvent) -> yaml.MarkedYAMLError:
    mark: Any = event.start_mark
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)
