"""``disabled.json``: the experts of a run folder that are switched off until they are enabled."""

from __future__ import annotations

from pathlib import Path

from dmole.storage.files import check_name, write_json
from dmole.storage.reading import read_json

FILE = "disabled.json"
"""Name of the file in a run folder, a list of names. It is no result of the run, so its digest is
not recorded."""


def read_disabled(run: Path) -> tuple[str, ...]:
    """Return the names of the disabled experts of a run; none without the file.

    Raises:
        ValueError: If the file cannot be read or is no list of different names.
    """
    path = run / FILE
    if not (path.is_symlink() or path.exists()):
        return ()
    names = read_json(path, "disabled experts")
    if not isinstance(names, list):
        raise ValueError(f"{path}: expected a list of names, got {type(names).__name__}")
    for name in names:
        check_name(name, f"{path}: expert name")
    if len(set(names)) < len(names):
        raise ValueError(f"{path} names an expert twice")
    return tuple(names)


def write_disabled(run: Path, names: tuple[str, ...]) -> None:
    """Write the names of the disabled experts; without any, the file is removed."""
    if names:
        write_json(run / FILE, list(names))
    else:
        (run / FILE).unlink(missing_ok=True)


def enabled(run: Path, names: list[str]) -> list[str]:
    """Return the experts of a run that are not disabled, in their order.

    Raises:
        ValueError: If ``disabled.json`` cannot be read, names an expert that the run does not
            have, or disables all of them; names the file.
    """
    disabled = read_disabled(run)
    for name in disabled:
        if name not in names:
            raise ValueError(f"{run / FILE} names the expert {name!r}, which the run does not have")
    left = [name for name in names if name not in disabled]
    if disabled and not left:
        raise ValueError(f"{run / FILE} disables all experts of the run; enable one of them")
    return left
