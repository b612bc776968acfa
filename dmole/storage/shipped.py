"""The configs that are shipped with the package."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]

CONFIG_ROOTS = (_PACKAGE / "configs", _PACKAGE.parent / "configs")
"""Folders of shipped configs: in a wheel, and in a checkout."""


def shipped_config(name: str) -> Path | None:
    """Return the file of a shipped config such as ``coin.yaml``; None if there is none.

    Args:
        name: A path relative to the folder of configs; None is returned for a path outside it.
    """
    relative = Path(name)
    if relative.is_absolute() or ".." in relative.parts:
        return None
    paths = [root / relative for root in CONFIG_ROOTS]
    return next((path for path in paths if path.is_file()), None)
