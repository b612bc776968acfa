"""A query and its response, with a history: ms-swift, and instruction data sets."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from dmole.data.sample import Turn
from dmole.data.shapes.answers import choice_keys, is_list_of_answers, read_answers
from dmole.data.shapes.chat import Utterance, assemble
from dmole.data.shapes.checks import check_turn, refuse_unsupported
from dmole.data.shapes.shape import Conversation

_QUERIES = ("query", "prompt", "problem", "question")
_RESPONSES = ("response", "solution", "completion", "answer")
_PREFERENCES = ("chosen", "rejected")


class QueryShape:
    """A query, its response and a ``history`` of earlier pairs."""

    name = "query"
    keys = (
        "'query', 'prompt', 'problem' or 'question', and 'response', 'solution', 'completion' or "
        "'answer'; 'history' as pairs"
    )

    def matches(self, item: Mapping[str, Any]) -> bool:
        """Return whether the item has a query and a response."""
        if "conversations" in item or isinstance(item.get("prompt"), list | tuple):
            return False
        answered = any(key in item for key in (*_RESPONSES, *_PREFERENCES))
        has_query = any(key in item for key in _QUERIES[:3])
        return (has_query and answered) or is_query_by_question(item)

    def reads(self, item: Mapping[str, Any]) -> Collection[str]:
        """Return the keys of the query, its response and its history."""
        query, response = _one_of(item, _QUERIES), _one_of(item, _RESPONSES)
        return query, response, "history", *choice_keys(item, response)

    def read(self, item: Mapping[str, Any]) -> Conversation:
        """Return the conversation of an item.

        Raises:
            ValueError: If the item is malformed or holds what is not supported.
        """
        refuse_unsupported(item, chat=True)
        return read_query(item, _one_of(item, _QUERIES), _one_of(item, _RESPONSES))


def read_query(item: Mapping[str, Any], query: str, response: str) -> Conversation:
    """Return the conversation of a query, its response and its history.

    Args:
        item: The item.
        query: Key of the query.
        response: Key of the response: a text, or a list of accepted answers.

    Raises:
        ValueError: If one of them or the history is malformed.
    """
    if not isinstance(item[query], str):
        raise ValueError(f"{query!r} must be a string, got {type(item[query]).__name__}")
    turns = _history(item.get("history"))
    answers = read_answers(item, response)
    answer = next(answer for answer in answers if answer.strip())
    turns.append(check_turn("user", item[query], len(turns), query))
    turns.append(check_turn("assistant", answer, len(turns), response))
    references = answers if is_list_of_answers(item, response) else ()
    used = {query, response, "history"}
    return assemble(item, [Utterance.of_text(turn) for turn in turns], used, references)


def is_query_by_question(item: Mapping[str, Any]) -> bool:
    """Return whether the key ``question`` has its answer under a key of query and response."""
    if "question" not in item or "text" in item or "conversations" in item:
        return False
    answered = any(key in item for key in ("answer", "answers", "answer_bbox", "choices"))
    return not answered and any(key in item for key in (*_RESPONSES, *_PREFERENCES))


def _one_of(item: Mapping[str, Any], keys: tuple[str, ...]) -> str:
    present = [key for key in keys if item.get(key) is not None]
    if len(present) > 1:
        raise ValueError(f"has both {present[0]!r} and {present[1]!r}: one of them is expected")
    if not present:
        raise ValueError(f"has no {' or '.join(map(repr, keys))} with content")
    return present[0]


def _history(value: Any) -> list[Turn]:
    """Return the turns of earlier pairs."""
    if value is None:
        return []
    if not isinstance(value, list | tuple):
        raise ValueError("'history' must be a list of pairs of query and response")
    turns: list[Turn] = []
    for number, pair in enumerate(value):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise ValueError(f"'history' {number} must be a pair of query and response")
        turns.append(check_turn("user", pair[0], len(turns), "history"))
        turns.append(check_turn("assistant", pair[1], len(turns), "history"))
    return turns
