"""Messages of one line."""

from __future__ import annotations

import doctest

from dmole import messages
from dmole.messages import first_line, one_line


def test_the_examples_hold() -> None:
    result = doctest.testmod(messages)
    assert result.attempted
    assert result.failed == 0


def test_a_line_can_be_written_anywhere() -> None:
    assert one_line("a\x00\ud800\r\n b").encode("utf-8") == b"a\x00\\ud800 b"
    assert one_line("") == ""


def test_an_error_without_a_message_is_named_by_its_type() -> None:
    assert first_line(KeyboardInterrupt()) == "KeyboardInterrupt"
    assert one_line(ValueError(" \n")) == "ValueError"
