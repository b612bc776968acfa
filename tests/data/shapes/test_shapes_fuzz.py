"""Whatever an item holds, a shape reads it or refuses it in one short line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dmole.data.shapes import (
    SHAPES,
    Conversation,
    is_meta,
    is_table_row,
    member_item,
    meta_parts,
    named_rows,
    recognise,
    table_items,
)

FUZZ = settings(
    derandomize=True,
    max_examples=150,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)

TEXT = st.one_of(
    st.text(max_size=8),
    st.text(st.characters(), max_size=8),
    st.sampled_from(
        ["<image>", "<image><image>", "<bbox>", "<ref-object>", "\ud800", "", " ", "data:x"]
    ),
)
SCALAR = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), TEXT, st.binary(max_size=3)
)
VALUE = st.recursive(
    SCALAR,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


def some(**values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects with some of the keys, their values mostly of the right kind."""
    return st.fixed_dictionaries({}, optional={k: v | VALUE for k, v in values.items()})


IMAGE = TEXT | some(bytes=st.binary(max_size=2), path=TEXT)
PART = some(
    type=st.sampled_from(["text", "image", "image_url", "video"]),
    text=TEXT,
    image=IMAGE,
    image_url=some(url=TEXT, detail=TEXT),
)
CONTENT = TEXT | st.lists(PART, max_size=3)
SPEAKER = st.sampled_from(["human", "user", "gpt", "assistant", "system"])
EXTRA = {"loss": st.booleans(), "weight": st.sampled_from([0, 1]), "images": st.lists(IMAGE)}
TURNS = st.lists(some(**{"from": SPEAKER, "value": TEXT, **EXTRA}), max_size=4)
MESSAGES = st.lists(some(role=SPEAKER, content=CONTENT, **EXTRA), max_size=4)
OBJECTS = some(
    ref=st.lists(TEXT, max_size=2),
    bbox=st.lists(st.lists(st.integers() | st.floats(), min_size=2, max_size=4), max_size=2),
    bbox_type=st.sampled_from(["real", "norm1"]),
)
ITEM = some(
    conversations=TURNS,
    messages=MESSAGES,
    prompt=TEXT | MESSAGES,
    completion=TEXT | MESSAGES,
    image=IMAGE,
    images=st.lists(IMAGE, max_size=2),
    history=st.lists(st.tuples(TEXT, TEXT), max_size=2),
    objects=OBJECTS,
    choices=st.lists(TEXT, max_size=3),
    **dict.fromkeys(["answer", "answers", "answer_bbox", "response", "solution"], TEXT),
    **dict.fromkeys(["id", "question_id", "text", "question", "query", "problem", "system"], TEXT),
    **dict.fromkeys(["tools", "videos", "rejected", "label", "loss_scale", "other"], VALUE),
)
TALK = [("human", "<image>\nwhere is <ref-object>?"), ("gpt", "<bbox>")]
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}
VALID: list[dict[str, Any]] = [
    {
        "id": 3,
        "image": "a.png",
        "conversations": [{"from": role, "value": text} for role, text in TALK],
        "objects": {"ref": ["x"], "bbox": [[1, 2, 3, 4]], "bbox_type": "real"},
        "system": "s",
    },
    {
        "messages": [
            {"role": "system", "content": "s"},
            {
                "role": "user",
                "content": [PICTURE, {"type": "image"}, {"type": "text", "text": "q"}],
            },
            {"role": "assistant", "content": "a", "loss": True},
        ],
        "images": [{"bytes": b"x", "path": None}],
    },
    {
        "prompt": [{"role": "user", "content": [{"type": "image"}]}],
        "completion": [{"role": "assistant", "content": [{"type": "text", "text": "a"}]}],
        "images": ["a.png"],
    },
    {"query": "<image>q", "response": "a", "history": [["<image>q", "a"]], "images": ["a", "b"]},
    {"question": "q", "answer": 0, "choices": ["x", "y"], "image": {"bytes": b"x"}, "size": [1, 2]},
    {"question_id": 1, "text": "q", "answers": ["a", ""], "images": ["a.png", "b.png"]},
]


