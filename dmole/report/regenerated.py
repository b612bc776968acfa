"""Answers that were generated for a report, in the run folder: ``regenerated.jsonl``.

An answer is a function of the sample and the experts, so each line names the experts by a digest
of their files. Lines of other experts are not used. The file is no result: it has no digest in
``digests.json``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dmole.report.history import experts_of
from dmole.storage.files import write_lines
from dmole.storage.records import read_records

FILE = "regenerated.jsonl"
"""Name of the file in a run folder."""

_LARGEST = 1e6  # of a score in percent
_TEXTS = ("task", "id", "gate_set", "experts", "prediction")


@dataclass(frozen=True)
class Regenerated:
    """The answer of some experts to a test sample.

    Args:
        task: Task of the sample.
        id: Id of the sample.
        gate_set: The experts, joined by ``+``, or ``base``.
        experts: Digest of their files.
        prediction: The answer.
        score: Its score in percent.
    """

    task: str
    id: str
    gate_set: str
    experts: str
    prediction: str
    score: float


def experts_digest(names: Iterable[str], files: Mapping[str, str]) -> str:
    """Return a SHA-256 of the files of experts, in any order.

    Args:
        names: The experts.
        files: Digest of each file of the run, from ``digests.json``.
    """
    starts = tuple(f"experts/{name}/" for name in names)
    chosen = sorted(entry for entry in files.items() if entry[0].startswith(starts))
    return hashlib.sha256(json.dumps(chosen).encode()).hexdigest()


def write_regenerated(run: Path, answers: Iterable[Regenerated]) -> None:
    """Write the answers of a run."""
    write_lines(run / FILE, map(asdict, answers))


def read_regenerated(run: Path, files: Mapping[str, str]) -> list[Regenerated]:
    """Return the answers of the experts that a run has now; none without the file.

    Args:
        run: The run folder.
        files: Digest of each file of the run, from ``digests.json``.

    Raises:
        ValueError: If the file cannot be read or a line is not an answer; names file and line.
    """
    path = run / FILE
    if not path.exists():
        return []
    records = read_records(path, "answers")
    entries = records.entries(lambda each: True) or []
    answers = [_answer(entry, records.where(at)) for at, entry in enumerate(entries)]
    digests = {each: experts_digest(experts_of(each), files) for each in _gate_sets(answers)}
    return [answer for answer in answers if answer.experts == digests[answer.gate_set]]


def _gate_sets(answers: Iterable[Regenerated]) -> set[str]:
    return {answer.gate_set for answer in answers}


def _answer(entry: Any, where: str) -> Regenerated:
    content: dict[str, Any] = dict(entry) if isinstance(entry, Mapping) else {}
    texts: dict[str, Any] = {key: content.get(key) for key in _TEXTS}
    score: Any = content.get("score")
    number = isinstance(score, int | float) and abs(score) <= _LARGEST
    if not number or not all(isinstance(text, str) for text in texts.values()):
        raise ValueError(f"{where}: expected an answer with its task, id, experts and score")
    return Regenerated(**texts, score=float(score))
