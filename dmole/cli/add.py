"""The verb ``add``: a finished run learns one more task, without a config written by hand."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from dmole.cli.arguments import ArgumentParser
from dmole.cli.config_files import read_settings
from dmole.cli.lightning import build, configure_logging, open_configs
from dmole.data.address import Address
from dmole.data.paths import find_path
from dmole.data.sources.tar import find_shards
from dmole.data.updates import next_version
from dmole.messages import show
from dmole.run.model_file import CONFIG_FILE
from dmole.run.run_folder import next_number

_VARIABLE = "DMOLE_ADDED_CONFIG"
"""Environment variable that passes the config to the processes that Lightning starts."""

_PLACES = ("--trainer.name", "--trainer.version", "--trainer.default_root_dir", "--ckpt_path")
"""Flags that would put the new run elsewhere."""

_NAMES = ("name", "update")
_FILES = ("train", "test", "image_root", "test_image_root")
_OF_FILES = (*_FILES, "limit", "benchmark")
"""Settings of a task that are those of its files."""
_TEXTS = ("format", "metric", "prompt", "prompt_suffix")
_NUMBERS = ("epochs", "max_new_tokens", "limit", "repeat")


def run_add(words: list[str]) -> None:
    """Let a finished run learn one more task, in a new run folder beside it."""
    configure_logging()
    options, overrides = _parser().parse_known_args(words)
    for word in overrides:
        if word.partition("=")[0] in _PLACES:
            raise ValueError(
                f"{word.partition('=')[0]}: dmole add makes the new run beside the old one; "
                "for another place write a config and use dmole fit --ckpt_path"
            )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and _VARIABLE not in os.environ:
        raise ValueError("dmole add starts its processes itself; under torchrun use dmole fit")
    run = Path(os.path.abspath(options.run))
    if options.name and not options.test:
        raise ValueError(f"task {options.name!r} needs --test; only an --update may have none")
    task = {key: getattr(options, key) for key in (*_NAMES, *_FILES, *_TEXTS, *_NUMBERS)}
    task = {key: value for key, value in task.items() if value is not None}
    with _config_of(run, task, _data_root(overrides)) as file:
        words = ["fit", "--config", str(file), "--ckpt_path", str(run), *overrides]
        with open_configs(words) as (arguments, _, trusted):
            cli = build(arguments, trusted)
        if cli.trainer.is_global_zero:
            show(f"config: {file}\nresults: {cli.trainer.run_dir}")  # type: ignore[attr-defined]


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        "dmole add",
        description=run_add.__doc__,
        epilog="Any setting of the run can be given: --trainer.fill_rows true. What the run was "
        "made with stays as it is unless --trainer.accept_changes true accepts another value.",
        allow_abbrev=False,
    )
    parser.add_argument("run", type=Path, help="folder of the finished run")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--name", help="name of the new task")
    which.add_argument("--update", metavar="TASK", help="task of the run whose expert is continued")
    parser.add_argument("--train", required=True, help="its training samples, as in a config")
    parser.add_argument("--test", help="its test samples; an update may have none")
    parser.add_argument("--image_root", help="folder that image paths in the files are relative to")
    parser.add_argument("--test_image_root", help="the same for the test file, if it differs")
    for key in _TEXTS:
        parser.add_argument(f"--{key}", help=f"{key} of the task, as in a config")
    for key in _NUMBERS:
        parser.add_argument(f"--{key}", type=int, help=f"{key} of the task, as in a config")
    return parser


@contextmanager
def _config_of(run: Path, task: Mapping[str, Any], data_root: str | None = None) -> Iterator[Path]:
    """Yield the config of the new run, beside its folder; remove it if no run was made.

    Args:
        run: Folder of the finished run.
        task: The new task.
        data_root: Folder of the data, if it is not that of the config.

    Raises:
        ValueError: If the run has no config, or a task of this name, or no test file of its tasks
            is found.
    """
    if _VARIABLE in os.environ:  # a process that Lightning has started
        yield Path(os.environ[_VARIABLE])
        return
    file = run / CONFIG_FILE
    if not file.is_file():
        raise ValueError(f"{run} is no run folder: it has no {CONFIG_FILE}")
    old = read_settings(file)
    config = extended_config(old, task, file)
    _check_found(config, old["data"]["tasks"], data_root, file)
    config["trainer"] |= {"name": run.parent.name, "default_root_dir": _shown(run.parent.parent)}
    folder, made = _write(run.parent, config)
    os.environ[_VARIABLE] = str(made)
    try:
        yield made
    finally:
        del os.environ[_VARIABLE]
        if not folder.exists():
            made.unlink(missing_ok=True)


def extended_config(
    config: Mapping[str, Any], task: Mapping[str, Any], file: Path
) -> dict[str, Any]:
    """Return the config of a run with one more task, after those that are learned.

    Args:
        config: The config of the run.
        task: The new task, with files as seen from the working directory. Instead of a name it may
            have the name of a task under ``update``, whose settings it then takes over.
        file: The file of the config, for messages.

    Raises:
        ValueError: If the config has no list of tasks, a task of this name, or no task to update.
    """
    data, trainer = config.get("data"), config.get("trainer")
    tasks = data.get("tasks") if isinstance(data, dict) else None
    if not isinstance(data, dict) or not isinstance(trainer, dict) or not isinstance(tasks, list):
        raise ValueError(f"{file} is no config of a run: it needs trainer and data.tasks")
    if not all(isinstance(old, dict) for old in tasks):
        raise ValueError(f"{file}: data.tasks must be a list of tasks")
    task = updating_task(tasks, task, file) if "update" in task else dict(task)
    for old in tasks:
        if str(old.get("name")).casefold() == task["name"].casefold():
            raise ValueError(f"{file} has a task {old['name']!r} already: choose another --name")
    if data.get("data_root") is not None:  # else paths are relative to the working directory
        task |= {key: _absolute(task[key]) for key in _FILES if key in task}
    place = sum(not old.get("eval_only") for old in tasks)
    # what was asked of the old run does not count for the new one
    kept = {k: v for k, v in trainer.items() if k not in ("accept_changes", "fill_rows")}
    tasks = [*tasks[:place], task, *tasks[place:]]
    return {**config, "trainer": kept, "data": {**data, "tasks": tasks}, "ckpt_path": None}


def updating_task(
    tasks: Sequence[Mapping[str, Any]], task: Mapping[str, Any], file: Path
) -> dict[str, Any]:
    """Return a task that continues one of a config: asked, scored and trained like that one.

    Args:
        tasks: The tasks of the config.
        task: Settings of the new task; ``update`` names the other one, or a version of it.
        file: The file of the config, for messages.

    Raises:
        ValueError: If the config has no such task.
    """
    of_name = {str(old.get("name")): old for old in tasks}
    first = str(task["update"])
    while of_name.get(first, {}).get("update"):
        first = first.rpartition("-v")[0]
    if first not in of_name:
        raise ValueError(f"{file} has no task {first!r} to update; it has {', '.join(of_name)}")
    old = copy.deepcopy(dict(of_name[first]))  # YAML would write one object twice as an alias
    kept = {key: value for key, value in old.items() if key not in _OF_FILES}
    return {**kept, **task, "name": next_version(first, list(of_name)), "update": True}


def _write(parent: Path, config: dict[str, Any]) -> tuple[Path, Path]:
    """Write the config for the next free run folder; return the folder and the file."""
    number = next_number(parent)  # gaps stay: the newest run has the highest number
    while True:
        folder, file = parent / f"version_{number}", parent / f"version_{number}.yaml"
        config["trainer"]["version"] = number
        number += 1
        if folder.exists():
            continue
        try:
            with file.open("x", encoding="utf-8") as target:
                target.write(yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
        except FileExistsError:
            continue  # of another `dmole add`
        return folder, file


def _data_root(overrides: list[str]) -> str | None:
    """Return the folder of the data that a flag gives."""
    parser = ArgumentParser(allow_abbrev=False, add_help=False)
    parser.add_argument("--data.data_root", dest="data_root")
    folder: str | None = parser.parse_known_args(overrides)[0].data_root
    return folder


def _check_found(
    config: Mapping[str, Any],
    old: Sequence[Mapping[str, Any]],
    data_root: str | None,
    file: Path,
) -> None:
    """Refuse a config if no test file of its old tasks is found.

    Old files may be gone, but relative paths lose all of them in another working directory.
    """
    folder = data_root or config["data"].get("data_root")
    root = Path(folder or ".").expanduser()
    if not any(_is_found(root, str(task["test"])) for task in old if task.get("test")):
        raise ValueError(
            f"{file}: no test file of its tasks is found from the working directory {Path.cwd()}, "
            f"data_root {folder or 'null'}: go to the directory of the run or set --data.data_root;"
            " if all files are gone, use dmole fit --ckpt_path"
        )


def _is_found(root: Path, test: str) -> bool:
    if "://" in test:
        return True
    base = Address.of(test, root).base
    try:
        return find_shards(root, base) is not None or find_path(root, base, "file").exists()
    except FileNotFoundError:
        return False


def _absolute(path: str) -> str:
    return os.path.abspath(path) if Path(path).exists() else path


def _shown(folder: Path) -> str:
    """Return a folder relative to the working directory if it is below that."""
    here = Path.cwd()
    return str(folder.relative_to(here)) if folder.is_relative_to(here) else str(folder)
