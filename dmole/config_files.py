"""Finding configs: the working directory first, then those that ship with the package."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
_SHIPPED = (_PACKAGE / "configs", _PACKAGE.parent / "configs")  # in a wheel; in a checkout


def find_config(name: str) -> Path:
    """Return the file that a ``--config`` names.

    Args:
        name: A path, or the name of a shipped config: ``quickstart.yaml``,
            ``methods/seq_ft.yaml``. A leading ``configs/`` is allowed.

    Raises:
        ValueError: If there is no such file; lists the shipped ones.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    shipped = Path(name.removeprefix("configs/"))
    if not shipped.is_absolute() and ".." not in shipped.parts:
        for root in _SHIPPED:
            if (root / shipped).is_file():
                return root / shipped
    raise ValueError(f"no config {name}; shipped are: {', '.join(shipped_configs())}")


def shipped_configs() -> list[str]:
    """Return the names of the configs that ship with the package."""
    for root in _SHIPPED:
        if root.is_dir():
            return sorted(str(path.relative_to(root)) for path in root.rglob("*.yaml"))
    return []


def resolve_configs(arguments: list[str]) -> tuple[list[str], list[Path]]:
    """Replace the names behind every ``--config`` by the files found.

    Returns:
        The new arguments and the files, in order.
    """
    result, found = [], []
    expects_name = False
    for argument in arguments:
        flag, equals, name = argument.partition("=")
        if expects_name or (flag in ("--config", "-c") and equals):
            path = find_config(argument if expects_name else name)
            result.append(str(path) if expects_name else f"{flag}={path}")
            found.append(path)
            expects_name = False
            continue
        expects_name = argument in ("--config", "-c")
        result.append(argument)
    return result, found
