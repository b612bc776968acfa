from __future__ import annotations

import pytest

from dmole.callbacks.answers import ORDERED, WEIGHTS, AnswerBook

PLAN = {"x": ("a", "b"), "y": ()}
BEFORE = {"a": "1", "b": "2"}


@pytest.fixture
def book() -> AnswerBook:
    book = AnswerBook()
    book.put("x", ("b", "a"), BEFORE, "red")
    book.put("y", (), BEFORE, "blue")
    return book


def test_an_answer_is_found_whatever_the_order_of_its_experts(book: AnswerBook) -> None:
    assert book.get("x", ("a", "b"), BEFORE) == "red"
    assert book.missing(["x", "y"], PLAN, BEFORE) == []


def test_where_the_order_of_experts_matters_an_answer_is_found_under_its_own_alone() -> None:
    book, ordered = AnswerBook(), {**BEFORE, ORDERED: "yes"}
    book.put("x", ("b", "a"), ordered, "red")
    assert book.missing(["x"], {"x": ("a", "b")}, ordered) == [0]
    other = AnswerBook()
    other.load_state_dict(book.state_dict())
    assert other.get("x", ("b", "a"), ordered) == "red"


def test_samples_of_an_expert_that_changed_are_answered_again(book: AnswerBook) -> None:
    assert book.missing(["x", "y"], PLAN, {"a": "1", "b": "other"}) == [0]


def test_a_saved_book_knows_the_same_answers(book: AnswerBook) -> None:
    other = AnswerBook()
    other.load_state_dict(book.state_dict())
    assert other.missing(["x", "y"], PLAN, BEFORE) == []
    book.clear()
    assert book.missing(["x", "y"], PLAN, BEFORE) == [0, 1]


def test_only_answers_under_gate_sets_in_use_are_kept(book: AnswerBook) -> None:
    book.put("x", ("a",), BEFORE, "green")
    book.put("x", ("b",), BEFORE, "pink")
    now = {"a": "1", "b": "other"}  # b went on training
    routed, oracle = {"x": ("a",), "y": ("b",)}, {"x": ("a", "b"), "y": ()}
    book.keep_only([(routed, now), (oracle, now)])
    assert len(book.state_dict()) == 2
    assert book.get("x", ("a",), now) == "green"
    assert book.get("y", (), now) == "blue"
    assert book.missing(["x", "y"], PLAN, BEFORE) == [0]


def test_answers_under_other_weights_are_others() -> None:
    book, plan = AnswerBook(), {"x": ("a", "b")}
    warm, cold = ({"a": "1", "b": "2", WEIGHTS: digest} for digest in ("warm", "cold"))
    book.put("x", ("a", "b"), warm, "green")
    assert book.missing(["x"], plan, warm) == []
    assert book.missing(["x"], plan, cold) == book.missing(["x"], plan, {"a": "1", "b": "2"}) == [0]
    book.keep_only([(plan, warm), (plan, cold)])
    assert book.get("x", ("b", "a"), warm) == "green"
