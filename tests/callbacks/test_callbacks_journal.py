"""Answers of a pass that was cut short are found again, batch by batch."""

from __future__ import annotations

from pathlib import Path

import pytest

from dmole.callbacks.answers import AnswerJournal

PLAN = {"a": ("one",), "b": (), "c": ("two", "one")}
DIGESTS = {"one": "11", "two": "22"}


def written(path: Path) -> AnswerJournal:
    journal = AnswerJournal()
    assert journal.open(path, "stage 1 routed", PLAN, DIGESTS) == {}
    journal.add(["a", "b"], ["yes\n", "ünïcode"], [("one",), ()])
    journal.add(["c"], ["no"], [("one", "two")])
    return journal


def test_whole_batches_are_found_again_and_a_torn_line_is_not(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    written(path)
    known = {"a": "yes\n", "b": "ünïcode", "c": "no"}
    assert AnswerJournal().open(path, "stage 1 routed", PLAN, DIGESTS) == known
    path.write_bytes(path.read_bytes()[:-4])
    journal = AnswerJournal()
    assert journal.open(path, "stage 1 routed", PLAN, DIGESTS) == {"a": "yes\n", "b": "ünïcode"}
    journal.add(["c"], ["no"], [("two", "one")])
    assert AnswerJournal().open(path, "stage 1 routed", PLAN, DIGESTS) == known


@pytest.mark.parametrize(
    ("name", "plan", "digests", "left"),
    [
        ("stage 1 oracle", PLAN, DIGESTS, set()),
        ("stage 1 routed", PLAN | {"a": ()}, DIGESTS, {"c"}),
        ("stage 1 routed", {"c": ("two", "one")}, DIGESTS, {"c"}),
        ("stage 1 routed", PLAN, {"one": "11", "two": "33"}, {"a", "b"}),
    ],
)
def test_answers_of_other_passes_or_experts_are_not_taken(
    tmp_path: Path,
    name: str,
    plan: dict[str, tuple[str, ...]],
    digests: dict[str, str],
    left: set[str],
) -> None:
    path = tmp_path / "answers.jsonl"
    written(path)
    assert set(AnswerJournal().open(path, name, plan, digests)) == left


@pytest.mark.parametrize("damage", [b"\0\0\0\n", b"[[1, 2]\n", b"\xff\n", b"[" * 10**5 + b"\n"])
def test_what_follows_a_damaged_line_is_answered_again(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "answers.jsonl"
    written(path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], damage, *lines[2:]]))
    assert set(AnswerJournal().open(path, "stage 1 routed", PLAN, DIGESTS)) == {"a", "b"}
    path.write_bytes(damage + b"".join(lines))
    assert AnswerJournal().open(path, "stage 1 routed", PLAN, DIGESTS) == {}


@pytest.mark.parametrize("line", [b"[[1, 2]]\n", b"3\n", b"[[], null]\n", b'["", "0"]\n'])
def test_a_line_of_another_form_is_left_out(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "answers.jsonl"
    written(path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], line, *lines[2:]]))
    assert set(AnswerJournal().open(path, "stage 1 routed", PLAN, DIGESTS)) == {"a", "b", "c"}


def test_an_answer_that_was_changed_is_given_again(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    written(path)
    text = path.read_text(encoding="utf-8")
    assert text.count('"no"') == 1
    path.write_text(text.replace('"no"', '"on"'), encoding="utf-8")
    assert set(AnswerJournal().open(path, "stage 1 routed", PLAN, DIGESTS)) == {"a", "b"}


def test_a_journal_that_is_deleted_meanwhile_begins_again(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "answers.jsonl"
    journal = written(path)
    path.unlink()
    path.parent.rmdir()
    journal.add(["c"], ["no"], [("one", "two")])
    assert AnswerJournal().open(path, "stage 1 routed", PLAN, DIGESTS) == {"c": "no"}


def test_a_journal_that_is_not_open_takes_nothing() -> None:
    with pytest.raises(RuntimeError, match="not open"):
        AnswerJournal().add(["a"], ["x"], [()])