def change(draw: st.DrawFn, value: Any) -> Any:
    """Return a value with one change somewhere inside."""
    if isinstance(value, dict | list) and value and draw(st.integers(0, 5)):
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = draw(st.sampled_from(keys))
        copy = value.copy()
        if draw(st.integers(0, 5)) == 0:
            del copy[key]
        else:
            copy[key] = change(draw, value[key])
        return copy
    if isinstance(value, dict):
        return value | {draw(TEXT): draw(VALUE)}
    return draw(TEXT if isinstance(value, str) else VALUE)


@st.composite
def almost_valid(draw: st.DrawFn) -> dict[str, Any]:
    item = draw(st.sampled_from(VALID))
    for _ in range(draw(st.integers(0, 3))):
        item = change(draw, item)
    return item


def check_line(error: ValueError) -> None:
    assert type(error) is ValueError
    assert "\n" not in str(error)
    assert len(str(error)) < 1000


def check_outcome(name: str, item: Mapping[str, Any]) -> None:
    try:
        conversation = SHAPES[name].read(item)
    except ValueError as error:
        check_line(error)
        return
    assert isinstance(conversation, Conversation)
    turns = conversation.turns
    assert [turn.role for turn in turns[-2:]] == ["user", "assistant"]
    assert sum(turn.text.count("<image>") for turn in turns) == len(conversation.images)
    assert not conversation.references or turns[-1].text in conversation.references
    "".join([conversation.id or "", *(turn.text for turn in turns)]).encode()
    json.dumps(conversation.metadata)


@FUZZ
@given(almost_valid())
def test_a_valid_item_with_values_changed(item: dict[str, Any]) -> None:
    for name, shape in SHAPES.items():
        assert isinstance(shape.matches(item), bool)
        check_outcome(name, item)


def test_the_unchanged_items_are_read() -> None:
    for item in VALID:
        assert recognise([item]).read(item).turns


@FUZZ
@given(ITEM)
def test_any_item_of_the_known_keys(item: dict[str, Any]) -> None:
    for name, shape in SHAPES.items():
        assert isinstance(shape.matches(item), bool)
        check_outcome(name, item)


@FUZZ
@given(st.lists(almost_valid() | st.dictionaries(TEXT, VALUE, max_size=3), max_size=3))
def test_any_first_items(items: list[dict[str, Any]]) -> None:
    try:
        assert recognise(items) in SHAPES.values()
    except ValueError as error:
        check_line(error)


ROW = some(
    index=st.integers(0, 3) | st.floats(),
    image=st.sampled_from(["0", "1", "A" * 80, "['x', 'y']", "[", "[[" * 200 + "]"]),
    question=TEXT,
    answer=st.sampled_from("AB"),
    A=TEXT,
    B=TEXT,
)


@FUZZ
@given(st.lists(ROW, max_size=3))
def test_any_rows_of_a_table(rows: list[dict[str, Any]]) -> None:
    named_rows(rows)
    assert all(isinstance(is_table_row(row), bool) for row in rows)
    try:
        for item in table_items(rows):
            check_outcome("question", item)
    except ValueError as error:
        check_line(error)


@FUZZ
@given(
    VALUE
    | st.dictionaries(
        TEXT, some(annotation=TEXT, root=TEXT, repeat_time=st.integers(0, 2)), max_size=2
    )
)
def test_any_content_of_a_meta_file(content: Any) -> None:
    if not is_meta(content):
        return
    try:
        list(meta_parts(content))
    except ValueError as error:
        check_line(error)


MEMBER = st.binary(max_size=6) | almost_valid().map(
    lambda item: json.dumps(item, default=str).encode()
)


@FUZZ
@given(TEXT, st.dictionaries(st.sampled_from(["json", "txt", "cls", "jpg", "1.png"]), MEMBER))
def test_any_members(key: str, members: dict[str, bytes]) -> None:
    try:
        item = member_item(key, members)
    except ValueError as error:
        check_line(error)
        return
    for name in SHAPES:
        check_outcome(name, item)
