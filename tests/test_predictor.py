"""The prompts of `dmole predict --input`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dmole.inference.prompts import read_prompts


def test_prompts_with_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    path = tmp_path / "prompts.json"
    content = [{"prompt": "what color?", "image": "a.png"}, {"prompt": "why?"}]
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(content).encode())
    prompts = read_prompts(path)
    assert [prompt["prompt"] for prompt in prompts] == ["what color?", "why?"]
    assert prompts[0]["image"] == tmp_path / "a.png"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot read prompts .*prompts.json: broken JSON at line 1"),
        ("{}", "prompts.json: expected a list of prompts, got dict"),
        ('[{"prompt": 1}]', "prompts.json: item 0 has no text under 'prompt'"),
    ],
)
def test_a_file_that_holds_no_prompts_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "prompts.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_prompts(tmp_path / "prompts.json")


def test_prompts_may_be_json_lines_or_one_object(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('\ufeff{"prompt": "a"}\r\n\r\n{"prompt": "b", "image": "x.png"}\r\n')
    assert [item["prompt"] for item in read_prompts(path)] == ["a", "b"]
    path.write_text('{"prompt": "a"}\n')
    assert read_prompts(path) == [{"prompt": "a"}]
    path.write_text('{"prompt": "a"}\n\n{"prompt": 1}\n')
    with pytest.raises(ValueError, match=r"item 1 \(line 3\) has no text under 'prompt'"):
        read_prompts(path)
