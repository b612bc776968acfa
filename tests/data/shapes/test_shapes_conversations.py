"""LLaVA and ShareGPT: each item gives the conversation written beside it, or the message."""

from __future__ import annotations

from typing import Any

import pytest

from dmole.data.sample import Turn
from dmole.data.shapes import SHAPES, Conversation

SHAPE = SHAPES["conversations"]


def talk(*texts: str, **keys: Any) -> dict[str, Any]:
    turns = [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]
    return {"conversations": turns, **keys}


def said(*texts: str) -> tuple[Turn, ...]:
    return tuple(Turn("assistant" if i % 2 else "user", text) for i, text in enumerate(texts))


SYSTEM = {"from": "system", "value": "Be brief."}

GOOD: dict[str, tuple[dict[str, Any], Conversation]] = {
    "llava": (
        talk("<image>\nwhat?", "red", id=7, image="a.png"),
        Conversation(
            said("<image>\nwhat?", "red"),
            ("a.png",),
            id="7",
            metadata={"image": "a.png", "question": "<image>\nwhat?"},
        ),
    ),
    "other role names": (
        {
            "conversations": [
                {"from": "user", "value": "q"},
                {"from": "assistant", "value": "a"},
            ]
        },
        Conversation(said("q", "a"), metadata={"question": "q"}),
    ),
    "several turns and images": (
        talk("<image> one?", "1", "<image> two?", "2", question_id="x", image=["a.png", "b.png"]),
        Conversation(
            said("<image> one?", "1", "<image> two?", "2"),
            ("a.png", "b.png"),
            id="x",
            metadata={
                "question_id": "x",
                "image": ["a.png", "b.png"],
                "question": "<image> two?",
            },
        ),
    ),
    "no placeholder": (
        talk("which?", "both", image=["a.png", "b.png"]),
        Conversation(
            said("<image>\n<image>\nwhich?", "both"),
            ("a.png", "b.png"),
            metadata={"image": ["a.png", "b.png"], "question": "which?"},
        ),
    ),
    "sharegpt": (
        talk("<image><image>q", "a", images=["a.png", "b.png"], tools="[]", videos=[]),
        Conversation(
            said("<image><image>q", "a"),
            ("a.png", "b.png"),
            metadata={
                "images": ["a.png", "b.png"],
                "tools": "[]",
                "videos": [],
                "question": "<image><image>q",
            },
        ),
    ),
    "system key": (
        talk("q", "a", system="Be brief.", image="a.png"),
        Conversation(
            (Turn("system", "Be brief."), *said("<image>\nq", "a")),
            ("a.png",),
            metadata={"image": "a.png", "question": "q"},
        ),
    ),
    "system turn": (
        {"conversations": [SYSTEM, *talk("q", "a")["conversations"]], "system": ""},
        Conversation((Turn("system", "Be brief."), *said("q", "a")), metadata={"question": "q"}),
    ),
    "blank system turn": (
        {"conversations": [{"from": "system", "value": " "}, *talk("q", "a")["conversations"]]},
        Conversation(said("q", "a"), metadata={"question": "q"}),
    ),
    "text only": (
        talk("q", "a", image="", images=[], unknown={"deep": (1, None)}, empty=None),
        Conversation(
            said("q", "a"), metadata={"image": "", "unknown": {"deep": [1, None]}, "question": "q"}
        ),
    ),
    "content of an image": (
        talk("q", "a", image={"bytes": b"\x89PNG", "path": None}),
        Conversation(
            said("<image>\nq", "a"),
            ({"bytes": b"\x89PNG", "path": None},),
            metadata={"question": "q"},
        ),
    ),
    "data URI": (
        talk("<image>q", "a", images=["data:image/png;base64,AAAA"]),
        Conversation(
            said("<image>q", "a"),
            ("data:image/png;base64,AAAA",),
            metadata={"question": "<image>q"},
        ),
    ),
    "turns with further keys": (
        {
            "conversations": [
                {"from": "human", "value": "q", "weight": 0, "train": False},
                {"from": "gpt", "value": "a", "loss": True, "weight": 1, "markdown": None, "by": 3},
            ]
        },
        Conversation(
            said("q", "a"), metadata={"question": "q", "turn_keys": [{"turn": 1, "by": 3}]}
        ),
    ),
    "names and boxes": (
        talk(
            "<image>Find <ref-object>.",
            "<bbox> and <bbox>",
            images=["a.png"],
            objects={"ref": ["the <bbox>"], "bbox": [[1, 2, 3, 4], (0.5, 1e-3)]},
        ),
        Conversation(
            said("<image>Find the <bbox>.", "[1, 2, 3, 4] and [0.5, 0.001]"),
            ("a.png",),
            metadata={
                "images": ["a.png"],
                "objects": {"ref": ["the <bbox>"], "bbox": [[1, 2, 3, 4], [0.5, 0.001]]},
                "question": "<image>Find the <bbox>.",
            },
        ),
    ),
    "objects that are no boxes": (
        talk("q <bbox>", "a", objects=["cup"]),
        Conversation(said("q <bbox>", "a"), metadata={"objects": ["cup"], "question": "q <bbox>"}),
    ),
}


