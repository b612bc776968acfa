"""Whatever a data file holds, reading it gives samples or one line that names the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from data_opening import read_samples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from dmole.data.formats import Split
from dmole.data.sample import Sample

FUZZ = settings(
    derandomize=True,
    max_examples=60,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

TURNS = [{"from": "human", "value": "<image>\nwhat ?"}, {"from": "gpt", "value": "größe"}]
TALKS = [
    {"id": "a", "image": "a.png", "conversations": TURNS},
    {"id": 7, "conversations": [{"from": "system", "value": "Short."}, *TURNS], "image": "a.png"},
]
QUESTIONS = [
    {"question_id": 7, "text": "where ?", "answer": ["left", "right"]},
    {"id": "c", "question": "box ?", "answer_bbox": [0.1, 0.2, 0.5, 1e3]},
]

TEXT = st.one_of(
    st.text(max_size=12),
    st.text(st.characters(), max_size=12),
    st.sampled_from(["<image>", "<image><image>", "../x", "\ud800", "a\0b", "http://x", "", " "]),
)
SCALAR = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXT)
VALUE = st.recursive(
    SCALAR,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
KEYS = ["id", "question_id", "image", "conversations", "text", "question", "answer", "answer_bbox"]
TURN = st.fixed_dictionaries(
    {},
    optional={
        "from": st.sampled_from(["human", "gpt", "system"]) | VALUE,
        "value": TEXT | VALUE,
    },
)
IMAGE = st.sampled_from(["a.png", "no.png", "x" * 300]) | TEXT | VALUE
ITEM = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(KEYS, VALUE)
    | {"conversations": st.lists(TURN, max_size=4) | VALUE, "image": IMAGE, "text": TEXT | VALUE},
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    return tmp_path


def outcome(folder: Path, content: bytes, ending: str, split: Split) -> str:
    """Return "samples" or "refused", else what is wrong."""
    path = folder / f"x{ending}"
    path.write_bytes(content)
    try:
        samples = read_samples(str(path), split)
    except (ValueError, FileNotFoundError) as error:
        if type(error) not in (ValueError, FileNotFoundError):
            return f"raised {type(error).__name__}"
        line = " ".join(str(error).split())
        return "refused" if line.startswith(str(path)) and len(line) < 1500 else f"said {line}"
    if not samples or not all(isinstance(sample, Sample) for sample in samples):
        return "gave something else"
    for sample in samples:  # what is read can be written
        "".join([sample.id, *(turn.text for turn in sample.turns), *sample.references]).encode()
    return "samples"


GOOD = ("samples", "refused")
ENDING = st.sampled_from([".json", ".jsonl"])
SPLIT = st.sampled_from(["train", "test"])


@FUZZ
@given(st.binary(max_size=200), ENDING, SPLIT)
def test_random_bytes(folder: Path, content: bytes, ending: str, split: Split) -> None:
    assert outcome(folder, content, ending, split) in GOOD


@FUZZ
@given(st.data(), ENDING, SPLIT)
def test_a_valid_file_with_bytes_changed(
    folder: Path, data: st.DataObject, ending: str, split: Split
) -> None:
    valid = data.draw(st.sampled_from([TALKS, QUESTIONS]))
    if ending == ".json":
        content = bytearray(json.dumps(valid, ensure_ascii=False).encode())
    else:
        content = bytearray("\n".join(json.dumps(item) for item in valid).encode())
    for _ in range(data.draw(st.integers(0, 3))):
        place = data.draw(st.integers(0, len(content) - 1))
        if data.draw(st.booleans()):
            content[place] = data.draw(st.integers(0, 255))
        else:
            del content[place : place + data.draw(st.integers(1, 40))]
            content = content or bytearray(b" ")
    assert outcome(folder, bytes(content), ending, split) in GOOD


@FUZZ
@given(VALUE | st.lists(ITEM, max_size=4), SPLIT)
def test_any_json_value(folder: Path, value: Any, split: Split) -> None:
    assert outcome(folder, json.dumps(value).encode(), ".json", split) in GOOD


@FUZZ
@given(ITEM, SPLIT)
def test_any_item_of_the_known_keys(folder: Path, item: dict[str, Any], split: Split) -> None:
    assert outcome(folder, json.dumps(item).encode(), ".jsonl", split) in GOOD


@pytest.mark.parametrize("items", [TALKS, QUESTIONS])
def test_the_unchanged_file_is_read(folder: Path, items: list[Any]) -> None:
    assert outcome(folder, json.dumps(items).encode(), ".json", "train") == "samples"


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 200_000,
        b'{"a":' * 100_000,
        b"[" + b"9" * 10_000 + b"]",
        b'[{"id": "a", "text": "x", "answer": ' + b'["' + b"x" * 100_000 + b'", 3]}]',
        b'[{"' + b"k" * 100_000 + b'": 1}]',
        b"\xef\xbb\xbf",
        b"\xff\xfe[\0]\0",
        b"NaN",
        b"[Infinity]",
    ],
    ids=range(9),
)
def test_large_and_odd_files_are_refused_in_a_short_line(folder: Path, content: bytes) -> None:
    assert outcome(folder, content, ".json", "train") == "refused"
