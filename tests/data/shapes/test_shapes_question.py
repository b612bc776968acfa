"""Questions of evaluation files and rows of VQA data: the conversation of each, or the message."""

from __future__ import annotations

from typing import Any

import pytest

from dmole.data.sample import Turn
from dmole.data.shapes import SHAPES, Conversation

SHAPE = SHAPES["question"]
TEN = [*["red"] * 7, "", "crimson", " "]


def said(question: str, answer: str) -> tuple[Turn, ...]:
    return (Turn("user", question), Turn("assistant", answer))


GOOD: dict[str, tuple[dict[str, Any], Conversation]] = {
    "text": (
        {"question_id": 5, "text": "what?\n<image>", "answer": "red", "image": "a.png"},
        Conversation(
            said("<image>\nwhat?", "red"),
            ("a.png",),
            id="5",
            metadata={"question_id": 5, "image": "a.png", "question": "what?\n<image>"},
        ),
    ),
    "question": (
        {"id": 1, "question": "what?", "answer": "red", "category": "color", "size": [4, 3]},
        Conversation(
            said("what?", "red"),
            id="1",
            metadata={"category": "color", "size": [4, 3], "question": "what?"},
        ),
    ),
    "text before question": (
        {"text": "full?", "question": "bare?", "answer": "red"},
        Conversation(said("full?", "red"), metadata={"question": "full?"}),
    ),
    "ten answers": (
        {"question": "what?", "answer": ["", *TEN]},
        Conversation(said("what?", "red"), references=("", *TEN), metadata={"question": "what?"}),
    ),
    "answer before answers": (
        {"question": "what?", "answer": "red", "answers": ["red", "blue"]},
        Conversation(
            said("what?", "red"), metadata={"answers": ["red", "blue"], "question": "what?"}
        ),
    ),
    "a box as text": (
        {"text": "where?", "answer_bbox": "[0.1, 0.2, 0.3, 0.4]", "size": [4, 4]},
        Conversation(
            said("where?", "[0.1, 0.2, 0.3, 0.4]"),
            metadata={
                "answer_bbox": "[0.1, 0.2, 0.3, 0.4]",
                "size": [4, 4],
                "question": "where?",
            },
        ),
    ),
    "a box as numbers": (
        {"text": "where?", "answer_bbox": [0.1, 1e3], "width": 4, "height": 3},
        Conversation(
            said("where?", "[0.1, 1000.0]"),
            metadata={
                "answer_bbox": [0.1, 1e3],
                "width": 4,
                "height": 3,
                "question": "where?",
            },
        ),
    ),
    "the index of a choice": (
        {"question": "which?", "answer": 1, "choices": ["x", "y"]},
        Conversation(
            said("which?", "B"),
            metadata={"choices": ["x", "y"], "answer_index": 1, "question": "which?"},
        ),
    ),
    "a row with the content of its image": (
        {
            "question": "what?",
            "answers": ["red", "crimson"],
            "image": {"bytes": b"x", "path": "a.png"},
            "hint": None,
            "label": True,
            "weight": 3,
        },
        Conversation(
            said("<image>\nwhat?", "red"),
            ({"bytes": b"x", "path": "a.png"},),
            ("red", "crimson"),
            metadata={"label": True, "weight": 3, "question": "what?"},
        ),
    ),
    "a row with several images": (
        {"question": "what?", "answer": "red", "images": [{"bytes": b"x"}, {"path": "b.png"}]},
        Conversation(
            said("<image>\n<image>\nwhat?", "red"),
            ({"bytes": b"x"}, {"path": "b.png"}),
            metadata={"question": "what?"},
        ),
    ),
    "a row without an image": (
        {"question": "what?", "answer": "red", "image": None},
        Conversation(said("what?", "red"), metadata={"question": "what?"}),
    ),
    "answers as objects": (
        {"question": "what?", "answers": [{"answer": "red", "answer_id": 1}, {"answer": "blue"}]},
        Conversation(
            said("what?", "red"), references=("red", "blue"), metadata={"question": "what?"}
        ),
    ),
    "system": (
        {"question": "what?", "answer": "red", "system": "s", "image": "a.png"},
        Conversation(
            (Turn("system", "s"), *said("<image>\nwhat?", "red")),
            ("a.png",),
            metadata={"image": "a.png", "question": "what?"},
        ),
    ),
    "history": (
        {"question": "<image>so?", "answer": ["yes"], "history": [["q", "a"]], "image": "a.png"},
        Conversation(
            (*said("q", "a"), *said("<image>so?", "yes")),
            ("a.png",),
            ("yes",),
            metadata={"image": "a.png", "question": "<image>so?"},
        ),
    ),
    "objects to be written": (
        {"text": "<ref-object>?", "answer": "<bbox>", "objects": {"ref": ["x"], "bbox": [[1, 2]]}},
        Conversation(
            said("x?", "[1, 2]"),
            metadata={"objects": {"ref": ["x"], "bbox": [[1, 2]]}, "question": "x?"},
        ),
    ),
    "objects of the picture": (
        {"text": "x?", "answer": "y", "objects": {"bbox": [[1, 2, 3, 4]]}},
        Conversation(
            said("x?", "y"),
            metadata={"objects": {"bbox": [[1, 2, 3, 4]]}, "question": "x?"},
        ),
    ),
}


