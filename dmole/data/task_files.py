"""Opens the files of a task: which they are, how they are written, what their items are."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from dmole.data.formats import ItemReader, Split, sample_id
from dmole.data.images import ImageRoot
from dmole.data.items import Numbered, Source
from dmole.data.layout import Layout
from dmole.data.paths import find_path
from dmole.data.prompts import worded
from dmole.data.reading import SYNTHETIC_SCHEME, open_samples, read_samples
from dmole.data.sample import Sample
from dmole.data.sequences import SampleList, Samples
from dmole.data.task import Task


@dataclass(frozen=True)
class TaskFile:
    """The data of one split of a task, found but not yet read.

    Args:
        path: The file or folder.
        image_root: Folder of the images.
        items: Items in the form that `ItemReader` reads, questions worded as the task says.
        plain: Whether they are those of the file, unchanged.
    """

    path: Path
    image_root: Path
    items: Numbered
    plain: bool


def open_task(task: Task, split: Split, data_root: Path) -> TaskFile:
    """Find the files of a task and begin to read them.

    A task may be tested on its train file; that is read as a train file then, without side files.

    Args:
        task: The task; its source must not be synthetic.
        split: Which of its sources.
        data_root: Folder that the paths are relative to.

    Raises:
        FileNotFoundError: If a file or folder is missing.
        ValueError: If format and side files do not go together, or a prompt is missing. Faults of
            the content come while it is read.
    """
    from dmole.benchmarks.shared.meta_files import is_meta, meta_items

    layout = layout_of(task)
    pattern = task.train if split == "train" else task.test
    assert pattern is not None  # such tasks were refused
    if pattern == task.train:
        split = "train"
    path = find_path(data_root, pattern, "data file")
    root = path.parent if path.is_file() else path
    images = task.image_root
    if split == "test" and task.test_image_root is not None:
        images = task.test_image_root
    if images is not None:
        root = find_path(data_root, images, f"task {task.name!r}: image folder")
    prompt = task.prompt if task.prompt is not None else layout.prompt
    if split == "train" and is_meta(path):
        items, published = meta_items(path, data_root), True
    else:
        items, published = _layout_items(task, layout, split, path, data_root), layout.published
    plain = not published and prompt is None
    return TaskFile(path, root, items if plain else _changed(items, path, prompt, published), plain)


def layout_of(task: Task) -> Layout:
    """Return the layout of a task.

    Raises:
        ValueError: If the format is unknown, or lacks a side file or the prompt.
    """
    from dmole.benchmarks.registry import LAYOUTS

    if task.format not in LAYOUTS:
        known = ", ".join(sorted(LAYOUTS))
        raise ValueError(f"task {task.name!r}: unknown format {task.format!r}, there are {known}")
    layout = LAYOUTS[task.format]
    try:
        layout.check_side_files(task.side_files)
    except ValueError as error:
        raise ValueError(f"task {task.name!r}: format {task.format!r} {error}") from error
    if layout.wants_prompt and task.prompt is None:
        raise ValueError(f"task {task.name!r}: format {task.format!r} needs a prompt")
    return layout


def _layout_items(
    task: Task, layout: Layout, split: Split, path: Path, data_root: Path
) -> Numbered:
    side_files = {
        name: find_path(data_root, pattern, f"task {task.name!r}: side file {name!r}")
        for name, pattern in task.side_files.items()
        if split == "test"
    }
    return layout.items(Source(path, split, side_files))


def _changed(items: Numbered, path: Path, prompt: str | None, numbered: bool) -> Numbered:
    """Word the questions, and give ids that repeat a number."""
    counts: Counter[str] = Counter()
    for index, item in items:
        name = sample_id(item, index)
        if prompt is not None:
            try:
                item = worded(item, prompt)
            except ValueError as error:
                raise ValueError(f"{path}: item {index} (id {name!r}): {error}") from error
        if numbered:
            counts[name] += 1
            item = item | {"id": name if counts[name] == 1 else f"{name}#{counts[name]}"}
        yield index, item


def read_task(task: Task, split: Split, data_root: Path) -> list[Sample]:
    """Read all samples of a split of a task.

    Ids that repeat in a published file get a number: ``7``, ``7#2``, ``7#3``.

    Args:
        task: The task.
        split: Which of its sources.
        data_root: Folder that its paths are relative to.

    Raises:
        FileNotFoundError: If a file or an image is missing.
        ValueError: If a file is malformed or empty, or ids repeat that must not. The message names
            file and item.
    """
    source = task.train if split == "train" else task.test
    assert source is not None  # such tasks were refused
    if source.startswith(SYNTHETIC_SCHEME):
        return read_samples(source, split, None, task.prompt_suffix)
    opened = open_task(task, split, data_root)
    if opened.plain:
        return read_samples(str(opened.path), split, opened.image_root, task.prompt_suffix)
    reader = ItemReader(split, ImageRoot(opened.image_root), task.prompt_suffix)
    samples: list[Sample] = []
    seen: dict[str, int] = {}
    for index, item in opened.items:
        try:
            sample = reader.read(item, index)
        except (ValueError, FileNotFoundError) as error:
            message = f"{opened.path}: item {index} (id {sample_id(item, index)!r}): {error}"
            raise type(error)(message) from error
        if sample.id in seen:
            raise ValueError(
                f"{opened.path}: items {seen[sample.id]} and {index} have the same id {sample.id!r}"
            )
        seen[sample.id] = index
        samples.append(sample)
    if not samples:
        raise ValueError(f"{opened.path}: holds no items")
    return samples


def open_task_samples(task: Task, split: Split, data_root: Path) -> Samples:
    """Return all samples of a split of a task, those of large plain files mapped into memory.

    Arguments and faults are those of `read_task`.
    """
    source = task.train if split == "train" else task.test
    assert source is not None  # such tasks were refused
    if not source.startswith(SYNTHETIC_SCHEME):
        opened = open_task(task, split, data_root)
        if opened.plain:
            root = opened.image_root
            return open_samples(str(opened.path), split, root, task.prompt_suffix)
    return SampleList(read_task(task, split, data_root))
