"""The cache folder for files made from large data files."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "DMOLE_CACHE"


def cache_folder() -> Path:
    """Return the folder of ``DMOLE_CACHE``, or ``dmole`` in the user's cache folder.

    Its files may be deleted while no run uses them.

    Raises:
        ValueError: If the user has no home folder.
    """
    chosen = os.environ.get(VARIABLE)
    folder = Path(chosen or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "dmole"))
    try:
        return folder.expanduser()
    except RuntimeError as error:
        raise ValueError(
            f"there is no home folder for the cache {folder}: set {VARIABLE} to a full path"
        ) from error
