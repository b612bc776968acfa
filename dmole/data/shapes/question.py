"""One question and its answers: evaluation files, and rows of a VQA data set."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from dmole.data.sample import IMAGE_PLACEHOLDER, Turn
from dmole.data.shapes.answers import choice_keys, is_list_of_answers, read_answers
from dmole.data.shapes.chat import read_id, read_metadata
from dmole.data.shapes.checks import add_system, check_letters, has_content, refuse_unsupported
from dmole.data.shapes.objects import has_marks
from dmole.data.shapes.pictures import read_images
from dmole.data.shapes.query import is_query_by_question, read_query
from dmole.data.shapes.shape import Conversation

ANSWER_KEYS = ("answer", "answers", "answer_bbox")


class QuestionShape:
    """A question with its accepted answers, a box or the index of a choice.

    Rows that embed images have this shape too, like rows without an image.
    """

    name = "question"
    keys = "'text' or 'question', and 'answer', 'answers' or 'answer_bbox'"

    def matches(self, item: Mapping[str, Any]) -> bool:
        """Return whether the item has a question and no keys of another shape."""
        if "conversations" in item or is_query_by_question(item):
            return False
        return "text" in item or "question" in item

    def reads(self, item: Mapping[str, Any]) -> Collection[str]:
        """Return the keys of the question, its answers, and a history or objects in its text."""
        query, key = _keys(item)
        text = item[query]
        further = ["history"] if has_content(item.get("history")) else []
        if has_marks(item, [text, *read_answers(item, key)]):
            further.append("objects")
        return query, key, *choice_keys(item, key), *further

    def read(self, item: Mapping[str, Any]) -> Conversation:
        """Return the conversation of an item: a question and the first answer that is not empty.

        Placeholders at the beginning or end of the question move to its beginning; those within it
        stay in place. Without placeholders, the images precede the question. An item with a
        history, or with objects to write into the text, is read as a query instead.

        Raises:
            ValueError: If the item is malformed or holds what is not supported.
        """
        refuse_unsupported(item, chat=False)
        query, key = _keys(item)
        text = item.get(query)
        if not isinstance(text, str):
            raise ValueError(f"'text' must be a string, got {type(text).__name__}")
        answers = read_answers(item, key)
        if has_content(item.get("history")) or has_marks(item, [text, *answers]):
            return read_query(item, query, key)
        images = read_images(item)
        question = Turn("user", _place(text, len(images)))
        answer = next(answer for answer in answers if answer.strip())
        turns = add_system(item, [question, Turn("assistant", answer)])
        name = read_id(item)
        check_letters([name or "", *(turn.text for turn in turns), *answers])
        return Conversation(
            tuple(turns),
            images,
            answers if is_list_of_answers(item, key) else (),
            name,
            _metadata(item, key, text),
        )


def _keys(item: Mapping[str, Any]) -> tuple[str, str]:
    """Return the keys of the question and of its answers."""
    query = "question" if item.get("text") is None and "question" in item else "text"
    return query, next((key for key in ANSWER_KEYS if item.get(key) is not None), "answer")


def split_placeholders(text: str) -> tuple[int, str]:
    """Return the number of placeholders at both ends of a question, and the text between them.

    Example:
        >>> split_placeholders("<image> Is <image> left of it? <image>")
        (2, 'Is <image> left of it?')
    """
    left, rest = _cut(text, str.startswith, str.removeprefix)
    right, rest = _cut(rest, str.endswith, str.removesuffix)
    return left + right, rest


def _cut(
    text: str, has: Callable[[str, str], bool], remove: Callable[[str, str], str]
) -> tuple[int, str]:
    text, count = text.strip(), 0
    while has(text, IMAGE_PLACEHOLDER):
        text, count = remove(text, IMAGE_PLACEHOLDER).strip(), count + 1
    return count, text


def _place(text: str, images: int) -> str:
    """Return a question with a placeholder for each image."""
    outside, question = split_placeholders(text)
    count = outside + question.count(IMAGE_PLACEHOLDER)
    if count not in (0, images):
        raise ValueError(f"has {images} images and {count} {IMAGE_PLACEHOLDER} placeholders")
    return f"{IMAGE_PLACEHOLDER}\n" * (outside if count else images) + question


def _metadata(item: Mapping[str, Any], key: str, question: str) -> dict[str, Any]:
    used = {"text", "system"} | ({key} if key != "answer_bbox" else set())
    metadata = read_metadata(item, used, question)
    if isinstance(item.get("answer"), int) and "choices" in item:
        metadata.setdefault("answer_index", item["answer"])
    return metadata
