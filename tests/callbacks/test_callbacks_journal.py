"""Answers of a pass that was cut short are found again, batch by batch."""

from __future__ import annotations

import pytest

from dmole.callbacks.answers import AnswerJournal

PLAN = {"a": ("one",), "b": (), "c": ("two", "one")}
DIGESTS = {"one": "11", "two": "22"}


def written(path) -> AnswerJournal:
    journal = AnswerJournal()
    assert journal.open(path, "stage 1 routed", PLAN, DIGESTS) == {}
    journal.add(["a", "b"], ["yes\n", "ünïcode"], [("one",), ()])
    journal.add(["c"], ["no"], [("one", "two")])
    return journal


def test_whole_batches_are_found_again_and_a_torn_line_is_not(tmp_path):
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
def test_answers_of_other_passes_or_experts_are_not_taken(tmp_path, name, plan, digests, left):
    path = tmp_path / "answers.jsonl"
    written(path)
    assert set(AnswerJournal().open(path, name, plan, digests)) == left


def test_a_journal_that_is_done_with_leaves_nothing(tmp_path):
    path = tmp_path / "answers.jsonl"
    written(path).remove()
    assert not path.exists()


def test_a_journal_that_is_not_open_takes_nothing():
    with pytest.raises(RuntimeError, match="not open"):
        AnswerJournal().add(["a"], ["x"], [()])
