from __future__ import annotations

import json
import math
import re
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dmole.data import streaming
from dmole.data.streaming import stream_items

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
FEW = settings(
    derandomize=True, max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read(path: Path) -> list[Any]:
    indices, items = zip(*stream_items(path), strict=True)
    assert list(indices) == list(range(len(items)))
    return list(items)


def with_pieces(size: int, path: Path) -> list[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streaming, "_PIECE", size)
        return [item for _, item in stream_items(path)]


@FEW
@given(
    items=st.lists(VALUES, max_size=5),
    size=st.integers(1, 40),
    escaped=st.booleans(),
    indent=st.sampled_from([None, 1]),
)
def test_every_list_is_read_as_json_reads_it_wherever_the_pieces_are_cut(
    tmp_path_factory: pytest.TempPathFactory,
    items: list[Any],
    size: int,
    escaped: bool,
    indent: int | None,
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    text = json.dumps(items, ensure_ascii=escaped, indent=indent)
    assert repr(with_pieces(size, write(folder, "x.json", text))) == repr(items)
    lines = "\n\n".join(json.dumps(item, ensure_ascii=escaped) for item in items)
    assert repr(with_pieces(size, write(folder, "x.jsonl", lines))) == repr(items)


STRICTER = "one object|half of a surrogate pair"
"""What json accepts and a data file may not hold."""


@FEW
@given(data=st.data(), size=st.integers(1, 40))
def test_every_damage_is_found_where_json_finds_it(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, size: int
) -> None:
    items = data.draw(st.lists(VALUES, min_size=1, max_size=3))
    text = json.dumps(items, ensure_ascii=data.draw(st.booleans()), indent=1)
    begin = data.draw(st.integers(1, len(text) - 1))
    damage = data.draw(st.sampled_from(["", "x", '"', "]", "{", ",", "\n", "\\", "0"]))
    text = text[:begin] + damage + text[begin + data.draw(st.integers(0, 3)) :]
    path = write(tmp_path_factory.mktemp("fuzz"), "x.json", text)
    try:
        expected = json.loads(text)
    except json.JSONDecodeError as error:
        place = f"{path}: broken JSON at line {error.lineno} column {error.colno}: {error.msg}"
        with pytest.raises(ValueError, match=rf"broken JSON|{STRICTER}") as caught:
            with_pieces(size, path)
        assert str(caught.value) == place or re.search(STRICTER, str(caught.value))
        return
    if not isinstance(expected, list):
        return
    try:
        got = with_pieces(size, path)
    except ValueError as error:
        if not re.search(STRICTER, str(error)):
            raise
        return
    assert repr(got) == repr(expected)


def test_numbers_and_constants_are_those_of_json(tmp_path: Path) -> None:
    text = "[1, 1.0, -0, 123456789012345678901234567890, 1e3, 1e400, NaN, -Infinity, 7]"
    got = read(write(tmp_path, "x.json", text))
    assert [type(value) for value in got] == [int, float, int, int, *[float] * 4, int]
    assert got[3] == 123456789012345678901234567890
    assert got[5] == math.inf
    assert math.isnan(got[6])


@pytest.mark.parametrize("size", range(1, 12))
def test_a_number_is_not_ended_by_the_end_of_a_piece(tmp_path: Path, size: int) -> None:
    assert with_pieces(size, write(tmp_path, "x.json", "[1e+2,10.5, -3]")) == [100.0, 10.5, -3]


def test_only_newlines_part_the_lines(tmp_path: Path) -> None:
    text = '\ufeff{"a": "b\u2028c\x85"}\r\n\n  \n[1]\r2\n'
    assert read(write(tmp_path, "x.jsonl", text)) == [{"a": "b\u2028c\x85"}, [1], 2]


def test_memory_does_not_grow_with_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "_PIECE", 1 << 12)
    for name, text in (
        ("x.json", "[" + '"text"' + ', "text"' * 20_000 + "]"),
        ("x.jsonl", '"text"\n' * 20_000),
    ):
        path = write(tmp_path, name, text)
        tracemalloc.start()
        count = sum(1 for _ in stream_items(path))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert count >= 20_000
        assert peak < 200_000  # all items would take a megabyte


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.json", "[1, 2", "broken JSON at line 1 column 6: Expecting ',' delimiter"),
        ("x.json", "[1,\n", "broken JSON at line 2 column 1: Expecting value"),
        ("x.json", "[1,\n2]\n3", "broken JSON at line 3 column 1: Extra data"),
        ("x.json", '{"a": 1}\n[1]', "broken JSON at line 2 column 1: Extra data"),
        ("x.json", '{"item": [1]}', "must hold a list of items, but holds an object (keys 'item')"),
        ("x.json", '["a\nb"]', "broken JSON at line 1 column 4: Invalid control character at"),
        ("x.json", "", "broken JSON at line 1 column 1: Expecting value"),
        ("x.json", " \n", "broken JSON at line 2 column 1: Expecting value"),
        ("x.jsonl", "1\n\n2 3", "broken JSON at line 3 column 3: Extra data"),
        ("x.json", '[0, "\\ud800"]', "item 1: holds '\\ud800', half of a surrogate pair"),
        ("x.jsonl", '0\n{"\\uDC00": 1}', "item 1: holds '\\udc00', half of a surrogate pair"),
        ("x.json", '[{"a": 1, "b": 2, "a": 3}]', "item 0: has the key 'a' twice in one object"),
        ("x.jsonl", "[" * 100_000, "item 0: is nested too deeply"),
        ("x.json", "[" * 100_000, "item 0: is nested too deeply"),
        ("x.json", "[" + "1" * 5000 + "]", "item 0: holds a number of more than 4300 digits"),
        ("x.json", b'["ab\xff"]', "is not UTF-8 text: byte 0xff at position 4: invalid start"),
        ("x.json", b'\xef\xbb\xbf["\xe2\x82', "is not UTF-8 text: byte 0xe2 at position 5: unexp"),
        ("x.jsonl", b"\xff\xfe[\x00", "is not UTF-8 text: byte 0xff at position 0"),
    ],
)
@pytest.mark.parametrize("size", [3, 1 << 20])
def test_a_bad_file_is_refused_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    content: Any,
    message: str,
    size: int,
) -> None:
    path = write(tmp_path, name, content)
    if "must hold" not in message and "Extra" not in message:
        monkeypatch.setattr(streaming, "_PIECE", size)
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - compared below
        list(stream_items(path))
    assert str(caught.value).startswith(f"{path}: {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.json", '{"a": 1}\n{"a": 2}\n', "holds one item per line: its name must end in .jsonl"),
        ("x.json", '\n {"a": 1}\n\n{"a": 2}', "holds one item per line: its name must end in .jso"),
        ("x.jsonl", '[\n{"a": 1}\n]', "holds one list of items: its name must end in .json"),
    ],
)
def test_a_list_and_lines_under_the_name_of_the_other_are_named(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    with pytest.raises(ValueError, match=rf"x\.jsonl?: {message}"):
        list(stream_items(write(tmp_path, name, content)))


def test_keys_of_a_large_object_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "_PIECE", 8)
    path = write(tmp_path, "x.json", '{"data": [1, 2, 3], "broken')
    with pytest.raises(ValueError, match=r"must hold a list of items, but holds an object$"):
        list(stream_items(path))


def test_an_escaped_pair_is_one_character(tmp_path: Path) -> None:
    assert read(write(tmp_path, "x.json", '["\\ud83d\\ude00", "\\\\ud800"]')) == ["😀", "\\ud800"]
