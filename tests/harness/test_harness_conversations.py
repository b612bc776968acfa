"""Conversations of lmms-eval become requests, and back."""

from __future__ import annotations

import doctest
from typing import Any

import pytest
from PIL import Image

import dmole.harness.conversations
import dmole.harness.task_functions
from dmole.data.sample import Turn
from dmole.harness.conversations import survives, to_messages, to_request


def user(*parts: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


def text(content: str) -> dict[str, Any]:
    return {"type": "text", "text": content}


def image(color: str) -> dict[str, Any]:
    return {"type": "image", "url": Image.new("RGB", (2, 2), color)}


def test_images_and_texts_keep_their_order_and_roles() -> None:
    messages = [
        {"role": "system", "content": [text("be brief")]},
        *user(image("red"), text("this?"), image("blue"), text("or that?")),
    ]
    request = to_request(messages, max_new_tokens=5, experts=["count"])
    assert [turn.text for turn in request.turns] == [
        "be brief",
        "<image>\nthis?\n<image>\nor that?",
    ]
    assert [source.load().getpixel((0, 0)) for source in request.images] == [
        (255, 0, 0),
        (0, 0, 255),
    ]
    assert (request.max_new_tokens, request.experts) == (5, ("count",))


def test_a_request_without_an_image_is_its_text() -> None:
    request = to_request(user(text("why?")), max_new_tokens=5)
    assert (request.turns, request.images) == ((Turn("user", "why?"),), ())


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"type": "video", "url": "a.mp4"}, "reads images and texts, not video"),
        ({"type": "audio", "url": "a.wav"}, "reads images and texts, not audio"),
        (text("look at <image>"), "a text holds <image>"),
    ],
)
def test_what_no_run_can_read_is_refused(part: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_request(user(part), max_new_tokens=5)


@pytest.mark.parametrize(
    "turns",
    [
        (Turn("user", "why?"),),
        (Turn("user", "<image>\n<image>\nwhich?"),),
        (Turn("user", "one:\n<image>\ntwo:\n<image>"),),
        (Turn("system", "s"), Turn("user", "a"), Turn("assistant", "b"), Turn("user", "<image>")),
    ],
)
def test_turns_survive_as_messages(turns: tuple[Turn, ...]) -> None:
    assert survives(turns)
    count = sum(turn.text.count("<image>") for turn in turns)
    messages = to_messages(turns, [Image.new("RGB", (1, 1))] * count)
    assert to_request(messages, max_new_tokens=1).turns == turns


def test_the_examples_of_the_docstrings_hold() -> None:
    for module in (dmole.harness.conversations, dmole.harness.task_functions):
        assert doctest.testmod(module).failed == 0
