"""Finds configs, first in the working directory, then among those shipped with the package."""

from __future__ import annotations

import re
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from dmole.storage.files import read_yaml
from dmole.storage.shipped import CONFIG_ROOTS, shipped_config


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
    shipped = shipped_config(name.removeprefix("configs/"))
    if shipped is not None:
        return shipped
    shipped_names = shipped_configs()
    close = get_close_matches(name.removeprefix("configs/"), shipped_names, n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    raise ValueError(f"no config {name}; shipped are: {', '.join(shipped_names)}{hint}")


def shipped_configs() -> list[str]:
    """Return the names of the configs that ship with the package."""
    for root in CONFIG_ROOTS:
        if root.is_dir():
            return sorted(str(path.relative_to(root)) for path in root.rglob("*.yaml"))
    return []


def read_settings(path: Path) -> dict[str, Any]:
    """Return the content of a config file.

    Raises:
        ValueError: If it is not YAML of keys and values; names the file.
    """
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold keys and values, not {type(content).__name__}")
    return content


def name_config(message: str, configs: list[Path], flags: list[str]) -> str:
    """Return a message of the config parser, prefixed with the file that sets its key.

    Args:
        message: The message, which quotes the key as ``"model.rank"`` or ``'model.rank'``.
        configs: Files in the order they were merged; the last one that has the key counts.
        flags: The command line; a key that is set there gets no prefix.
    """
    if "are required: " in message:
        message = message.replace("fit.", "")
        return f"{message}; put a config that sets them first, such as quickstart.yaml"
    key = re.search(r"""(?:[Kk]ey|option) ["']([\w.]+)["']""", message)
    if key is None or any(flag.startswith(f"--{key[1]}") for flag in flags):
        return message
    for path in reversed(configs):
        value: Any = read_settings(path)
        for name in key[1].split("."):
            value = value.get(name) if isinstance(value, dict) else None
        if value is not None:
            return f"{path}: {message}"
    return message


def resolve_configs(arguments: list[str]) -> tuple[list[str], list[Path]]:
    """Replace the name after every ``--config`` by the path of its file.

    Returns:
        The new arguments and the files, in order.

    Raises:
        ValueError: If there is no such file, or it does not hold settings.
    """
    result, files = [], []
    expects_name = False
    for argument in arguments:
        flag, equals, name = argument.partition("=")
        if expects_name or (flag in ("--config", "-c") and equals):
            path = find_config(argument if expects_name else name)
            read_settings(path)
            result.append(str(path) if expects_name else f"{flag}={path}")
            files.append(path)
            expects_name = False
            continue
        expects_name = argument in ("--config", "-c")
        result.append(argument)
    return result, files
