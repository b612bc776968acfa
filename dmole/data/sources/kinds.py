"""Determines the kind of source that an address names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dmole.data.address import HUB, Address
from dmole.data.formats import Split
from dmole.data.layout import Layout
from dmole.data.paths import find_path
from dmole.data.sources.container import Container
from dmole.data.sources.tar import find_shards
from dmole.data.sources.text import JsonFile, LayoutFiles, MetaFile, TsvFile, is_meta_file
from dmole.data.task import Task

if TYPE_CHECKING:
    from dmole.data.sources.rows import RowTable


def layout_of(task: Task) -> Layout:
    """Return the layout of a task.

    Raises:
        ValueError: If the format is unknown, or a side file or the prompt is missing.
    """
    from dmole.benchmarks.registry import LAYOUTS

    if task.format not in LAYOUTS:
        names = ", ".join(sorted(LAYOUTS))
        raise ValueError(f"task {task.name!r}: unknown format {task.format!r}, there are {names}")
    layout = LAYOUTS[task.format]
    try:
        layout.check_side_files(task.side_files)
    except ValueError as error:
        raise ValueError(f"task {task.name!r}: format {task.format!r} {error}") from error
    if layout.needs_prompt and task.prompt is None:
        raise ValueError(f"task {task.name!r}: format {task.format!r} needs a prompt")
    return layout


def find_container(task: Task, split: Split, address: Address, data_root: Path) -> Container:
    """Return the container of the items at an address of a task.

    Args:
        task: The task.
        split: The split that the address belongs to.
        address: Anything but a synthetic address.
        data_root: Folder of relative paths.

    Raises:
        FileNotFoundError: If a file or folder is missing.
        ValueError: If the side files do not fit the format, the address names no known kind of
            source, or a table cannot be opened.
    """
    layout = layout_of(task)
    name = address.options.get("split", split)
    if task.format == "auto":
        container = _unlike_json(task, name, address, data_root)
        if container is not None:
            return container
    if address.base.startswith(HUB):
        raise ValueError(f"{address.base}: the format {task.format!r} is one of files")
    if address.options:
        raise ValueError(f"{address.base}: is no table with splits, but has the option 'split'")
    path = find_path(data_root, address.base, "data file")
    # a task may be tested on its train file; that is read as one, without side files
    read_as: Split = "train" if task.test == task.train else split
    if read_as == "train" and is_meta_file(path):
        return MetaFile(path, data_root=data_root, wording=layout.prompt)
    if task.format != "auto":
        return _layout_files(task, layout, read_as, path, data_root)
    return JsonFile(path)


def _unlike_json(task: Task, split: str, address: Address, data_root: Path) -> Container | None:
    """Return the container of a hub data set, tar files, TSV file or table, or None."""
    if address.base.startswith(HUB):
        from dmole.data.sources.tables import open_hub

        hub = address.base.removeprefix(HUB).strip("/")
        options = {**address.options, "split": split}
        return _checked(open_hub(f"{HUB}{hub}", hub, options, task.columns))
    shards = find_shards(data_root, address.base)
    if shards is not None and not address.options:
        return shards
    path = find_path(data_root, address.base, "data file")
    if path.suffix == ".tsv" and not address.options:
        return TsvFile(path, options_in_text=task.prompt is None)
    return _table(path, split, task)


def _layout_files(
    task: Task, layout: Layout, split: Split, path: Path, data_root: Path
) -> LayoutFiles:
    side_files = {
        name: find_path(data_root, pattern, f"task {task.name!r}: side file {name!r}")
        for name, pattern in task.side_files.items()
        if split == "test"
    }
    return LayoutFiles(path, layout=layout, split=split, side_files=side_files)


def _table(path: Path, split: str, task: Task) -> Container | None:
    if not path.is_dir() and path.suffix != ".parquet":
        return None
    # the library of tables takes a second to load
    from dmole.data.sources import tables

    if tables.is_saved(path):
        return _checked(tables.open_saved(path, split, task.columns))
    if tables.has_parquet(path):
        return _checked(tables.open_parquet(path, split, task.columns))
    raise ValueError(f"{path}: the folder holds no .parquet or .tar files and no saved data set")


def _checked(table: RowTable) -> RowTable:
    table.check_columns()
    return table
