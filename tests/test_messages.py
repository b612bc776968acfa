"""Messages of one line."""

from __future__ import annotations

import doctest
import json

import pytest

from dmole import messages
from dmole.messages import excerpt, first_line, json_text, one_line, visible


def test_the_examples_hold() -> None:
    result = doctest.testmod(messages)
    assert result.attempted
    assert result.failed == 0


def test_a_line_can_be_written_anywhere() -> None:
    assert one_line("a\x00\ud800\r\n b").encode("utf-8") == b"a\\x00\\ud800 b"
    assert one_line("") == ""


def test_an_error_without_a_message_is_named_by_its_type() -> None:
    assert first_line(KeyboardInterrupt()) == "KeyboardInterrupt"
    assert one_line(ValueError(" \n")) == "ValueError"


@pytest.mark.parametrize(
    "text", ["\x1b[31m", "\x07", "\x9b", "\x7f", "\u202e", "\u2066", "\u200b", "\ufeff", "\ud800"]
)
def test_a_character_that_acts_on_a_terminal_is_written_as_its_escape(text: str) -> None:
    assert one_line(f"a{text}b").isprintable()
    assert first_line(ValueError(f"a{text}b")).isprintable()
    assert excerpt(f"a{text}b").isprintable()
    shown = json_text({"key": [f"ü{text}b"]})
    assert shown.replace("\n", "").isprintable()
    assert json.loads(shown) == {"key": [f"ü{text}b"]}
    assert "ü" in shown


def test_letters_and_spaces_of_all_scripts_stay() -> None:
    text = "größe 你好\u3000жизнь\u00a0x"
    assert visible(text) == text
    assert visible("a\nb\t", keep="\n") == "a\nb\\t"


def test_an_excerpt_is_cut() -> None:
    assert excerpt("x" * 10**6, 5) == "'xxxx..."
    assert excerpt({"a": [1]}) == "{'a': [1]}"
