"""Reads predictions and references in the formats of the benchmarks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dmole.data.shapes.answers import read_answers
from dmole.data.streaming import kind_of
from dmole.storage.predictions import TASK
from dmole.storage.records import Records, read_records

_METADATA = (
    *("question_id", "image", "size", "width", "height", "choices", "answer_index"),
    *("question_type", "answer_type", "precision"),
)
_ENTRY_KEYS = (
    *("id", "question_id", "prediction", "text", "question", "conversations"),
    *("answer", "answers", "answer_bbox", "bbox"),
)
"""Keys of an entry; the values of an object of questions by id are objects."""


@dataclass(frozen=True)
class Prediction:
    """One line of a predictions file.

    Args:
        id: Id of the sample.
        text: The predicted answer; None if there is none.
        references: Accepted answers, if the line contains them.
        metadata: Further facts that a metric may need.
        where: File and line, for messages.
        task: Task of the sample, in the predictions of a run; empty in other files.
    """

    id: str
    text: str | None
    references: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    where: str = ""
    task: str = ""


@dataclass(frozen=True)
class Target:
    """The accepted answers of one sample."""

    id: str
    references: tuple[str, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)


def read_predictions(path: Path) -> list[Prediction]:
    """Read a predictions file: JSON lines, or a JSON list of the same objects.

    A line has the keys of dmole (``id, prediction, references``) or of CoIN (``question_id, text,
    prompt``). A prediction of null is no answer.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If it is empty or malformed; the message names the line or the entry.
    """
    records = _records(path)
    entries = records.entries(lambda _: True) or []
    found = [_prediction(entry, records.where(n)) for n, entry in enumerate(entries)]
    if not found:
        raise ValueError(f"{path}: holds no predictions")
    return found


def predictions_of(answers: Sequence[Prediction], task: str | None) -> list[Prediction]:
    """Return the predictions of a task, in a file of a run that may hold several.

    Args:
        answers: All predictions of the file.
        task: The task; None if the file has one only, or names none.

    Raises:
        ValueError: If the file has no predictions of the task, or of several and none is chosen.
    """
    names = list(dict.fromkeys(answer.task for answer in answers))
    place = answers[0].where.rpartition(": ")[0]
    if task is None and len(names) > 1:
        raise ValueError(f"{place} has the predictions of {', '.join(names)}: choose by --of")
    if task is not None and task not in names:
        held = ", ".join(filter(None, names)) or "no named task"
        raise ValueError(f"{place} has the predictions of {held}, not of {task!r}")
    return [answer for answer in answers if task in (None, answer.task)]


def _prediction(entry: Any, where: str) -> Prediction:
    if not isinstance(entry, dict):
        raise ValueError(f"{where} is {kind_of(entry)}, not an object")
    number = next((entry[key] for key in ("id", "question_id") if entry.get(key) is not None), None)
    key = next((key for key in ("prediction", "text") if key in entry), None)
    if number is None or key is None:
        raise ValueError(
            f"{where} must have an 'id' or 'question_id' and a 'prediction' or 'text'; "
            f"its keys are {', '.join(entry) or 'none'}"
        )
    text = entry[key]
    if text is not None and not isinstance(text, str):
        raise ValueError(f"{where}: {key!r} must be text or null, not {kind_of(text)}")
    metadata = entry.get("metadata")
    metadata = dict(metadata) if isinstance(metadata, dict) else {}
    if isinstance(entry.get("prompt"), str):
        metadata.setdefault("question", entry["prompt"])
    references = entry.get("references", [])
    if not isinstance(references, list) or not all(isinstance(text, str) for text in references):
        raise ValueError(f"{where}: 'references' must be a list of strings")
    task = entry.get(TASK) if "gate_set" in entry else ""  # only a run writes both
    return Prediction(_id(number, where), text, tuple(references), metadata, where, str(task or ""))


def _id(number: Any, where: str) -> str:
    """Return an id as text; 7 and 7.0 are the id "7"."""
    if isinstance(number, float) and number.is_integer():
        number = int(number)
    if isinstance(number, bool) or not isinstance(number, str | int) or number == "":
        raise ValueError(f"{where}: an id must be text or a whole number, got {number!r}")
    return str(number)


def read_targets(path: Path) -> list[Target]:
    """Read a references file.

    It is one of: a test file (a JSON list or JSON lines of questions, or of conversations whose
    last turn is the answer); COCO captions (``images`` and ``annotations`` with captions); VQA
    annotations (``annotations`` or ``data`` with ten ``answers`` each); an object of questions by
    id, as for GQA (unbalanced ones are left out) and ScienceQA (only the test split if
    ``pid_splits.json`` is in the same folder).

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If it is empty or malformed, or two entries have the same id; the message
            names the entry.
    """
    targets = []
    seen: dict[str, str] = {}
    for number, (where, entry) in enumerate(_questions(path), start=1):
        target = _target(entry, where, number)
        if target.id in seen:
            raise ValueError(f"{where} repeats the id {target.id!r} of {seen[target.id]}")
        seen[target.id] = where.rpartition(": ")[2]
        targets.append(target)
    if not targets:
        raise ValueError(f"{path}: holds no references")
    return targets


def _target(entry: Any, where: str, number: int) -> Target:
    if not isinstance(entry, dict):
        raise ValueError(f"{where} is {kind_of(entry)}, not an object")
    given = (entry[key] for key in ("question_id", "id") if entry.get(key) is not None)
    key = _id(next(given, number - 1), where)
    try:
        references = _references(entry)
        if not references:
            raise ValueError("has no answer")
        return Target(key, references, _metadata(entry))
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"{where} (id {key!r}) is malformed: {error!r}") from error
    except ValueError as error:
        raise ValueError(f"{where} (id {key!r}): {error}") from error


def _references(entry: dict[str, Any]) -> tuple[str, ...]:
    if "conversations" in entry:
        if entry["conversations"][-1].get("from") in ("human", "user"):
            raise ValueError("the last turn of 'conversations' is not an answer")
        return (_text(entry["conversations"][-1]["value"]),)
    if "answers" in entry:
        return tuple(_text(answer) for answer in entry["answers"])
    if "bbox" in entry and "answer" not in entry:
        return read_answers({"answer_bbox": entry["bbox"]}, "answer_bbox")
    only_box = "answer" not in entry and "answer_bbox" in entry
    return read_answers(entry, "answer_bbox" if only_box else "answer")


def _metadata(entry: dict[str, Any]) -> dict[str, Any]:
    """Return the metadata for metrics: the keys `_METADATA` and the text of the question."""
    metadata = {key: entry[key] for key in _METADATA if entry.get(key) is not None}
    if isinstance(entry.get("answer"), int) and "choices" in entry:
        metadata.setdefault("answer_index", entry["answer"])
    question = entry.get("text", entry.get("question"))
    if "conversations" in entry:
        question = entry["conversations"][-2]["value"]  # the last turn is the answer
    return metadata | ({"question": question} if isinstance(question, str) else {})


def _text(answer: Any) -> str:
    """Return an answer, or that of a human's entry, as text."""
    value = answer["answer"] if isinstance(answer, dict) else answer
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not isinstance(value, str) and not (number and math.isfinite(value)):
        raise ValueError(f"an answer must be text or a number, not {kind_of(value)}")
    return str(value)


