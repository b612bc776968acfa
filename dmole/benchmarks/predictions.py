"""Reads predictions and references in the formats of the benchmarks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dmole.data.shapes.answers import read_answers
from dmole.storage.files import parse_json, read_text

_METADATA = ("question_id", "image", "size", "width", "height", "choices", "answer_index")


@dataclass(frozen=True)
class Prediction:
    """One line of a predictions file.

    Args:
        id: Id of the sample.
        text: The predicted answer.
        references: Accepted answers, if the line contains them.
        metadata: Further facts that a metric may need.
    """

    id: str
    text: str
    references: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Target:
    """The accepted answers of one sample."""

    id: str
    references: tuple[str, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)


def read_predictions(path: Path) -> list[Prediction]:
    """Read a predictions file: JSON lines, or a JSON list of the same objects.

    A line has the keys of dmole (``id, prediction, references``) or of CoIN (``question_id, text,
    prompt``).

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If it is empty or malformed; the message names the entry.
    """
    predictions = [
        _prediction(entry, f"{path}: entry {n}") for n, entry in enumerate(_entries(path), 1)
    ]
    if not predictions:
        raise ValueError(f"{path}: holds no predictions")
    return predictions


def _prediction(entry: Any, where: str) -> Prediction:
    if not isinstance(entry, dict):
        raise ValueError(f"{where} is not an object")
    number = entry.get("id", entry.get("question_id"))
    text = entry.get("prediction", entry.get("text"))
    if number is None or not isinstance(text, str):
        raise ValueError(
            f"{where} must have an 'id' or 'question_id' and a 'prediction' or 'text'; "
            f"its keys are {', '.join(entry) or 'none'}"
        )
    metadata = entry.get("metadata")
    metadata = dict(metadata) if isinstance(metadata, dict) else {}
    if isinstance(entry.get("prompt"), str):
        metadata.setdefault("question", entry["prompt"])
    references = entry.get("references", [])
    if not isinstance(references, list) or not all(isinstance(text, str) for text in references):
        raise ValueError(f"{where}: 'references' must be a list of strings")
    return Prediction(str(number), text, tuple(references), metadata)


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
    seen: set[str] = set()
    for number, entry in enumerate(_questions(path), start=1):
        target = _target(entry, f"{path}: entry {number}", number)
        if target.id in seen:
            raise ValueError(f"{path}: entry {number} repeats the id {target.id!r}")
        seen.add(target.id)
        targets.append(target)
    if not targets:
        raise ValueError(f"{path}: holds no references")
    return targets


def _target(entry: Any, where: str, number: int) -> Target:
    if not isinstance(entry, dict):
        raise ValueError(f"{where} is not an object")
    key = entry.get("question_id", entry.get("id", number - 1))
    try:
        references = _references(entry)
        if not references:
            raise ValueError("has no answer")
        return Target(str(key), references, _metadata(entry))
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"{where} (id {key!r}) is malformed: {error!r}") from error
    except ValueError as error:
        raise ValueError(f"{where} (id {key!r}): {error}") from error


def _references(entry: dict[str, Any]) -> tuple[str, ...]:
    if "conversations" in entry:
        return (str(entry["conversations"][-1]["value"]),)
    if "answers" in entry:
        return tuple(_text(answer) for answer in entry["answers"])
    if "bbox" in entry and "answer" not in entry:
        return (str(entry["bbox"]),)
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
    return str(answer["answer"] if isinstance(answer, dict) else answer)


def _questions(path: Path) -> Iterator[Any]:
    """Yield the entries of a references file as questions."""
    content = _content(path)
    if isinstance(content, list):
        yield from content
    elif "images" in content and "annotations" in content:
        yield from _captions(path, content)
    elif isinstance(content.get("annotations", content.get("data")), list):
        yield from content.get("annotations", content.get("data"))
    else:
        yield from _by_id(path, content)


def _captions(path: Path, content: dict[str, Any]) -> Iterator[dict[str, Any]]:
    try:
        texts: dict[Any, list[str]] = {image["id"]: [] for image in content["images"]}
        for annotation in content["annotations"]:
            texts[annotation["image_id"]].append(str(annotation["caption"]))
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: no COCO captions: {error!r}") from error
    for number, captions in texts.items():
        yield {"question_id": number, "answers": captions}


def _by_id(path: Path, content: dict[str, Any]) -> Iterator[dict[str, Any]]:
    splits = path.parent / "pid_splits.json"
    names = list(content)
    has_choices = any(isinstance(each, dict) and "choices" in each for each in content.values())
    if has_choices and splits.is_file():
        names = [str(name) for name in _content(splits).get("test", [])]
    for name in names:
        entry = content.get(name)
        if not isinstance(entry, dict):
            raise ValueError(f"{path}: holds no question with the id {name!r}")
        if entry.get("isBalanced") is not False:
            yield {"question_id": name, **entry}


def _entries(path: Path) -> list[Any]:
    content = _content(path)
    return content if isinstance(content, list) else [content]


def _content(path: Path) -> Any:
    """Return the content of a file of JSON or JSON lines, the latter as a list."""
    if not path.is_file():
        raise FileNotFoundError(f"file {path} does not exist")
    text = read_text(path, limit=None)
    try:
        return parse_json(text)
    except ValueError:
        lines = [(n, line) for n, line in enumerate(text.split("\n"), start=1) if line.strip()]
    try:
        return [parse_json(line, line=number) for number, line in lines]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
