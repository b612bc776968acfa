"""Messages of LLaMA-Factory, ms-swift, OpenAI and TRL: the conversation of each, or the message."""

from __future__ import annotations

from typing import Any

import pytest

from dmole.data.sample import Turn
from dmole.data.shapes import SHAPES, Conversation

URI = "data:image/png;base64,AAAA"


def user(content: Any, **keys: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **keys}


def answer(content: Any = "a", **keys: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **keys}


def text(value: Any, **keys: Any) -> dict[str, Any]:
    return {"type": "text", "text": value, **keys}


def url(value: Any, **keys: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": value, **keys}}


IMAGE = {"type": "image"}

GOOD: dict[str, tuple[dict[str, Any], Conversation]] = {
    "llama-factory": (
        {"messages": [user("<image>Who?"), answer()], "images": ["p.jpg"]},
        Conversation(
            (Turn("user", "<image>Who?"), Turn("assistant", "a")),
            ("p.jpg",),
            metadata={"images": ["p.jpg"], "question": "<image>Who?"},
        ),
    ),
    "ms-swift": (
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                user("<image>Where is <ref-object>?"),
                answer("<bbox>", loss=True),
            ],
            "images": [URI],
            "objects": {"ref": ["the cup"], "bbox": [[0.1, 0.2, 0.3, 1]], "bbox_type": "norm1"},
        },
        Conversation(
            (
                Turn("system", "Be brief."),
                Turn("user", "<image>Where is the cup?"),
                Turn("assistant", "[0.1, 0.2, 0.3, 1]"),
            ),
            (URI,),
            metadata={
                "objects": {
                    "ref": ["the cup"],
                    "bbox": [[0.1, 0.2, 0.3, 1]],
                    "bbox_type": "norm1",
                },
                "question": "<image>Where is the cup?",
            },
        ),
    ),
    "openai": (
        {
            "id": "x",
            "messages": [
                {"role": "developer", "content": [text("Be "), text("brief.")]},
                user([url(URI, detail="auto"), text("who?"), url("b.png")]),
                answer(),
                user("why?"),
                answer([text("so")]),
            ],
        },
        Conversation(
            (
                Turn("system", "Be brief."),
                Turn("user", "<image>\nwho?\n<image>"),
                Turn("assistant", "a"),
                Turn("user", "why?"),
                Turn("assistant", "so"),
            ),
            (URI, "b.png"),
            id="x",
            metadata={"question": "why?"},
        ),
    ),
    "trl": (
        {
            "messages": [user([IMAGE, IMAGE, text("which?", index=None)]), answer([text("a")])],
            "images": [{"bytes": b"x", "path": None}, {"bytes": None, "path": "b.png"}],
        },
        Conversation(
            (Turn("user", "<image>\n<image>\nwhich?"), Turn("assistant", "a")),
            ({"bytes": b"x", "path": None}, {"bytes": None, "path": "b.png"}),
            metadata={"question": "<image>\n<image>\nwhich?"},
        ),
    ),
    "text only": (
        {"messages": [user([text("q")]), answer([text("a")])], "images": []},
        Conversation((Turn("user", "q"), Turn("assistant", "a")), metadata={"question": "q"}),
    ),
    "images inside and beside the parts": (
        {
            "messages": [
                user([{"type": "image", "image": "first.png"}, text("", note=1), IMAGE]),
                answer(),
                user("<image>"),
                answer(name="bot"),
            ],
            "images": ["second.png", "third.png"],
        },
        Conversation(
            (
                Turn("user", "<image>\n<image>"),
                Turn("assistant", "a"),
                Turn("user", "<image>"),
                Turn("assistant", "a"),
            ),
            ("first.png", "second.png", "third.png"),
            metadata={
                "images": ["second.png", "third.png"],
                "question": "<image>",
                "turn_keys": [
                    {"turn": 0, "parts": [{"part": 1, "note": 1}]},
                    {"turn": 3, "name": "bot"},
                ],
            },
        ),
    ),
    "parts of every spelling": (
        {
            "messages": [
                user(
                    [
                        {"type": "image", "image": b"x"},
                        {"type": "image", "image": {"bytes": b"y"}},
                        {"type": "image", "url": "http://x/a.png"},
                        {"type": "image", "path": "c.png"},
                        {"type": "image", "bytes": b"z", "path": "d.png"},
                        {"type": "image_url", "image_url": "e.png", "text": None},
                    ]
                ),
                answer(),
            ]
        },
        Conversation(
            (Turn("user", "\n".join(["<image>"] * 6)), Turn("assistant", "a")),
            (
                b"x",
                {"bytes": b"y"},
                "http://x/a.png",
                "c.png",
                {"bytes": b"z", "path": "d.png"},
                "e.png",
            ),
            metadata={"question": "\n".join(["<image>"] * 6)},
        ),
    ),
    "images that no message names": (
        {"messages": [user("q"), answer()], "images": ["a.png"]},
        Conversation(
            (Turn("user", "<image>\nq"), Turn("assistant", "a")),
            ("a.png",),
            metadata={"images": ["a.png"], "question": "q"},
        ),
    ),
    "prompt and completion": (
        {
            "prompt": [{"role": "system", "content": "s"}, user([IMAGE, text("q")])],
            "completion": [answer([text("a")])],
            "images": ["a.png"],
            "source": "here",
        },
        Conversation(
            (Turn("system", "s"), Turn("user", "<image>\nq"), Turn("assistant", "a")),
            ("a.png",),
            metadata={"images": ["a.png"], "source": "here", "question": "<image>\nq"},
        ),
    ),
    "prompt and completion without image": (
        {"prompt": [user("q")], "completion": [answer()], "images": []},
        Conversation((Turn("user", "q"), Turn("assistant", "a")), metadata={"question": "q"}),
    ),
}


