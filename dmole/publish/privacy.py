"""Refuses a folder to publish that names a place on this machine."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from dmole.messages import excerpt
from dmole.storage.files import read_json

_LEAST = 2  # parts of a path that says something: "/" and "/answer" are texts
_PLACES = re.compile(rb"(?<![\w.])/(?:home|Users|root|tmp|mnt|media|scratch)/[\w.-]")


def check_private(folder: Path, known: Iterable[str | Path] = ()) -> None:
    """Raise if a file of a folder holds a path of this machine.

    All bytes of all files are searched for the home folder, the working folder, the folder of
    temporary files and the given folders; texts of JSON files may be no absolute path at all.

    Args:
        folder: The folder to publish.
        known: Further folders that must not be named, such as that of the run.

    Raises:
        ValueError: If a path is found; names file and key.
    """
    places = [Path.home(), Path.cwd(), tempfile.gettempdir(), *known]
    absolute = {os.path.abspath(place) for place in places}
    absolute |= {os.path.realpath(place) for place in places}
    needles = sorted(place.encode() for place in absolute if place.count("/") >= 1 and place != "/")
    for path in sorted(each for each in folder.rglob("*") if each.is_file()):
        name = path.relative_to(folder)
        if path.suffix == ".json":
            for key, text in _texts(read_json(path), ""):
                if _is_path(text):
                    raise ValueError(
                        f"{name}: {key} holds the path {excerpt(text)}, which is not published"
                    )
        content = path.read_bytes()
        found = next((each for each in needles if _names(content, each)), None)
        if found is None and path.suffix != ".safetensors" and (match := _PLACES.search(content)):
            found = match[0]
        if found is not None:
            raise ValueError(f"{name} names {found.decode()!r}, which is not published")


def _names(content: bytes, place: bytes) -> bool:
    """Return whether a content holds a path, or a path below it."""
    return re.search(re.escape(place) + rb"(?![\w.-])", content) is not None


def _texts(value: Any, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield key or "the file", value
    elif isinstance(value, dict):
        for name, each in value.items():
            inner = f"{key}.{name}".lstrip(".")
            yield inner, name
            yield from _texts(each, inner)
    elif isinstance(value, list):
        for index, each in enumerate(value):
            yield from _texts(each, f"{key}.{index}".lstrip("."))


def _is_path(text: str) -> bool:
    r"""Return whether a text is an absolute path of this or another system, or in a home folder.

    Example:
        >>> _is_path("/data/images"), _is_path("C:\\data"), _is_path("org/name"), _is_path("/")
        (True, True, False, False)
    """
    if "\n" in text:
        return False
    posix, windows = PurePosixPath(text), PureWindowsPath(text)
    return (
        (posix.is_absolute() and len(posix.parts) > _LEAST)
        or (bool(windows.drive) and windows.is_absolute())
        or text.startswith(("~/", "file:"))
    )
