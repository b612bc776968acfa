"""A journal of answers that was altered is read up to the first line that is not its own."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from dmole.callbacks.answers import AnswerJournal, read_journal
from experiments.odd_values import VALUES, paths_in, replaced

PLAN = {"x": ("a",), "y": (), "z": ()}
DIGESTS = {"a": "1"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    journal = AnswerJournal()
    journal.open(tmp_path / "answers_0.jsonl", "routed", PLAN, DIGESTS)
    journal.add(["x", "y"], ["red", "blue"], [("a",), ()])
    journal.add(["z"], ["green"], [()])
    return tmp_path / "answers_0.jsonl"


def read(path: Path) -> dict[str, str]:
    return read_journal(path, "routed", PLAN, DIGESTS)


def test_complete_batches_are_read(path: Path) -> None:
    assert read(path) == {"x": "red", "y": "blue", "z": "green"}
    path.write_text(path.read_text()[:-3])
    assert read(path) == {"x": "red", "y": "blue"}


def test_a_batch_with_a_value_of_another_form_does_not_count(path: Path) -> None:
    header, first, last = path.read_text().splitlines()
    batch: list[Any] = json.loads(first)
    for where in paths_in(batch):
        for value in VALUES:
            changed = json.dumps(replaced(batch, where, value))
            path.write_text(f"{header}\n{changed}\n{last}\n")
            answers = read(path)
            assert answers["z"] == "green"
            assert all(isinstance(text, str) for text in answers.values())


@pytest.mark.parametrize("line", ["[" * 100_000, "9" * 5000, "\x00", '"\\ud800', "{"])
def test_lines_after_a_broken_one_do_not_count(path: Path, line: str) -> None:
    header, first, last = path.read_text().splitlines()
    path.write_text("\n".join([header, first, line, last, ""]))
    assert read(path) == {"x": "red", "y": "blue"}


def test_a_pipe_in_place_of_a_journal_is_replaced(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)
    assert read(path) == {}
    AnswerJournal().open(path, "routed", PLAN, DIGESTS)
    assert path.is_file()
