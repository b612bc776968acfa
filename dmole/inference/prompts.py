"""Prompts of files and of standard input: objects with ``prompt`` and ``image``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from dmole.storage.records import read_records
from dmole.storage.values import parse_json


def read_prompts(path: Path) -> list[dict[str, Any]]:
    """Return the prompts of a file of JSON or JSON lines: objects with ``prompt`` and ``image``.

    Raises:
        ValueError: If the file is missing or has another structure; names file and item.
    """
    records = read_records(path, "prompts")
    content = records.entries(lambda item: "prompt" in item)
    if not content:
        kind = type(records.content).__name__
        raise ValueError(f"{path}: expected a list of prompts, got {kind}")
    for index, item in enumerate(content):
        line = f" (line {records.lines[index]})" if records.lines else ""
        _check(item, f"{path}: item {index}{line}", path.parent)
    return content


def prompts_of_lines(lines: Iterable[str], name: str) -> Iterator[dict[str, Any]]:
    """Yield the prompts of JSON lines while they arrive; blank lines are left out.

    Args:
        lines: The lines.
        name: Name of their source, for messages; images are relative to the working directory.

    Raises:
        ValueError: If a line is no object with a prompt; names source and line.
    """
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            item = parse_json(line, line=number, unique=True)
        except ValueError as error:
            raise ValueError(f"{name}: line {number}: {error}") from error
        _check(item, f"{name}: line {number}", Path())
        yield item


def _check(item: Any, where: str, folder: Path) -> None:
    """Refuse an item without a prompt; make the path of its image one from a folder."""
    if not isinstance(item, dict) or not isinstance(item.get("prompt"), str):
        raise ValueError(f"{where} has no text under 'prompt'")
    if item.get("image") is not None:
        item["image"] = folder / str(item["image"])
