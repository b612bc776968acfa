"""Reads the samples of a file or of a synthetic generator."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from dmole.data.formats import ItemReader, Split, sample_id
from dmole.data.images import ImageRoot
from dmole.data.sample import Sample, Turn

SYNTHETIC_SCHEME = "synthetic://"


def read_samples(
    source: str, split: Split, image_root: Path | None = None, prompt_suffix: str = ""
) -> list[Sample]:
    """Read all samples of a source. Image files are checked for existence but not opened.

    Args:
        source: Path of a ``.json`` file (a list of items), of a ``.jsonl`` file (an item a line),
            or a ``synthetic://`` address.
        split: What the samples are for.
        image_root: Folder of the images; by default the folder of the file.
        prompt_suffix: Text put behind each question.

    Raises:
        FileNotFoundError: If the file or an image does not exist.
        ValueError: If the content is malformed, empty, or has two items of one id. The message
            names the file and the item.
    """
    if source.startswith(SYNTHETIC_SCHEME):
        # the generators need not be loaded by those who bring their own files
        from dmole.data.synthetic.tasks import synthetic_samples

        samples = synthetic_samples(source)
        if split == "test":
            samples = [_as_question(sample) for sample in samples]
        elif any(sample.turns[-1].role != "assistant" for sample in samples):
            raise ValueError(f"{source}: its split has no answers to train on")
        return [_with_suffix(sample, prompt_suffix) for sample in samples]
    path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(f"data file {path} does not exist")
    reader = ItemReader(split, ImageRoot(image_root or path.parent), prompt_suffix)
    samples = []
    seen: dict[str, int] = {}
    for index, item in enumerate(_items(path)):
        sample = _read_item(reader, path, item, index)
        if sample.id in seen:
            raise ValueError(
                f"{path}: items {seen[sample.id]} and {index} have the same id {sample.id!r}"
            )
        seen[sample.id] = index
        samples.append(sample)
    if not samples:
        raise ValueError(f"{path}: holds no items")
    return samples


def _read_item(reader: ItemReader, path: Path, item: Any, index: int) -> Sample:
    if not isinstance(item, dict):
        raise ValueError(f"{path}: item {index} is {_kind(item)}, not an object")
    try:
        return reader.read(item, index)
    except (ValueError, FileNotFoundError) as error:
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
        raise kind(f"{path}: item {index} (id {sample_id(item, index)!r}): {error}") from error


def _items(path: Path) -> Iterator[Any]:
    if path.suffix not in (".json", ".jsonl"):
        raise ValueError(f"data file {path} must end in .json or .jsonl")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8 text: {error}") from error
    if path.suffix == ".jsonl":
        # not splitlines: it also splits at separators that JSON allows inside strings
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                yield _parse(line, path, first_line=number)
        return
    items = _parse(text, path, first_line=1)
    if not isinstance(items, list):
        raise ValueError(f"{path}: must hold a list of items, but holds {_kind(items)}")
    yield from items


def _parse(text: str, path: Path, first_line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise ValueError(
            f"{path}: broken JSON at line {line} column {error.colno}: {error.msg}"
        ) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; nesting
        raise ValueError(f"{path}: broken JSON from line {first_line} on: {error}") from error


def _kind(value: Any) -> str:
    """Return the JSON name of a value's type."""
    if isinstance(value, dict):
        keys = ", ".join(map(repr, list(value)[:3]))
        return f"an object (keys {keys}{', ...' if len(value) > 3 else ''})"
    names = {list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _as_question(sample: Sample) -> Sample:
    """Turn a training sample into one to be answered, as the conversation form does."""
    if sample.turns[-1].role != "assistant":
        return sample
    return replace(sample, turns=sample.turns[:-1], references=(sample.turns[-1].text,))


def _with_suffix(sample: Sample, suffix: str) -> Sample:
    turns = tuple(
        Turn(turn.role, turn.text + suffix) if turn.role == "user" else turn
        for turn in sample.turns
    )
    return replace(sample, turns=turns) if suffix else sample
