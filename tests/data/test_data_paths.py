from __future__ import annotations

import doctest
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from dmole.data import paths, prompts
from dmole.data.paths import alternatives, find_path
from dmole.data.prompts import apply_prompt


@pytest.mark.parametrize("module", [paths, prompts], ids=lambda m: m.__name__)
def test_the_examples_of_the_docstrings_hold(module: ModuleType) -> None:
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a.json", ["a.json"]),
        ("{a,b}.json", ["a.json", "b.json"]),
        ("{x/,}a", ["x/a", "a"]),
        ("{a,b}/{c,d}", ["a/c", "a/d", "b/c", "b/d"]),
        ("{only}.json", ["{only}.json"]),
        ("{a,{b,c}}", ["a", "b", "a", "c"]),
    ],
)
def test_braces_are_alternatives_in_their_order(pattern: str, expected: list[str]) -> None:
    assert alternatives(pattern) == expected


def test_the_first_alternative_that_exists_is_taken(tmp_path: Path) -> None:
    for name in ("b.json", "c.json"):
        (tmp_path / name).write_text("[]")
    assert find_path(tmp_path, "{a,b,c}.json", "data file") == tmp_path / "b.json"
    assert find_path(tmp_path, "{nothing,.}", "folder") == tmp_path


def test_all_places_that_were_looked_at_are_named_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        find_path(tmp_path, "{a,b}/{c,d}.json", "data file")
    message = str(caught.value)
    assert message.startswith("data file: none of these exists: ")
    assert all(str(tmp_path / name) in message for name in ("a/c.json", "b/d.json"))
    assert "\n" not in message


def test_a_long_list_of_places_is_cut(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="and 19 more"):
        find_path(tmp_path, "{a,b,c}{a,b,c}{a,b,c}", "data file")


def test_a_single_missing_path_is_named_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"data file .*a\.json does not exist"):
        find_path(tmp_path, "a.json", "data file")


def test_a_prompt_puts_in_keys_of_the_item_once() -> None:
    item = {"question": "Is {it} so?", "place": "here", "choices": ["x", 2]}
    text = apply_prompt(item, "{place}: {question}\n{options} {not a key}")["text"]
    assert text == "here: Is {it} so?\nA. x\nB. 2 {not a key}"


def test_a_prompt_leaves_conversations_alone() -> None:
    item = {"conversations": [{"from": "human", "value": "x"}]}
    assert apply_prompt(item, "{question}!") == item


@pytest.mark.parametrize(
    ("item", "prompt", "message"),
    [
        ({"question": "x"}, "{place}", "has no text 'place', which its prompt names"),
        ({"image": "x"}, "{question}", "has no 'text' or 'question'"),
        ({"question": "x"}, "{options}", "'choices' must be a list"),
        ({"question": "x", "choices": ["a"] * 27}, "{options}", "1 to 26 options"),
        ({"question": "x", "box": [1]}, "{box}", "has no text 'box'"),
    ],
)
def test_a_prompt_that_does_not_fit_is_refused(
    item: dict[str, Any], prompt: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        apply_prompt(item, prompt)
