"""Turns one item of a data file into a sample: the conversation form and the question form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dmole.data.images import ImageRoot
from dmole.data.sample import IMAGE_PLACEHOLDER, Sample, Turn

Split = Literal["train", "test"]
Role = Literal["user", "assistant"]

_ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
}

_LONGEST = 200
"""Characters of a value that a message repeats."""


METADATA_KEYS = ("question_id", "image", "size", "width", "height", "choices", "answer_index")
"""What a metric may need to know of an item beside its answer."""


@dataclass(frozen=True)
class ItemReader:
    """Reads the items of one file.

    Args:
        split: Training samples end with the answer; test samples end with the question and hold
            the answers as references.
        images: Where the images are.
        prompt_suffix: Text put behind each question.
    """

    split: Split
    images: ImageRoot
    prompt_suffix: str = ""

    def read(self, item: Mapping[str, Any], index: int) -> Sample:
        """Return the sample of an item.

        Args:
            item: A LLaVA conversation (key ``conversations``) or a question (keys ``text`` or
                ``question``, and ``answer`` or ``answer_bbox``).
            index: Position in the file, the id of items that have none.

        Raises:
            ValueError: If the item is malformed.
            FileNotFoundError: If an image does not exist.
        """
        if "conversations" in item:
            turns, references = self._conversation(item["conversations"])
        elif "text" in item or "question" in item:
            turns, references = self._question(item)
        else:
            keys = _short(sorted(item))
            raise ValueError(f"has neither 'conversations' nor 'text': its keys are {keys}")
        _check_letters([sample_id(item, index), *(turn.text for turn in turns), *references])
        images = tuple(self.images.find(name) for name in image_names(item))
        return Sample(
            id=sample_id(item, index),
            turns=_place_images(self._add_suffix(turns), len(images)),
            images=images,
            references=references,
            metadata=read_metadata(item) if self.split == "test" else {},
        )

    def _conversation(self, value: Any) -> tuple[list[Turn], tuple[str, ...]]:
        if not isinstance(value, list) or not value:
            raise ValueError("'conversations' must be a list with at least one turn")
        turns = [_turn(entry, position) for position, entry in enumerate(value)]
        for position, turn in enumerate(turns):
            if turn.role != ("user", "assistant")[position % 2]:
                raise ValueError(
                    f"turn {position} is of the {turn.role}: user and assistant alternate"
                )
        if turns[-1].role != "assistant":
            raise ValueError("the last turn is of the user: there is no answer")
        if self.split == "train":
            return turns, ()
        return turns[:-1], (turns[-1].text,)

    def _question(self, item: Mapping[str, Any]) -> tuple[list[Turn], tuple[str, ...]]:
        text = item.get("text", item.get("question"))
        if not isinstance(text, str):
            raise ValueError(f"'text' must be a string, got {type(text).__name__}")
        question = Turn("user", text.replace(IMAGE_PLACEHOLDER, "").strip())
        answers = read_answers(item)
        if self.split == "train":
            answer = next(answer for answer in answers if answer.strip())
            return [question, Turn("assistant", answer)], ()
        return [question], answers

    def _add_suffix(self, turns: list[Turn]) -> list[Turn]:
        if not self.prompt_suffix:
            return turns
        answered = range(0, len(turns), 2) if self.split == "train" else [len(turns) - 1]
        return [
            Turn(turn.role, turn.text + self.prompt_suffix) if position in answered else turn
            for position, turn in enumerate(turns)
        ]


def sample_id(item: Mapping[str, Any], index: int) -> str:
    """Return the item's own id, or its position where it has none."""
    for key in ("id", "question_id"):
        if item.get(key) is not None:
            return str(item[key])
    return str(index)


def read_metadata(item: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a metric may need: the keys `METADATA_KEYS` and the text of the question."""
    metadata = {key: item[key] for key in METADATA_KEYS if item.get(key) is not None}
    if isinstance(item.get("answer"), int) and "choices" in item:
        metadata.setdefault("answer_index", item["answer"])
    question = item.get("text", item.get("question"))
    if "conversations" in item:
        question = item["conversations"][-2]["value"]  # the last turn is the answer
    if isinstance(question, str):
        metadata["question"] = question
    return metadata


def _turn(entry: Any, position: int) -> Turn:
    if not isinstance(entry, dict) or not {"from", "value"} <= entry.keys():
        raise ValueError(f"turn {position} must be an object with the keys 'from' and 'value'")
    role = _ROLES.get(entry["from"]) if isinstance(entry["from"], str) else None
    if role is None:
        raise ValueError(f"turn {position} has the unknown role {_short(entry['from'])}")
    if not isinstance(entry["value"], str):
        raise ValueError(f"turn {position}: 'value' must be a string")
    if role == "assistant" and not entry["value"].strip():
        raise ValueError(f"turn {position}: the answer is empty")
    if role == "assistant" and IMAGE_PLACEHOLDER in entry["value"]:
        raise ValueError(f"turn {position}: an answer cannot hold {IMAGE_PLACEHOLDER}")
    return Turn(role, entry["value"])


def read_answers(item: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the accepted answers of a question.

    A box given as numbers is written as text; the index of a choice becomes its letter.

    Raises:
        ValueError: If there is none or it is of another form.
    """
    value = item.get("answer", item.get("answer_bbox"))
    if value is None:
        raise ValueError("has no 'answer'")
    if "answer" not in item and isinstance(value, list):
        value = str(value)
    if isinstance(value, int) and not isinstance(value, bool) and item.get("choices"):
        value = _letter(value, item["choices"])
    answers = [value] if isinstance(value, str) else value
    if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
        raise ValueError(f"'answer' must be a string or a list of strings, got {_short(value)}")
    if not any(answer.strip() for answer in answers):  # one human of ten may have said nothing
        raise ValueError("the answer is empty")
    return tuple(answers)


def _letter(index: int, choices: Any) -> str:
    if not isinstance(choices, list) or not 0 <= index < len(choices) <= 26:
        shown = _short(choices)
        raise ValueError(f"'answer' {index} is not the index of one of the 'choices' {shown}")
    return chr(ord("A") + index)


def image_names(item: Mapping[str, Any]) -> Sequence[str]:
    """Return the paths of an item's images as they are written.

    Raises:
        ValueError: If they are no paths.
    """
    value = item.get("image")
    if value is None or value == "":
        return ()
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"'image' must be a path or a list of paths, got {_short(value)}")
    return names


def _check_letters(texts: Sequence[str]) -> None:
    """Refuse what cannot be written to a file: half of a character of two UTF-16 units."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            half = text[error.start]
            raise ValueError(f"text holds {half!r}, half of a character: {_short(text)}") from error


def _short(value: object) -> str:
    """Return the value as a message shows it: beginning and end where it is long."""
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 20]} ... {text[-15:]}"


def _place_images(turns: list[Turn], count: int) -> tuple[Turn, ...]:
    """Put missing placeholders before the first question; refuse any other mismatch."""
    found = sum(turn.text.count(IMAGE_PLACEHOLDER) for turn in turns)
    if found == 0 and count > 0:
        first = Turn("user", f"{IMAGE_PLACEHOLDER}\n" * count + turns[0].text)
        return (first, *turns[1:])
    if found != count:
        raise ValueError(f"has {count} images and {found} {IMAGE_PLACEHOLDER} placeholders")
    return tuple(turns)
