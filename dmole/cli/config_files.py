"""Finds configs, first in the working directory, then among those shipped with the package."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Any

from dmole.cli.hints import Explanation
from dmole.messages import excerpt
from dmole.storage.files import read_yaml
from dmole.storage.shipped import CONFIG_ROOTS, shipped_config


def find_config(name: str) -> Path:
    """Return the file that a ``--config`` names.

    Args:
        name: A path, or the name of a shipped config: ``quickstart.yaml``,
            ``methods/seq_ft.yaml``. A leading ``configs/`` is allowed.

    Raises:
        ValueError: If there is no such file; names the shipped config of the most similar name.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    name_in_package = name.removeprefix("configs/")
    shipped = shipped_config(name_in_package)
    if shipped is not None:
        return shipped
    stems = [shipped_name.removesuffix(".yaml") for shipped_name in shipped_configs()]
    close = get_close_matches(name_in_package.removesuffix(".yaml"), stems, n=1)
    hint = f" (did you mean {close[0]}.yaml?)" if close else ""
    raise ValueError(
        f"no config {name}: no such file, and none is shipped under this name{hint}; "
        "`dmole configs` lists those that are"
    )


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


def name_config(error: Explanation, configs: list[Path], flags: list[str]) -> str:
    """Return the text of an error, with the file and the task that cause it.

    Args:
        error: The error and its key.
        configs: Files in the order they were merged; the last one that has the key counts.
        flags: The command line; a key that is set there gets no prefix.
    """
    if "are required: " in error.text:
        message = error.text.replace("fit.", "")
        return f"{message}; put a config that sets them first, such as quickstart.yaml"
    key = error.key
    if key is None or any(flag.startswith(f"--{key}") for flag in flags):
        return error.text
    for path in reversed(configs):
        value = _value(read_settings(path), key)
        if value is not None:
            return f"{path}: {error.text}{_task_with(value, error.option)}"
    return error.text


def _task_with(tasks: Any, option: str | None) -> str:
    """Return the name of the first task that has a key, as the end of a message."""
    for task in tasks if isinstance(tasks, list) and option else ():
        if isinstance(task, dict) and option in task and "name" in task:
            return f"; in task {excerpt(task['name'])}"
    return ""


SIZES = (
    "model.allocator.init_args.rank",
    "model.allocator.init_args.rank_factor",
    "model.allocator.init_args.budget_fraction",
    "model.alpha",
    "model.optimizer.init_args.lr",
    "data.batch_size",
    "data.max_tokens_per_batch",
    "trainer.accumulate_grad_batches",
    "trainer.precision",
)
"""Settings that belong to a benchmark. A config that changes one of them is named in the log."""


def replaced_sizes(configs: list[Path]) -> list[str]:
    """Return a text for each size that a config changes although an earlier one sets it.

    Args:
        configs: Files in the order they are merged.
    """
    texts = []
    seen: dict[str, tuple[Path, Any]] = {}
    for path in configs:
        settings = read_settings(path)
        for key in SIZES:
            value = _value(settings, key)
            if value is None:
                continue
            if key in seen and seen[key][1] != value:
                earlier, old = seen[key]
                texts.append(f"{path.name} replaces {key} of {earlier.name}: {old} -> {value}")
            seen[key] = (path, value)
    return texts


def _value(settings: Any, key: str) -> Any:
    """Return the value at a dotted key, None if there is none."""
    for name in key.split("."):
        settings = settings.get(name) if isinstance(settings, dict) else None
    return settings


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
        if argument.startswith("--data.tasks."):
            raise ValueError(
                f"{argument.partition('=')[0]} would change the last task only: copy the config "
                "and set it for each task there"
            )
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
