"""Finds what the training and the test samples of a task have in common."""

from __future__ import annotations

from array import array
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dmole.doctor.findings import Findings
from dmole.doctor.images import ImageReport
from dmole.doctor.source import CheckedSource
from dmole.doctor.texts import TextReport, item_ids

Numbers = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Shared:
    """Test items that share something with a training item.

    Args:
        items: Positions of the test items, ascending.
        partners: Position of the first such training item for each.
    """

    items: Numbers
    partners: Numbers

    def without(self, items: Numbers) -> Shared:
        """Return what is left when some test items are taken out."""
        rest = ~np.isin(self.items, items)
        return Shared(self.items[rest], self.partners[rest])


def find_shared(train_keys: Numbers, train: Numbers, test_keys: Numbers, test: Numbers) -> Shared:
    """Return the test items that have a key of a training item.

    Args:
        train_keys: A key of a training item, ``(N,)``.
        train: The position of that item, ``(N,)``.
        test_keys: A key of a test item, ``(M,)``.
        test: The position of that item, ``(M,)``.

    Example:
        >>> keys = np.array([7, 8, 9], dtype=np.uint64)
        >>> places = np.arange(3, dtype=np.uint64)
        >>> find_shared(keys, places, keys[::-1], places).partners.tolist()
        [2, 1, 0]
    """
    order = np.argsort(train, kind="stable")  # the parts of a file are not in its order
    known, first = np.unique(train_keys[order], return_index=True)
    hits = np.flatnonzero(np.isin(test_keys, known))
    partners = train[order[first[np.searchsorted(known, test_keys[hits])]]]
    items, once = np.unique(test[hits], return_index=True)
    return Shared(items, partners[once])


def compare_texts(train: TextReport, test: TextReport) -> None:
    """Report ids of test items that training items have and that may tell the content."""
    shared = find_shared(*_content_ids(train.ids), *_content_ids(test.ids))
    message = "has the id of train item {}"
    _report(test.findings, test.source, "shared_id", message, shared)


def compare_images(train: ImageReport, test: ImageReport) -> None:
    """Report test items with a training image: first those with its question too."""
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


def _report(
    findings: Findings, source: CheckedSource, kind: str, message: str, shared: Shared
) -> None:
    listed = shared.items[: findings.limit].tolist()
    names = item_ids(source, listed)
    for index, partner in zip(listed, shared.partners.tolist(), strict=False):
        findings.add(source.finding(kind, message.format(partner), index, names[index]))
    findings.count(kind, len(shared.items) - len(listed))


def _content_ids(ids: array[int]) -> tuple[Numbers, Numbers]:
    """Return the hashes of ids that may tell the content, and their positions."""
    hashes = _numbers(ids)
    positions = np.flatnonzero(hashes & np.uint64(1)).astype(np.uint64)
    return hashes[positions], positions


def _numbers(values: array[int]) -> Numbers:
    return np.frombuffer(values, dtype=np.uint64) if values else np.empty(0, np.uint64)