@pytest.mark.parametrize(("item", "expected"), GOOD.values(), ids=GOOD)
def test_a_question_is_read_as_written(item: dict[str, Any], expected: Conversation) -> None:
    assert [name for name, shape in SHAPES.items() if shape.matches(item)] == ["question"]
    assert SHAPE.read(item) == expected


BAD: list[tuple[dict[str, Any], str]] = [
    ({"text": 3, "answer": "a"}, "'text' must be a string, got int"),
    ({"question": None, "answer": "a"}, "'text' must be a string, got NoneType"),
    ({"text": "q"}, "has no 'answer'"),
    ({"text": "q", "answer": None}, "has no 'answer'"),
    ({"text": "q", "answer": ""}, "the answer is empty"),
    ({"text": "q", "answer": []}, "the answer is empty"),
    ({"text": "q", "answers": ["", " "]}, "the answer is empty"),
    ({"text": "q", "answer": 3}, "'answer' must be a string or a list of strings, got 3"),
    ({"text": "q", "answer": True}, "'answer' must be a string or a list of strings, got True"),
    ({"text": "q", "answers": [{}]}, "'answers' must be a string or a list of strings, got [{}]"),
    (
        {"text": "q", "answer": 2, "choices": ["x", "y"]},
        "'answer' 2 is not the index of one of the 'choices' ['x', 'y']",
    ),
    (
        {"text": "q", "answer": 0, "choices": "xy"},
        "'answer' 0 is not the index of one of the 'choices' 'xy'",
    ),
    ({"text": "q", "answer": ["a", "<image>"]}, "an answer cannot hold <image>"),
    ({"text": "q", "answer": "a", "image": 3}, "'image' must be a path or a list of paths, got 3"),
    (
        {"text": "q", "answer": ["a", "\udfff"]},
        "text holds '\\udfff', half of a character: '\\udfff'",
    ),
    (
        {"text": "q", "answer": "a", "image_2": b"x"},
        "has bytes under 'image_2', a key that is not read",
    ),
    ({"text": "q", "answer": "a", "video": "x.mp4"}, "has 'video', which is not supported"),
    ({"question": "q", "answer": "a", "rejected": "b"}, "has 'rejected', which is not supported"),
    (
        {"question": "q", "answer": "a", "loss_scale": 2},
        "has 'loss_scale', which is not supported: all answers weigh the same",
    ),
]


@pytest.mark.parametrize(("item", "message"), BAD)
def test_a_bad_question_is_refused_in_one_line(item: dict[str, Any], message: str) -> None:
    assert SHAPE.matches(item)
    with pytest.raises(ValueError, match=r"^[^\n]*$") as caught:
        SHAPE.read(item)
    assert str(caught.value) == message
