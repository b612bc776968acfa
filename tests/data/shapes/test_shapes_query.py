"""Queries with their responses and history: the conversation of each, or the message."""

from __future__ import annotations

from typing import Any

import pytest

from dmole.data.sample import Turn
from dmole.data.shapes import SHAPES, Conversation

SHAPE = SHAPES["query"]


def said(*texts: str) -> tuple[Turn, ...]:
    return tuple(Turn("assistant" if i % 2 else "user", text) for i, text in enumerate(texts))


GOOD: dict[str, tuple[dict[str, Any], Conversation]] = {
    **{
        f"{query} and {response}": (
            {query: "q", response: "a"},
            Conversation(said("q", "a"), metadata={"question": "q"}),
        )
        for query in ("query", "prompt", "problem")
        for response in ("response", "answer", "solution", "completion")
    },
    "question and solution": (
        {"question": "q", "solution": "a", "history": None},
        Conversation(said("q", "a"), metadata={"question": "q"}),
    ),
    "history": (
        {
            "query": "and <image> now?",
            "response": "no",
            "history": [["<image>hi", "hello"], ("so?", "yes")],
            "images": ["a.png", "b.png"],
            "system": "s",
        },
        Conversation(
            (
                Turn("system", "s"),
                *said("<image>hi", "hello", "so?", "yes", "and <image> now?", "no"),
            ),
            ("a.png", "b.png"),
            metadata={"images": ["a.png", "b.png"], "question": "and <image> now?"},
        ),
    ),
    "one image before the first question": (
        {"query": "so?", "response": "yes", "history": [["hi", "hello"]], "image": "a.png"},
        Conversation(
            said("<image>\nhi", "hello", "so?", "yes"),
            ("a.png",),
            metadata={"image": "a.png", "question": "so?"},
        ),
    ),
    "a list of answers": (
        {"id": 3, "problem": "q", "answer": ["", "a", "b"], "level": 2},
        Conversation(said("q", "a"), (), ("", "a", "b"), "3", {"level": 2, "question": "q"}),
    ),
    "a choice": (
        {"query": "q", "answer": 1, "choices": ["x", "y"]},
        Conversation(said("q", "B"), metadata={"choices": ["x", "y"], "question": "q"}),
    ),
    "reasoning stays in the answer": (
        {"problem": "q", "solution": "<think>hm</think> a", "image": {"bytes": b"x"}},
        Conversation(
            said("<image>\nq", "<think>hm</think> a"),
            ({"bytes": b"x"},),
            metadata={"question": "q"},
        ),
    ),
    "boxes": (
        {
            "query": "<ref-object>?",
            "response": "<bbox>",
            "objects": {"ref": ["x"], "bbox": [[1, 2]]},
        },
        Conversation(
            said("x?", "[1, 2]"),
            metadata={"objects": {"ref": ["x"], "bbox": [[1, 2]]}, "question": "x?"},
        ),
    ),
}


@pytest.mark.parametrize(("item", "expected"), GOOD.values(), ids=GOOD)
def test_a_query_is_read_as_written(item: dict[str, Any], expected: Conversation) -> None:
    assert [name for name, shape in SHAPES.items() if shape.matches(item)] == ["query"]
    assert SHAPE.read(item) == expected


BAD: list[tuple[dict[str, Any], str]] = [
    ({"query": 3, "response": "a"}, "'query' must be a string, got int"),
    (
        {"query": None, "response": "a"},
        "has no 'query' or 'prompt' or 'problem' or 'question' with content",
    ),
    (
        {"query": "q", "response": None},
        "has no 'response' or 'solution' or 'completion' or 'answer' with content",
    ),
    (
        {"query": "q", "prompt": "q", "response": "a"},
        "has both 'query' and 'prompt': one of them is expected",
    ),
    (
        {"problem": "q", "solution": "s", "answer": "a"},
        "has both 'solution' and 'answer': one of them is expected",
    ),
    ({"query": "q", "response": " "}, "the answer is empty"),
    ({"query": "q", "response": 3}, "'response' must be a string or a list of strings, got 3"),
    ({"query": "q", "response": "<image>"}, "an answer cannot hold <image>"),
    ({"query": "<image>q", "response": "a"}, "has 0 images and 1 <image> placeholders"),
    (
        {"query": "q", "response": "a", "history": "x"},
        "'history' must be a list of pairs of query and response",
    ),
    (
        {"query": "q", "response": "a", "history": [["x"]]},
        "'history' 0 must be a pair of query and response",
    ),
    (
        {"query": "q", "response": "a", "history": [["x", "y"], ["x", None]]},
        "turn 3: 'history' must be a string",
    ),
    ({"query": "q", "response": "a", "history": [["x", ""]]}, "turn 1: the answer is empty"),
    ({"prompt": "q", "chosen": "a", "rejected": "b"}, "has 'chosen', which is not supported"),
    ({"query": "q", "response": "a", "videos": ["x"]}, "has 'videos', which is not supported"),
    (
        {"query": "q", "response": "a", "label": True},
        "has a 'label' of true or false, and preferences are not supported",
    ),
]


@pytest.mark.parametrize(("item", "message"), BAD)
def test_a_bad_query_is_refused_in_one_line(item: dict[str, Any], message: str) -> None:
    assert SHAPE.matches(item)
    with pytest.raises(ValueError, match=r"^[^\n]*$") as caught:
        SHAPE.read(item)
    assert str(caught.value) == message