def _questions(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the entries of a references file as questions, each with its place."""
    records = _records(path)
    entries = records.entries(_is_entry)
    if entries is not None:
        yield from ((records.where(index), entry) for index, entry in enumerate(entries))
        return
    content = records.content
    within: Iterable[Any] = _by_id(path, content)
    if "images" in content and "annotations" in content:
        within = _captions(path, content)
    elif isinstance(content.get("annotations", content.get("data")), list):
        within = content.get("annotations", content.get("data"))
    yield from ((f"{path}: entry {number}", entry) for number, entry in enumerate(within, start=1))


def _is_entry(content: dict[str, Any]) -> bool:
    """Return whether an object is one question and not an object of questions."""
    if any(isinstance(content.get(key), list) for key in ("annotations", "data")):
        return False
    return any(key in content and not isinstance(content[key], dict) for key in _ENTRY_KEYS)


def _captions(path: Path, content: dict[str, Any]) -> Iterator[dict[str, Any]]:
    try:
        texts: dict[Any, list[str]] = {image["id"]: [] for image in content["images"]}
        for annotation in content["annotations"]:
            texts[annotation["image_id"]].append(_text(annotation["caption"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: no COCO captions: {error!r}") from error
    for number, captions in texts.items():
        yield {"question_id": number, "answers": captions}


def _by_id(path: Path, content: dict[str, Any]) -> Iterator[dict[str, Any]]:
    splits = path.parent / "pid_splits.json"
    names = list(content)
    has_choices = any(isinstance(each, dict) and "choices" in each for each in content.values())
    if has_choices and splits.is_file():
        listed = _records(splits).content
        listed = listed.get("test") if isinstance(listed, dict) else None
        if not isinstance(listed, list):
            raise ValueError(f"{splits}: must hold an object with the list 'test'")
        names = [str(name) for name in listed]
    for name in names:
        entry = content.get(name)
        if not isinstance(entry, dict):
            raise ValueError(f"{path}: holds no question with the id {name!r}")
        if entry.get("isBalanced") is not False:
            yield {"question_id": name, **entry}


def _records(path: Path) -> Records:
    if not path.exists():
        raise FileNotFoundError(f"file {path} does not exist")
    return read_records(path, limit=None)
