"""The first items of a file have one shape, or a line says which do not."""

from __future__ import annotations

import re
from typing import Any

import pytest

from dmole.data.shapes import SHAPES, check_shape, recognise

TALK = {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}
MESSAGES = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
PARTS = {"messages": [{"role": "user", "content": [{"type": "image"}]}], "images": ["a.png"]}
QUESTION = {"question": "q", "answer": "a"}
QUERY = {"query": "q", "response": "a"}
COMPLETION: dict[str, Any] = {"prompt": [], "completion": []}
BOTH = {"question": "q", "prompt": "p", "answer": "a"}


@pytest.mark.parametrize(
    ("items", "name"),
    [
        ([TALK], "conversations"),
        ([TALK | {"image": "a"}, TALK | {"images": ["a"]}, TALK], "conversations"),
        ([TALK | {"question": "q", "text": "t"}], "conversations"),
        ([MESSAGES, PARTS], "messages"),
        ([COMPLETION], "prompt-completion"),
        ([QUERY, {"prompt": "p", "completion": "c"}], "query"),
        ([{"question": "q", "solution": "a"}], "query"),
        ([QUESTION, QUESTION | {"image": {"bytes": b"x"}}, {"text": "t"}], "question"),
        ([QUESTION, QUESTION | {"history": [["q", "a"]]}], "question"),
        ([BOTH, QUESTION], "question"),
        ([QUERY | {"text": "t"}, QUERY], "query"),
    ],
)
def test_items_of_one_shape_are_recognised(items: list[dict[str, Any]], name: str) -> None:
    assert recognise(items).name == name
    assert SHAPES[name].name == name


def test_an_item_without_a_shape_is_named() -> None:
    message = (
        "item 1 (id 'x'): has neither 'conversations' nor 'text' nor the keys of another shape "
        "(messages, prompt-completion, query): its keys are ['id', 'z']"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        recognise([TALK, {"z": 1, "id": "x"}])


def test_items_of_two_shapes_are_refused_with_position_and_shapes() -> None:
    message = (
        "item 2 (id '2') has the shape 'question', but the items before it have 'conversations': "
        "a file holds one shape"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        recognise([TALK, TALK, QUESTION, MESSAGES])


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (
            [BOTH],
            "item 0 (id '0') has more than one shape: 'query' ('query', 'prompt', 'problem' or "
            "'question', and 'response', 'solution', 'completion' or 'answer'; 'history' as "
            "pairs) and 'question' ('text' or 'question', and 'answer', 'answers' or "
            "'answer_bbox')",
        ),
        ([BOTH | {"id": 4}] * 3, "items 0 to 2 have more than one shape: 'query' ("),
        ([TALK | MESSAGES], "item 0 (id '0') has more than one shape: 'conversations' ("),
    ],
)
def test_items_of_more_than_one_shape_are_refused(
    items: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        recognise(items)


def test_no_items_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^there are no items to determine a shape from$"):
        recognise([])


def test_a_later_item_of_another_shape_is_refused() -> None:
    shape = recognise([TALK])
    check_shape(TALK, shape)
    with pytest.raises(
        ValueError, match=r"^has the shape 'messages', but the first items have 'conversations'$"
    ):
        check_shape(MESSAGES, shape)
    with pytest.raises(ValueError, match=r"^has neither 'conversations' nor 'text'"):
        check_shape({}, shape)