def shape_name(item: dict[str, Any]) -> str:
    return "messages" if "messages" in item else "prompt-completion"


@pytest.mark.parametrize(("item", "expected"), GOOD.values(), ids=GOOD)
def test_messages_are_read_as_written(item: dict[str, Any], expected: Conversation) -> None:
    assert [name for name, shape in SHAPES.items() if shape.matches(item)] == [shape_name(item)]
    assert SHAPES[shape_name(item)].read(item) == expected


def ask(*parts: Any, **keys: Any) -> dict[str, Any]:
    return {"messages": [user(list(parts)), answer()], **keys}


NO_KEYS = "must be an object with the keys 'role' and 'content'"

BAD: list[tuple[dict[str, Any], str]] = [
    ({"messages": []}, "'messages' must be a list with at least one turn"),
    ({"messages": "x"}, "'messages' must be a list with at least one turn"),
    ({"messages": ["x"]}, f"turn 0 {NO_KEYS}"),
    ({"messages": [{"content": "x"}]}, f"turn 0 {NO_KEYS}"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "turn 0 has the unknown role 'tool'"),
    ({"messages": [{"role": None, "content": "x"}]}, "turn 0 has the unknown role None"),
    ({"messages": [user(None), answer()]}, "turn 0: 'content' must be a string"),
    ({"messages": [user({"text": "x"}), answer()]}, "turn 0: 'content' must be a string"),
    ({"messages": [user("x")]}, "the last turn has the role 'user': there is no answer"),
    ({"messages": [user("x"), answer([])]}, "turn 1: the answer is empty"),
    ({"messages": [user("x"), answer([IMAGE])]}, "turn 1: an answer cannot hold <image>"),
    (
        {"messages": [user("x"), answer(), answer()]},
        "turn 2 has the role 'assistant': user and assistant must alternate",
    ),
    (
        {"messages": [user("x"), answer("b", audio={"id": 1})]},
        "turn 1 has 'audio', which is not supported",
    ),
    (
        {"messages": [user("x"), answer("b", reasoning_content="hm")]},
        "turn 1 has 'reasoning_content', which is not supported",
    ),
    (
        {"messages": [user("x"), answer("b", weight=0)]},
        "turn 1 has 'weight' 0, which is not supported: every answer is learned, and nothing else",
    ),
    (ask("x"), "turn 0: part 0 must be an object with a 'type'"),
    (ask({"text": "x"}), "turn 0: part 0 must be an object with a 'type'"),
    (
        ask(IMAGE, {"type": "video", "video": "a.mp4"}),
        "turn 0: part 1 has the unsupported type 'video'",
    ),
    (ask({"type": "input_audio"}), "turn 0: part 0 has the unsupported type 'input_audio'"),
    (ask({"type": "text"}), "turn 0: part 0: 'text' must be a string"),
    (
        ask(text("<image>")),
        "turn 0: part 0: text cannot hold <image> where images are parts",
    ),
    (
        ask(text("x", image_url={"url": "a"})),
        "turn 0: part 0 of type 'text' has 'image_url', which is not supported",
    ),
    (
        ask({"type": "image", "max_pixels": 100}),
        "turn 0: part 0 of type 'image' has 'max_pixels', which is not supported",
    ),
    (
        ask({"type": "image", "text": "x"}),
        "turn 0: part 0 of type 'image' has 'text', which is not supported",
    ),
    (ask({"type": "image", "url": "a", "path": "b"}), "turn 0: part 0 has more than one image"),
    (ask({"type": "image", "url": "a", "bytes": b"b"}), "turn 0: part 0 has more than one image"),
    (ask({"type": "image_url"}), "turn 0: part 0 has no 'image_url'"),
    (
        ask({"type": "image_url", "image_url": {}}),
        "turn 0: part 0: 'image_url' must be a path, a URL or a data URI",
    ),
    (
        ask(url("a.png", detail="low")),
        "turn 0: part 0 has the 'detail' 'low', which is not supported",
    ),
    (
        ask(url("a.png", max_pixels=4)),
        "turn 0: part 0: 'image_url' has 'max_pixels', which is not supported",
    ),
    (
        ask(text("x", bytes=b"x")),
        "turn 0: part 0 of type 'text' has 'bytes', which is not supported",
    ),
    (
        ask({"type": "image", "image": 3}),
        "turn 0: part 0: 'image' must be a path, a URL or a data URI",
    ),
    (
        ask({"type": "image", "image": {}}),
        "'image' has an image with neither 'bytes' nor 'path'",
    ),
    (
        ask({"type": "image", "bytes": "AA"}),
        "'image': 'bytes' must be bytes, got str",
    ),
    (ask(IMAGE), "has 0 images and 1 <image> placeholders"),
    (ask(url("a.png"), images=["a.png"]), "has 2 images and 1 <image> placeholders"),
    (ask(IMAGE, images=["a", "b"]), "has 2 images and 1 <image> placeholders"),
    (
        {"prompt": [], "completion": [answer()]},
        "'prompt' must be a list with at least one turn",
    ),
    (
        {"prompt": [user("q")], "completion": "a"},
        "'completion' must be a list with at least one turn",
    ),
    (
        {"prompt": [user("q")], "completion": [user("a")]},
        "turn 1 has the role 'user': user and assistant must alternate",
    ),
    (
        {"prompt": [user("q")], "completion": [{"role": "x"}]},
        "turn 1 has the unknown role 'x'",
    ),
    (
        {"prompt": [user("q")], "chosen": [answer()], "rejected": [answer("b")]},
        "has 'chosen', which is not supported",
    ),
]


@pytest.mark.parametrize(("item", "message"), BAD)
def test_bad_messages_are_refused_in_one_line(item: dict[str, Any], message: str) -> None:
    shape = SHAPES[shape_name(item)]
    assert shape.matches(item)
    with pytest.raises(ValueError, match=r"^[^\n]*$") as caught:
        shape.read(item)
    assert str(caught.value) == message


def test_a_long_value_is_not_repeated() -> None:
    item = ask({"type": "image", "image": ["A" * 10_000]}, images=[3, "A" * 10_000])
    with pytest.raises(ValueError, match="must be a path") as caught:
        SHAPES["messages"].read(item)
    assert len(str(caught.value)) < 300
