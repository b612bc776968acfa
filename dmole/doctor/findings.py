"""What can be wrong with data, how bad it is, and a record of what was found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from dmole.data.formats import Split

Level = Literal["error", "warning"]

LEVELS: dict[str, Level] = {
    "file": "error",
    "malformed": "error",
    "empty_answer": "error",
    "duplicate_id": "error",
    "missing_image": "error",
    "image_path": "error",
    "unreadable_image": "error",
    "image_bomb": "error",
    "too_long": "error",
    "chat_template": "error",
    "will_be_cut": "warning",
    "shared_question": "warning",
    "shared_image": "warning",
    "shared_id": "warning",
    "one_answer": "warning",
    "split_size": "warning",
    "no_tokens": "warning",
}
"""The kinds of findings, in the order they are reported. Errors are what ``fit`` would stop at."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Args:
        kind: A key of `LEVELS`.
        message: What is wrong, in one line, without the place.
        task: Name of the task; None where it is about all.
        split: Which of the task's files.
        file: The file.
        item: Position of the item in the file, from 0; None where it is about the whole file.
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
        """Whether it is an error or a warning."""
        return LEVELS[self.kind]


@dataclass
class Findings:
    """Counts all findings and keeps the first of each kind, by item.

    Args:
        limit: Most findings kept of a kind.
    """

    limit: int
    counts: Counter[str] = field(default_factory=Counter)
    _kept: dict[str, list[Finding]] = field(default_factory=dict)

    def add(self, finding: Finding) -> None:
        """Count a finding, and keep it if there is room; items must come in order."""
        self.counts[finding.kind] += 1
        kept = self._kept.setdefault(finding.kind, [])
        if len(kept) < self.limit:
            kept.append(finding)

    def count(self, kind: str, number: int) -> None:
        """Count findings that are not kept."""
        if number:
            self.counts[kind] += number

    def merge(self, other: Findings) -> None:
        """Take in what another pass over the same file found."""
        self.counts.update(other.counts)
        for kind, theirs in other._kept.items():
            kept = [*self._kept.get(kind, ()), *theirs]
            kept.sort(key=lambda finding: -1 if finding.item is None else finding.item)
            self._kept[kind] = kept[: self.limit]

    def __iter__(self) -> Iterator[Finding]:
        """Yield the findings kept, by kind and item."""
        for kind in LEVELS:
            yield from self._kept.get(kind, ())


def count_level(counts: Iterable[Counter[str]], level: Level) -> int:
    """Return how many findings of a level were counted."""
    return sum(n for counter in counts for kind, n in counter.items() if LEVELS[kind] == level)
