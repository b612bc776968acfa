"""Examines the items of a file: form, ids, answers and existence of the images."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from dmole.benchmarks.registry import build_metric
from dmole.data.formats import sample_id
from dmole.data.leakage import stable_hash
from dmole.data.prompts import prompt_keys
from dmole.data.sample import Sample
from dmole.data.streaming import kind_of
from dmole.doctor.answers import AnswerCounter, most_frequent
from dmole.doctor.findings import Findings
from dmole.doctor.overlap import AnswerHashes
from dmole.doctor.source import CheckedSource, Tick, TolerantReader

_KEYS = 12  # keys in a message
_POSITION_DIGITS = 6  # shorter integer ids are taken for positions, not for content


@dataclass
class TextReport:
    """Results for the texts of a file.

    Args:
        source: The file.
        findings: The findings.
        shape: Name of the shape of the items; None if there is none.
        items: Number of items.
        complete: Whether the file could be read to its end.
        images: Number of references to images.
        answers: Counts of the answers.
        compared: The answers as they are compared with those of other tasks: of a training item
            those of all turns, of a test item the most frequent one.
        unread: Number of items by key that no reader uses.
        ids: A hash of each item's id, by position; odd if the id may identify the content, even
            if it is only a position.
    """

    source: CheckedSource
    findings: Findings
    shape: str | None = None
    items: int = 0
    complete: bool = False
    images: int = 0
    answers: AnswerCounter = field(default_factory=AnswerCounter)
    compared: AnswerHashes = field(default_factory=AnswerHashes)
    unread: Counter[str] = field(default_factory=Counter)
    ids: array[int] = field(default_factory=lambda: array("Q"))


def examine_texts(source: CheckedSource, limit: int, *, tick: Tick | None = None) -> TextReport:
    """Examine the texts of a file.

    Args:
        source: The file.
        limit: Maximum number of findings stored per kind.
        tick: Progress callback.
    """
    report = TextReport(source, Findings(limit))
    reader = TolerantReader(source, _others(source))
    report.shape = reader.shape
    if reader.ambiguous is not None:
        report.findings.add(source.finding("file", reader.ambiguous))
    try:
        for index, item in source.items(tick):
            report.items += 1
            _examine_item(report, reader, item, index)
        report.complete = True
    except (ValueError, OSError) as error:
        report.findings.add(source.finding("file", str(error)))
    else:
        if report.items == 0:
            report.findings.add(source.finding("file", "holds no items"))
    _find_duplicates(report)
    if report.unread:
        report.findings.add(source.finding("unread_keys", _unread_text(report.unread)))
    return report


def _others(source: CheckedSource) -> Collection[str] | None:
    """Return the keys that metric and prompt of a task read; None for files of a known layout."""
    if source.data is None or source.data.container.published:
        return None
    task, prompt = source.task, source.data.container.prompt
    keys = prompt_keys(prompt if task.prompt is None else task.prompt)
    with suppress(ValueError):  # the pass over the references reports it
        keys |= set(build_metric(task.metric).needs)
    return keys


def _unread_text(unread: Counter[str]) -> str:
    """Return one line with the keys that no reader uses, the most frequent first."""
    listed = sorted(unread.items(), key=lambda pair: (-pair[1], pair[0]))
    keys = ", ".join(f"{key!r} ({count})" for key, count in listed[:_KEYS])
    more = f" and {len(listed) - _KEYS} more" if len(listed) > _KEYS else ""
    return f"keys that no part of dmole reads, with the number of items: {keys}{more}"


def _examine_item(report: TextReport, reader: TolerantReader, item: Any, index: int) -> None:
    source, findings = report.source, report.findings
    if not isinstance(item, dict):
        report.ids.append(stable_hash("no object", str(index)) & ~1)
        message = f"is {kind_of(item)}, not an object"
        findings.add(source.finding("malformed", message, index, str(index)))
        return
    id = sample_id(item, index)
    report.ids.append(id_hash(id))
    examined = reader.examine(item, index)
    for image in reader.images(examined.names):
        report.images += 1
        if isinstance(image, tuple):
            findings.add(source.finding(*image, index, id))
    if examined.sample is not None:
        report.unread.update(set(examined.unread))
        report.answers.add(_answers(examined.sample))
        report.compared.add(_compared(examined.sample))
        return
    error = str(examined.error)
    kind = "empty_answer" if error.endswith("the answer is empty") else "malformed"
    findings.add(source.finding(kind, error, index, id))


def _answers(sample: Sample) -> tuple[str, ...]:
    return sample.references or (sample.turns[-1].text,)


def _compared(sample: Sample) -> tuple[str, ...]:
    if sample.references:
        return (most_frequent(sample.references),)
    return tuple(turn.text for turn in sample.turns if turn.role == "assistant")


def id_hash(id: str) -> int:
    """Return the hash of an id: odd if equal ids suggest equal content."""
    counts_items = id.isdecimal() and len(id) <= _POSITION_DIGITS
    return stable_hash(id) & ~1 | (0 if counts_items else 1)


def _find_duplicates(report: TextReport) -> None:
    """Report the items that repeat the id of an earlier item."""
    ids: npt.NDArray[np.uint64] = np.frombuffer(report.ids, dtype=np.uint64)
    _, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
    earlier = first[inverse]
    repeats = np.flatnonzero(earlier != np.arange(len(ids)))
    listed = repeats[: report.findings.limit].tolist()
    names = item_ids(report.source, listed)
    for index in listed:
        message = f"has the id of item {int(earlier[index])}"
        finding = report.source.finding("duplicate_id", message, index, names[index])
        report.findings.add(finding)
    report.findings.count("duplicate_id", len(repeats) - len(listed))


def item_ids(source: CheckedSource, indices: list[int]) -> dict[int, str]:
    """Return the ids of some items by reading the file again; reports hold only hashes."""
    selected, names = set(indices), dict[int, str]()
    if not selected:
        return names
    last = max(selected)
    for index, item in source.items():
        if index in selected:
            names[index] = source.id_of(item, index)
        if index == last:
            break
    return names
