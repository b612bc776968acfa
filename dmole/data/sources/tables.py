"""Opens tables: parquet folders, data sets saved to disk, and data sets of the hub."""

from __future__ import annotations

import hashlib
import logging
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmole.data.cache_folder import cache_folder
from dmole.data.sources.container import archive_version
from dmole.data.sources.rows import RowTable
from dmole.storage.files import check_file, check_folder

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger("dmole")


def open_hub(
    address: str, name: str, options: Mapping[str, str], columns: Mapping[str, str]
) -> RowTable:
    """Return a data set of the hub, or of its local cache.

    Args:
        address: Name of the data set in messages.
        name: Name on the hub, ``organisation/name``.
        options: ``split`` and, if given, ``config`` and ``revision``.
        columns: Renamed columns.

    Raises:
        ValueError: If it cannot be loaded, for instance without a network.
    """

    def load() -> Dataset:
        import datasets

        return datasets.load_dataset(
            name, options.get("config"), split=options["split"], revision=options.get("revision")
        )

    return RowTable(address, Path.cwd(), _one_line(address, load), columns)


def open_saved(path: Path, split: str, columns: Mapping[str, str]) -> RowTable:
    """Return a data set written by ``save_to_disk`` of the library ``datasets``.

    Args:
        path: The folder of the data set.
        split: The split, if the data set has several.
        columns: Renamed columns.

    Raises:
        ValueError: If the data set cannot be opened or has no such split.
    """
    import datasets

    check_folder(path)
    saved = _one_line(str(path), lambda: datasets.load_from_disk(str(path)))
    if isinstance(saved, datasets.DatasetDict):
        if split not in saved:
            raise ValueError(f"{path}: has no split {split!r}, only {', '.join(saved)}")
        saved = saved[split]
    return RowTable(str(path), path, saved, columns)


def open_parquet(path: Path, split: str, columns: Mapping[str, str]) -> RowTable:
    """Return the rows of a parquet file, or of the files of a split in a folder.

    Parquet cannot be mapped, so the rows are written once to the cache folder as Arrow.

    Args:
        path: The file or folder.
        split: Selects the files of a folder: ``train-00000-of-00004.parquet``,
            ``train/0.parquet``, ``train.parquet``. If no name begins with a split, all files are
            read.
        columns: Renamed columns.

    Raises:
        ValueError: If a file is damaged, or the folder has no file of the split.
    """
    named = _files_of(path, split) if path.is_dir() else [path]
    for file in named:
        check_file(file)
    files = _one_line(str(path), partial(_with_rows, named))
    if not files:
        raise ValueError(f"{path}: holds no items")
    version = hashlib.sha256(repr(archive_version(files)).encode()).hexdigest()[:32]
    folder = cache_folder() / "parquet" / version
    load = partial(_load_parquet, files, folder)
    existed = folder.exists()
    try:
        rows = _one_line(str(path), load)
    except ValueError as error:
        if not existed:
            raise
        log.warning("%s is damaged and is written again: %s", folder, error)
        shutil.rmtree(folder)
        rows = _one_line(str(path), load)
    return RowTable(str(path), path if path.is_dir() else path.parent, rows, columns)


def is_saved(path: Path) -> bool:
    """Return whether a folder was written by ``save_to_disk``."""
    return any((path / name).is_file() for name in ("state.json", "dataset_dict.json"))


def has_parquet(path: Path) -> bool:
    """Return whether a path is a parquet file or a folder that contains one."""
    return path.suffix == ".parquet" or next(path.rglob("*.parquet"), None) is not None


def _load_parquet(files: Sequence[Path], folder: Path) -> Dataset:
    import datasets

    return datasets.load_dataset(
        "parquet",
        data_files=[str(file) for file in files],
        split="train",  # the library's name for files without a split
        cache_dir=str(folder),
    )


def _with_rows(files: Sequence[Path]) -> list[Path]:
    """Return the files that have rows; the library cannot read empty ones."""
    import pyarrow.parquet as pq

    return [file for file in files if pq.read_metadata(file).num_rows]


def _files_of(folder: Path, split: str) -> list[Path]:
    files = sorted(folder.rglob("*.parquet"))
    names = [_split_of(file.relative_to(folder)) for file in files]
    if not any(names):
        return files
    chosen = [file for file, name in zip(files, names, strict=True) if name == split]
    if not chosen:
        splits = ", ".join(sorted({name for name in names if name}))
        raise ValueError(f"{folder}: has no parquet file of the split {split!r}, only {splits}")
    return chosen


_SPLITS = ("train", "validation", "valid", "val", "dev", "test")


def _split_of(path: Path) -> str | None:
    """Return the split at the beginning of the name of a file or of a folder above it."""
    for part in (path.name, *reversed(path.parts[:-1])):
        word = re.split(r"[-_.]", part)[0].lower()
        if word in _SPLITS:
            return word
    return None


def _one_line(address: str, load: Callable[[], Any]) -> Any:
    """Return the result of a load; raise errors as one line that names the address."""
    try:
        with _quiet():
            return load()
    except Exception as error:  # the back ends of the library raise many types
        cause = error
        while cause.__cause__ is not None and type(cause).__name__ == "DatasetGenerationError":
            cause = cause.__cause__  # type: ignore[assignment]
        reason = " ".join(str(cause).split()) or type(cause).__name__
        raise ValueError(f"{address}: cannot be loaded: {reason}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the log and progress bars of the library."""
    import datasets

    level, bars = datasets.logging.get_verbosity(), datasets.are_progress_bars_disabled()
    datasets.logging.set_verbosity(logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if not bars:
            datasets.enable_progress_bars()
