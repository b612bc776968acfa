"""Finds overlaps between training and test samples, of one task and of several."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dmole.data.formats import Split
from dmole.doctor.findings import Findings
from dmole.doctor.images import ImageReport
from dmole.doctor.overlap import AnswerOverlap, measure_overlap
from dmole.doctor.source import CheckedSource
from dmole.doctor.texts import TextReport, item_ids

_NOTED = 0.1  # least share of test answers that other tasks train, for a note

Numbers = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Shared:
    """Test items that share something with a training item.

    Args:
        items: Positions of the test items, ascending.
        partners: Position of the first matching training item of each.
    """

    items: Numbers
    partners: Numbers

    def without(self, items: Numbers) -> Shared:
        """Return the overlap without some test items."""
        rest = ~np.isin(self.items, items)
        return Shared(self.items[rest], self.partners[rest])


def find_shared(train_keys: Numbers, train: Numbers, test_keys: Numbers, test: Numbers) -> Shared:
    """Return the test items that share a key with a training item.

    Args:
        train_keys: Keys of training items, ``(N,)``.
        train: Positions of these items, ``(N,)``.
        test_keys: Keys of test items, ``(M,)``.
        test: Positions of these items, ``(M,)``.

    Example:
        >>> keys = np.array([7, 8, 9], dtype=np.uint64)
        >>> items = np.arange(3, dtype=np.uint64)
        >>> find_shared(keys, items, keys[::-1], items).partners.tolist()
        [2, 1, 0]
    """
    order = np.argsort(train, kind="stable")  # parts of a file arrive in any order
    unique_keys, first = np.unique(train_keys[order], return_index=True)
    hits = np.flatnonzero(np.isin(test_keys, unique_keys))
    partners = train[order[first[np.searchsorted(unique_keys, test_keys[hits])]]]
    items, once = np.unique(test[hits], return_index=True)
    return Shared(items, partners[once])


def compare_texts(train: TextReport, test: TextReport) -> None:
    """Report ids shared by test and training items that may identify their content."""
    shared = find_shared(*_content_ids(train.ids), *_content_ids(test.ids))
    message = "has the id of train item {}"
    _report(test.findings, test.source, "shared_id", message, shared)


def compare_images(train: ImageReport, test: ImageReport) -> None:
    """Report test items that share the question and images, or an image, with a training item."""
    questions = find_shared(
        _numbers(train.questions),
        _numbers(train.askers),
        _numbers(test.questions),
        _numbers(test.askers),
    )
    pictures = find_shared(
        _numbers(train.pictures),
        _numbers(train.owners),
        _numbers(test.pictures),
        _numbers(test.owners),
    )
    findings, source = test.findings, test.source
    message = "asks the question of train item {} about the same images"
    _report(findings, source, "shared_question", message, questions)
    message = "has an image of train item {} with another question"
    _report(findings, source, "shared_image", message, pictures.without(questions.items))


def compare_answers(
    texts: Mapping[tuple[str, Split], TextReport], updates: Mapping[str, str]
) -> AnswerOverlap:
    """Return how many test answers of a task other tasks train, and note large shares.

    Args:
        texts: Reports by task and split; files that were not read to their end are left out.
        updates: The version that each updating task continues.
    """
    whole = {key: report for key, report in texts.items() if report.complete}
    train, test = (
        {task: report.compared for (task, of), report in whole.items() if of == split}
        for split in ("train", "test")
    )
    overlap = measure_overlap(train, test, updates)
    for task, share in overlap.of_task.items():
        if share < _NOTED:
            continue
        other, largest = overlap.nearest(task)
        message = (
            f"{share:.1%} of the test answers are training answers of other tasks (of {other}: "
            f"{largest:.1%}); training those tasks keeps them likely, so the scores may hide "
            "forgetting"
        )
        report = whole[task, "test"]
        report.findings.add(report.source.finding("shared_answers", message))
    return overlap


def _report(
    findings: Findings, source: CheckedSource, kind: str, message: str, shared: Shared
) -> None:
    listed = shared.items[: findings.limit].tolist()
    names = item_ids(source, listed)
    for index, partner in zip(listed, shared.partners.tolist(), strict=False):
        findings.add(source.finding(kind, message.format(partner), index, names[index]))
    findings.count(kind, len(shared.items) - len(listed))


def _content_ids(ids: array[int]) -> tuple[Numbers, Numbers]:
    """Return the hashes of ids that may identify the content, and their positions."""
    hashes = _numbers(ids)
    positions = np.flatnonzero(hashes & np.uint64(1)).astype(np.uint64)
    return hashes[positions], positions


def _numbers(values: array[int]) -> Numbers:
    return np.frombuffer(values, dtype=np.uint64) if values else np.empty(0, np.uint64)
