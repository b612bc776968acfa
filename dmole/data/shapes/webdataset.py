"""Groups of a webdataset's members: the files of one key become one item."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from dmole.data.shapes.checks import short
from dmole.data.shapes.pictures import IMAGE_KEYS, are_paths, read_images

IMAGE_ENDINGS = {
    "jpg",
    "jpeg",
    "png",
    "webp",
    "bmp",
    "gif",
    "tif",
    "tiff",
    "ppm",
    "pgm",
    "pbm",
    "jp2",
}
"""Endings of members that are images."""

_TEXTS = ("txt", "cls")
"""Members that hold an answer: a caption, or the number of a class."""


def member_item(key: str, members: Mapping[str, bytes]) -> dict[str, Any]:
    """Return the item of the members that share a key.

    The ``json`` member is the item; without one, ``txt`` or ``cls`` is the answer to an empty
    question, which the task's prompt replaces. An image that the item names is read from its
    member; images that it does not name are sorted by the names of their members, in numeric
    order. Other text members become keys.

    Args:
        key: The common name, ``000123`` of ``000123.jpg``.
        members: Content by extension, such as ``jpg``, ``0.png`` or ``json``.

    Raises:
        ValueError: If a member is broken or of an unknown kind, an image is not a member, or
            there is neither ``json`` nor ``txt`` nor ``cls``.
    """
    # names with two underscores describe the archive, not the item
    names = [name for name in members if not name.startswith("__")]
    images = sorted((name for name in names if _ending(name) in IMAGE_ENDINGS), key=_by_number)
    texts = {n: _text(n, members[n]) for n in names if n not in images and n != "json"}
    if "json" in members:
        item = texts | _object(members["json"])
        if not _is_item(item):
            item |= _answer(texts)
    else:
        item = texts | _answer(texts)
        if not _is_item(item):
            held = ", ".join(names)
            raise ValueError(f"has no member 'json', 'txt' or 'cls': its members are {held}")
    item.setdefault("id", key)
    rows = {name: {"bytes": members[name], "path": f"{key}.{name}"} for name in images}
    return _with_images(item, key, rows)


def _answer(texts: Mapping[str, str]) -> dict[str, str]:
    answer = next((texts[name] for name in _TEXTS if name in texts), None)
    return {} if answer is None else {"text": "", "answer": answer.strip()}


def _is_item(item: Mapping[str, Any]) -> bool:
    from dmole.data.shapes.recognition import shapes_of

    return bool(shapes_of(item))


def _with_images(
    item: dict[str, Any], key: str, rows: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Return the item with the content of its images in place of their names."""
    named = read_images(item)
    if not rows:
        return item
    rest = {name: value for name, value in item.items() if name not in IMAGE_KEYS}
    if not named:
        return rest | {"images": list(rows.values())}
    if not are_paths(list(named)):
        raise ValueError("has images both in its 'json' and as members")
    if len(named) == len(rows) == 1:
        return rest | {"images": list(rows.values())}
    by_name: dict[str, Mapping[str, Any]] = {}
    for name, row in rows.items():
        path = f"{key}.{name}"
        by_name |= {name: row, path: row, PurePosixPath(path).name: row}
    missing = next((name for name in named if name not in by_name), None)
    if missing is not None:
        held = ", ".join(rows)
        raise ValueError(f"its image {short(missing)} is not a member: the images are {held}")
    used = [by_name[str(name)] for name in named]
    unused = next((name for name, row in rows.items() if row not in used), None)
    if unused is not None:
        raise ValueError(f"its 'json' names images, but not the member {unused!r}")
    return rest | {"images": used}


def _object(content: bytes) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except UnicodeDecodeError as error:
        raise ValueError("member 'json' is not UTF-8 text") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"member 'json' is broken: {error.msg}") from error
    except RecursionError as error:
        raise ValueError("member 'json' is nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError(f"member 'json' must hold an object, got {short(value)}")
    return value


def _text(name: str, content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"has a member {name!r}, which is not supported") from error


def _ending(name: str) -> str:
    return name.rpartition(".")[2].lower()


def _by_number(name: str) -> list[tuple[int, str]]:
    """Return a sort key that puts ``2.jpg`` before ``10.jpg``."""
    return [(int(p), "") if p.isdecimal() else (-1, p) for p in re.split(r"(\d+)", name)]
