"""Reads the samples of a file or of a synthetic generator; those of large files stay on disk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from dmole.data.cache import CacheEntry, same_id
from dmole.data.formats import ItemReader, Split, image_names, sample_id
from dmole.data.images import ImageRoot
from dmole.data.sample import Sample, Turn
from dmole.data.sequences import SampleList, Samples
from dmole.data.streaming import kind_of, stream_items

SYNTHETIC_SCHEME = "synthetic://"
IN_MEMORY = 10_000
"""Most items of a file whose samples are held as objects; the samples of larger ones are mapped."""


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
        from dmole.demo.world.tasks import synthetic_samples

        samples = synthetic_samples(source)
        if split == "test":
            samples = [_as_question(sample) for sample in samples]
        elif any(sample.turns[-1].role != "assistant" for sample in samples):
            raise ValueError(f"{source}: its split has no answers to train on")
        return [_with_suffix(sample, prompt_suffix) for sample in samples]
    path, reader, _ = _file(source, split, image_root, prompt_suffix)
    return _unique(path, (sample for sample, _ in _rows(path, reader)))


def open_samples(
    source: str, split: Split, image_root: Path | None = None, prompt_suffix: str = ""
) -> Samples:
    """Return all samples of a source, as `read_samples` does, in memory that has a limit.

    The samples of a file of more than `IN_MEMORY` items are kept in the cache folder; a process
    maps them into memory. Every call looks for all image files.

    Args:
        source: As for `read_samples`.
        split: What the samples are for.
        image_root: Folder of the images; by default the folder of the file.
        prompt_suffix: Text put behind each question.

    Raises:
        FileNotFoundError: If the file or an image does not exist.
        ValueError: If the content is malformed, empty, or has two items of one id, or the cache
            cannot be written.
    """
    if source.startswith(SYNTHETIC_SCHEME):
        return SampleList(read_samples(source, split, image_root, prompt_suffix))
    path, reader, root = _file(source, split, image_root, prompt_suffix)
    rows = _rows(path, reader)
    entry = CacheEntry.of(path, reader, root) if path.is_file() else None
    samples = entry.load() if entry else None
    if samples is not None:
        return samples
    head = list(islice(rows, IN_MEMORY + 1))
    if entry is None or len(head) <= IN_MEMORY:
        return SampleList(_unique(path, (sample for sample, _ in head)))
    return entry.make(chain(head, rows))


def _file(
    source: str, split: Split, image_root: Path | None, prompt_suffix: str
) -> tuple[Path, ItemReader, Path]:
    path = Path(source)
    root = image_root or path.parent
    return path, ItemReader(split, ImageRoot(root), prompt_suffix), root


def _rows(path: Path, reader: ItemReader) -> Iterator[tuple[Sample, Sequence[str]]]:
    """Yield the samples of a file, each with the names of its images."""
    for index, item in stream_items(path):
        yield _read_item(reader, path, item, index), image_names(item)


def _unique(path: Path, samples: Iterable[Sample]) -> list[Sample]:
    """Return the samples; refuse none at all and two of one id."""
    seen: dict[str, int] = {}
    kept = []
    for index, sample in enumerate(samples):
        first = seen.setdefault(sample.id, index)
        if first != index:
            raise same_id(path, first, index, sample.id)
        kept.append(sample)
    if not kept:
        raise ValueError(f"{path}: holds no items")
    return kept


def _read_item(reader: ItemReader, path: Path, item: Any, index: int) -> Sample:
    if not isinstance(item, dict):
        raise ValueError(f"{path}: item {index} is {kind_of(item)}, not an object")
    try:
        return reader.read(item, index)
    except (ValueError, FileNotFoundError) as error:
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
        raise kind(f"{path}: item {index} (id {sample_id(item, index)!r}): {error}") from error


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
