"""Rows of VLMEvalKit, meta files of InternVL and members of a webdataset become items."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

import pytest

from dmole.data.shapes import (
    MetaPart,
    is_meta,
    is_table_row,
    member_item,
    meta_parts,
    named_rows,
    recognise,
    table_items,
)

PICTURE = base64.b64encode(b"picture" * 20).decode()
OTHER = base64.b64encode(b"another" * 20).decode()
NAN = float("nan")


def row(index: Any, **cells: Any) -> dict[str, Any]:
    return {"index": index, "question": "which?", "answer": "B", "image": PICTURE} | cells


def uri(content: str) -> str:
    return f"data:;base64,{content}"


# -- VLMEvalKit ----------------------------------------------------------------------------------


def test_a_row_becomes_a_question_with_its_options() -> None:
    cells = {"hint": "Look.", "A": "cup", "B": "tree", "C": "", "D": NAN, "category": "naming"}
    (item,) = table_items([row("7", **cells, split="test", l2=None)])
    assert item == {
        "id": "7",
        "text": "Look.\nwhich?\nA. cup\nB. tree",
        "answer": "B",
        "answer_index": 1,
        "choices": ["cup", "tree"],
        "hint": "Look.",
        "category": "naming",
        "split": "test",
        "images": [uri(PICTURE)],
    }
    conversation = recognise([item]).read(item)
    assert [turn.text for turn in conversation.turns] == [f"<image>\n{item['text']}", "B"]
    assert conversation.images == (uri(PICTURE),)
    assert conversation.metadata == {
        "question": item["text"],
        "choices": ["cup", "tree"],
        "answer_index": 1,
        "hint": "Look.",
        "category": "naming",
        "split": "test",
    }


def test_a_task_with_its_own_wording_takes_the_bare_question() -> None:
    (item,) = table_items([row(7.0, A="cup", B="tree", hint="Look.")], options_in_text=False)
    assert (item["id"], item["text"], item["hint"]) == ("7", "which?", "Look.")


def test_a_row_without_options_keeps_its_answer_as_text() -> None:
    (item,) = table_items([row(1, answer=" 42 ")])
    assert (item["answer"], "choices" in item) == (" 42 ", False)


def test_the_index_of_an_earlier_row_stands_for_its_image() -> None:
    rows = [row("0"), row("1", image="0"), row("2", image=OTHER), row("3", image="1")]
    assert [item["images"] for item in table_items(rows)] == [
        [uri(PICTURE)],
        [uri(PICTURE)],
        [uri(OTHER)],
        [uri(PICTURE)],
    ]


def test_the_images_that_later_rows_name_are_enough_to_keep() -> None:
    rows = [row(0), row(1), row(2, image=0.0), row(3, image=f"['{PICTURE}']")]
    assert named_rows(rows) == {"0"}
    assert len(list(table_items(rows, needed={"0"}))) == 4
    with pytest.raises(ValueError, match="'0' is the index of no earlier row"):
        list(table_items(rows, needed={"1"}))


@pytest.mark.parametrize(
    ("cells", "images"),
    [
        ({"image": f"['{PICTURE}', '{OTHER}']"}, [uri(PICTURE), uri(OTHER)]),
        ({"image": None, "image_path": "a.png"}, ["a.png"]),
        ({"image": "", "image_path": "['a, b.png', \"c.png\"]"}, ["a, b.png", "c.png"]),
        ({"image_path": "a.png"}, [uri(PICTURE)]),
        ({"image": NAN}, None),
    ],
)
def test_a_row_has_one_image_or_several_or_none(
    cells: dict[str, Any], images: list[str] | None
) -> None:
    (item,) = table_items([row(1, **cells)])
    assert item.get("images") == images


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"index": None}, "row 1 (index '1'): has no 'index'"),
        ({"question": ""}, "row 1 (index '9'): has no 'question'"),
        ({"answer": NAN}, "row 1 (index '9'): has no 'answer'"),
        (
            {"A": "x", "B": "y", "answer": "C"},
            "row 1 (index '9'): 'answer' 'C' is not the letter of an option (A, B)",
        ),
        ({"A": "x", "C": "y"}, "row 1 (index '9'): has the option 'C' but not 'B'"),
        ({"image": "10"}, "row 1 (index '9'): its 'image' '10' is the index of no earlier row"),
        ({"image": "['x', 3]"}, "row 1 (index '9'): has a broken list of images: \"['x', 3]\""),
        ({"image": "[x"}, None),
    ],
)
def test_a_bad_row_is_refused_in_one_line(cells: dict[str, Any], message: str | None) -> None:
    rows = table_items([row(8), row(9) | cells])
    assert next(rows)["id"] == "8"
    if message is None:  # it is not base64, which is for the reader of images to say
        assert next(rows)["images"] == ["data:;base64,[x"]
        return
    with pytest.raises(ValueError, match="row 1") as caught:
        next(rows)
    assert str(caught.value) == message


def test_a_table_is_recognized_by_its_columns() -> None:
    assert is_table_row(row(1))
    assert is_table_row({"index": 1, "question": "", "answer": "", "image_path": ""})
    assert not is_table_row({"question": "q", "answer": "a", "image": "a.png"})
    assert not is_table_row({"index": 1, "question": "q", "answer": "a"})


# -- InternVL ------------------------------------------------------------------------------------

ENTRY = {"root": "pics", "annotation": "a.jsonl", "repeat_time": 2, "length": 10}


def test_the_parts_of_a_meta_file_are_in_order() -> None:
    content = {"a": ENTRY | {"data_augment": False}, "b": {"annotation": "b.jsonl"}}
    assert is_meta(content)
    assert list(meta_parts(content)) == [
        MetaPart("a", "a.jsonl", "pics", 2, 10),
        MetaPart("b", "b.jsonl", "", 1, None),
    ]


@pytest.mark.parametrize("content", [{}, [], None, "x", {"a": 3}, {"a": ENTRY, "b": {}}])
def test_other_content_is_no_meta_file(content: Any) -> None:
    assert not is_meta(content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"annotation": None}, "x: 'annotation' must be the path of a file, got None"),
        ({"annotation": ""}, "x: 'annotation' must be the path of a file, got ''"),
        ({"root": 3}, "x: 'root' must be the path of a folder, got 3"),
        ({"repeat_time": 0}, "x: 'repeat_time' must be 1 or more, got 0"),
        ({"repeat_time": 0.5}, "x: 'repeat_time' must be 1 or more, got 0.5"),
        ({"repeat_time": True}, "x: 'repeat_time' must be 1 or more, got True"),
        ({"length": "10"}, "x: 'length' must be a number of items, got '10'"),
        ({"data_augment": True}, "x: has 'data_augment', which is not supported"),
        ({"max_dynamic_patch": 6}, "x: has 'max_dynamic_patch', which is not supported"),
    ],
)
def test_a_bad_part_is_refused_in_one_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="x: ") as caught:
        list(meta_parts({"x": ENTRY | change}))
    assert str(caught.value) == message


# -- webdataset ----------------------------------------------------------------------------------

TALK = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]


def content_of(item: Mapping[str, Any]) -> bytes:
    return json.dumps(item).encode()


def rows_of(*names: str) -> list[dict[str, Any]]:
    return [{"bytes": name.encode(), "path": f"s/0001.{name}"} for name in names]


@pytest.mark.parametrize(
    ("members", "item"),
    [
        (
            {"jpg": b"jpg", "json": content_of({"conversations": TALK}), "__url__": b"x.tar"},
            {"conversations": TALK, "id": "s/0001", "images": rows_of("jpg")},
        ),
        (
            {
                "jpg": b"jpg",
                "json": content_of({"id": 3, "conversations": TALK, "image": "x/y.jpg"}),
            },
            {"conversations": TALK, "id": 3, "images": rows_of("jpg")},
        ),
        (
            {
                "json": content_of({"messages": [], "images": ["0001.b.png", "s/0001.a.png"]}),
                "a.png": b"a.png",
                "b.png": b"b.png",
            },
            {"messages": [], "id": "s/0001", "images": rows_of("b.png", "a.png")},
        ),
        (
            {"10.jpg": b"10.jpg", "2.JPG": b"2.JPG", "json": content_of({"conversations": TALK})},
            {"conversations": TALK, "id": "s/0001", "images": rows_of("2.JPG", "10.jpg")},
        ),
        (
            {"json": content_of({"conversations": TALK, "image": "below/the/root.png"})},
            {"conversations": TALK, "id": "s/0001", "image": "below/the/root.png"},
        ),
        (
            {"jpg": b"jpg", "txt": b" a cat\n"},
            {
                "txt": " a cat\n",
                "text": "",
                "answer": "a cat",
                "id": "s/0001",
                "images": rows_of("jpg"),
            },
        ),
        (
            {"png": b"png", "cls": b"7", "json": content_of({"width": 4})},
            {
                "cls": "7",
                "width": 4,
                "text": "",
                "answer": "7",
                "id": "s/0001",
                "images": rows_of("png"),
            },
        ),
        (
            {"question": b"what?", "answer": b"red", "png": b"png"},
            {"question": "what?", "answer": "red", "id": "s/0001", "images": rows_of("png")},
        ),
    ],
)
def test_members_of_one_key_become_one_item(
    members: dict[str, bytes], item: dict[str, Any]
) -> None:
    assert member_item("s/0001", members) == item


def test_an_item_of_members_is_read_like_any_other() -> None:
    item = member_item("1", {"jpg": b"x", "json": content_of({"conversations": TALK})})
    conversation = recognise([item]).read(item)
    assert conversation.turns[0].text == "<image>\nq"
    assert conversation.images == ({"bytes": b"x", "path": "1.jpg"},)
    assert conversation.id == "1"


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"jpg": b"x"}, "has no member 'json', 'txt' or 'cls': its members are jpg"),
        (
            {"json": b"{"},
            "member 'json' is broken: Expecting property name enclosed in double quotes",
        ),
        ({"json": b"\xff"}, "member 'json' is not UTF-8 text"),
        ({"json": b"[" * 100_000}, "member 'json' is nested too deeply"),
        ({"json": b"[1]"}, "member 'json' must hold an object, got [1]"),
        ({"txt": b"\xff"}, "has a member 'txt', which is not supported"),
        ({"mp4": b"\x00\xff", "txt": b"x"}, "has a member 'mp4', which is not supported"),
        (
            {"json": content_of({"conversations": TALK, "image": [3]}), "jpg": b"x"},
            "'image' must be a path or a list of paths, got [3]",
        ),
        (
            {"json": content_of({"conversations": TALK, "image": ["data:x"]}), "jpg": b"x"},
            "has images both in its 'json' and as members",
        ),
        (
            {
                "json": content_of({"text": "", "image": ["a.jpg", "c.jpg"]}),
                "a.jpg": b"",
                "b.jpg": b"",
            },
            "its image 'c.jpg' is not a member: the images are a.jpg, b.jpg",
        ),
        (
            {"json": content_of({"text": "", "image": "a.jpg"}), "a.jpg": b"x", "b.jpg": b"x"},
            "its 'json' names images, but not the member 'b.jpg'",
        ),
    ],
)
def test_bad_members_are_refused_in_one_line(members: dict[str, bytes], message: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]*$") as caught:
        member_item("1", members)
    assert str(caught.value) == message
