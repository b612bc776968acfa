"""Finds files that users store under different names."""

from __future__ import annotations

import re
from pathlib import Path

_CHOICE = re.compile(r"\{([^{}]*,[^{}]*)\}")
_SHOWN = 8  # alternatives named in an error


def alternatives(pattern: str) -> list[str]:
    """Return the paths that a pattern with braces describes, the preferred one first.

    Args:
        pattern: A path; ``{a,b}`` is a choice, and either side may be empty. Braces without a
            comma are literal.

    Example:
        >>> alternatives("CLEVR{-Math,}/{train,test}.json")[:3]
        ['CLEVR-Math/train.json', 'CLEVR-Math/test.json', 'CLEVR/train.json']
    """
    match = _CHOICE.search(pattern)
    if match is None:
        return [pattern]
    before, after = pattern[: match.start()], pattern[match.end() :]
    return [path for part in match[1].split(",") for path in alternatives(before + part + after)]


def find_path(root: Path, pattern: str, what: str) -> Path:
    """Return the first alternative that exists.

    Args:
        root: Folder that relative paths refer to.
        pattern: See `alternatives`.
        what: Description of the file, for the error.

    Raises:
        FileNotFoundError: If no alternative exists; the message lists those tried.
    """
    paths = [root / Path(path).expanduser() for path in alternatives(pattern)]
    for path in paths:
        if path.exists():
            return path
    if len(paths) == 1:
        raise FileNotFoundError(f"{what} {paths[0]} does not exist")
    shown = ", ".join(map(str, paths[:_SHOWN]))
    more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
    raise FileNotFoundError(f"{what}: none of these exists: {shown}{more}")