@pytest.mark.parametrize(("item", "expected"), GOOD.values(), ids=GOOD)
def test_a_conversation_is_read_as_written(item: dict[str, Any], expected: Conversation) -> None:
    assert SHAPE.matches(item)
    assert SHAPE.read(item) == expected


def turn(speaker: Any = "human", value: Any = "q", **keys: Any) -> dict[str, Any]:
    return {"conversations": [{"from": speaker, "value": value, **keys}, *ANSWER]}


ANSWER = [{"from": "gpt", "value": "a"}]

BAD: list[tuple[dict[str, Any], str]] = [
    ({"conversations": []}, "'conversations' must be a list with at least one turn"),
    ({"conversations": {}}, "'conversations' must be a list with at least one turn"),
    (
        {"conversations": ["hi"]},
        "turn 0 must be an object with the keys 'from' and 'value'",
    ),
    (
        {"conversations": [{"from": "human"}]},
        "turn 0 must be an object with the keys 'from' and 'value'",
    ),
    (turn("robot"), "turn 0 has the unknown role 'robot'"),
    (turn(["gpt"]), "turn 0 has the unknown role ['gpt']"),
    (turn("x" * 500), "turn 0 has the unknown role 'xxxxxxxxxxxxxxxx... (500 characters)'"),
    (turn(value=3), "turn 0: 'value' must be a string"),
    (
        {"conversations": ANSWER},
        "turn 0 has the role 'assistant': user and assistant must alternate",
    ),
    (talk("q"), "the last turn has the role 'user': there is no answer"),
    ({"conversations": [SYSTEM]}, "the last turn has the role 'system': there is no answer"),
    (
        {"conversations": [SYSTEM, *ANSWER]},
        "turn 1 has the role 'assistant': user and assistant must alternate",
    ),
    (
        {"conversations": [*talk("q", "a")["conversations"], SYSTEM]},
        "turn 2 has the role 'system': only the first turn may have it",
    ),
    (
        {"conversations": [SYSTEM, SYSTEM]},
        "turn 1 has the role 'system': only the first turn may have it",
    ),
    (
        {"conversations": [SYSTEM, *talk("q", "a")["conversations"]], "system": "x"},
        "has both a 'system' key and a system turn",
    ),
    (talk("q", "a", system=["x"]), "'system' must be a string, got ['x']"),
    (talk("q", "a", system="<image>"), "'system' cannot hold <image>"),
    (turn("system", "<image>"), "turn 0: a system turn cannot hold <image>"),
    (talk("q", " \n"), "turn 1: the answer is empty"),
    (talk("q", "a <image>"), "turn 1: an answer cannot hold <image>"),
    (talk("<image> q", "a"), "has 0 images and 1 <image> placeholders"),
    (talk("<image>", "a", image=["a", "b"]), "has 2 images and 1 <image> placeholders"),
    (talk("<image><image>", "a", images=["a"]), "has 1 images and 2 <image> placeholders"),
    (talk("q", "a", image=3), "'image' must be a path or a list of paths, got 3"),
    (talk("q", "a", images=[None]), "'images' must be a path or a list of paths, got [None]"),
    (talk("q", "a", image="a", images=["a"]), "has images under both 'image' and 'images'"),
    (talk("q", "a", image={"path": ""}), "'image' has an image with neither 'bytes' nor 'path'"),
    (talk("q", "a", images=[{"bytes": "AA"}]), "'images': 'bytes' must be bytes, got str"),
    (talk("q", "a", image={"path": 3}), "'image': 'path' must be a string, got int"),
    (talk("q\ud800", "a"), "text holds '\\ud800', half of a character: 'q\\ud800'"),
    (talk("q", "a", id="\ud800"), "text holds '\\ud800', half of a character: '\\ud800'"),
    (
        talk("q", "a", thumbnail={"bytes": b"x"}),
        "has bytes under 'thumbnail', a key that is not read",
    ),
    *(
        (talk("q", "a", **{key: value}), f"has {key!r}, which is not supported")
        for key, value in {
            "video": "a.mp4",
            "videos": ["a.mp4"],
            "audio": {"path": "a.wav"},
            "audios": ["a.wav"],
            "tools": '[{"name": "f"}]',
            "functions": [{}],
            "chosen": {"from": "gpt", "value": "a"},
            "rejected": "b",
            "rejected_response": "b",
            "rejected_messages": [{}],
            "rejected_images": ["a"],
            "kto_tag": True,
        }.items()
    ),
    *(
        (
            talk("q", "a", **{key: 0.5}),
            f"has {key!r}, which is not supported: all answers weigh the same",
        )
        for key in ("loss", "loss_scale", "loss_mask", "loss_weight", "sample_weight", "weight")
    ),
    (
        talk("q", "a", label=False),
        "has a 'label' of true or false, and preferences are not supported",
    ),
    (turn(images=["a.png"]), "turn 0 has 'images', which is not supported"),
    (turn(tool_calls=[{}]), "turn 0 has 'tool_calls', which is not supported"),
    (
        turn(loss=True),
        "turn 0 has 'loss' True, which is not supported: every answer is learned, and nothing else",
    ),
    (
        {"conversations": [{"from": "human", "value": "q"}, {**ANSWER[0], "loss": False}]},
        "turn 1 has 'loss' False, which is not supported: every answer is learned, and nothing "
        "else",
    ),
    (
        talk("q", "a", objects={"ref": ["x"]}),
        "has 1 'ref' objects and 0 <ref-object> in text",
    ),
    (
        talk("<bbox>", "<bbox>", objects={"bbox": [[1, 2]]}),
        "has 1 'bbox' objects and 2 <bbox> in text",
    ),
    (
        talk("q", "a", objects={"ref": [], "bbox_type": "norm1000"}),
        "'bbox_type' must be 'real' or 'norm1', got 'norm1000'",
    ),
    (talk("q", "a", objects={"ref": "x"}), "'objects': 'ref' must be a list, got 'x'"),
    (
        talk("q", "a", objects={"ref": ["<image>"]}),
        "'objects': 'ref' must hold names, got '<image>'",
    ),
    *(
        (
            talk("q", "<bbox>", objects={"bbox": [box]}),
            f"'objects': 'bbox' must hold lists of 2 or 4 numbers, got {box!r}",
        )
        for box in ([1, 2, 3], [1, "2"], [1, float("nan")], [True, 1], 3)
    ),
]


@pytest.mark.parametrize(("item", "message"), BAD)
def test_a_bad_conversation_is_refused_in_one_line(item: dict[str, Any], message: str) -> None:
    assert SHAPE.matches(item)
    with pytest.raises(ValueError, match=r"^[^\n]*$") as caught:
        SHAPE.read(item)
    assert str(caught.value) == message


def test_a_value_nested_too_deeply_is_refused() -> None:
    deep: Any = []
    for _ in range(30_000):  # Python 3.13 prints 3,000
        deep = [deep]
    with pytest.raises(ValueError, match="the value of 'x' is nested too deeply"):
        SHAPE.read(talk("q", "a", x=deep))
    with pytest.raises(ValueError, match="turn 0 has the unknown role a deep list"):
        SHAPE.read(turn(deep))
