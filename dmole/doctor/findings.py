"""Kinds of findings in data, their levels, and a collection of findings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from dmole.data.formats import Split

Level = Literal["error", "warning", "note"]

LEVELS: dict[str, Level] = {
    "prompts": "error",
    "file": "error",
    "malformed": "error",
    "empty_answer": "error",
    "duplicate_id": "error",
    "missing_image": "error",
    "image_path": "error",
    "unreadable_image": "error",
    "image_bomb": "error",
    "too_few_samples": "error",
    "too_long": "error",
    "chat_template": "error",
    "refused_sample": "error",
    "metric": "error",
    "will_be_cut": "warning",
    "beyond_context": "warning",
    "unreachable_reference": "warning",
    "unread_keys": "warning",
    "image_transparency": "warning",
    "image_orientation": "warning",
    "image_frames": "warning",
    "image_depth": "warning",
    "image_colors": "warning",
    "image_blank": "warning",
    "shared_question": "warning",
    "shared_image": "warning",
    "shared_id": "warning",
    "one_answer": "warning",
    "split_size": "warning",
    "no_tokens": "warning",
    "shared_answers": "note",
}
"""The kinds of findings, in the order of the report. An error makes ``fit`` fail.

A note is no fault of the data, but needed to read the figures of a run.
"""


@dataclass(frozen=True)
class Finding:
    """One error, warning or note.

    Args:
        kind: A key of `LEVELS`.
        message: Description in one line, without file and item.
        task: Name of the task; None if the finding concerns all tasks.
        split: Split of the task.
        file: The file.
        item: Position of the item in the file, from 0; None if it concerns the whole file.
        id: Id of the item.
    """

    kind: str
    message: str
    task: str | None = None
    split: Split | None = None
    file: str | None = None
    item: int | None = None
    id: str | None = None

    @property
    def level(self) -> Level:
        """Level of the finding."""
        return LEVELS[self.kind]


@dataclass
class Findings:
    """Counts all findings and stores the first of each kind, by item.

    Args:
        limit: Maximum number of findings stored per kind.
    """

    limit: int
    counts: Counter[str] = field(default_factory=Counter)
    _kept: dict[str, list[Finding]] = field(default_factory=dict)

    def add(self, finding: Finding) -> None:
        """Count a finding and store it below the limit; items must arrive in order."""
        self.counts[finding.kind] += 1
        kept = self._kept.setdefault(finding.kind, [])
        if len(kept) < self.limit:
            kept.append(finding)

    def count(self, kind: str, number: int) -> None:
        """Count findings without storing them."""
        if number:
            self.counts[kind] += number

    def merge(self, other: Findings) -> None:
        """Add the findings of another pass over the same file."""
        self.counts.update(other.counts)
        for kind, findings in other._kept.items():
            kept = [*self._kept.get(kind, ()), *findings]
            kept.sort(key=lambda finding: -1 if finding.item is None else finding.item)
            self._kept[kind] = kept[: self.limit]

    def __iter__(self) -> Iterator[Finding]:
        """Yield the stored findings, by kind and item."""
        for kind in LEVELS:
            yield from self._kept.get(kind, ())


def count_level(counts: Iterable[Counter[str]], level: Level) -> int:
    """Return the number of findings of a level."""
    return sum(n for counter in counts for kind, n in counter.items() if LEVELS[kind] == level)
