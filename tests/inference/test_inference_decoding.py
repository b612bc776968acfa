"""The end of each answer of a batch, and its text while it grows."""

from __future__ import annotations

import torch

from dmole.inference.decoding import AnswerProgress

_WORDS = {1: "a", 2: " b", 3: "\N{REPLACEMENT CHARACTER}", 4: " c", 9: ""}
_PAD, _END = 0, 9


def _decode(answers: list[list[int]]) -> list[str]:
    return ["".join(_WORDS[token] for token in tokens).strip() for tokens in answers]


def _feed(progress: AnswerProgress, *columns: list[int]) -> list[list[bool]]:
    return [progress(torch.tensor(column)[:, None], None).tolist() for column in columns]


def test_answers_end_at_their_limit_or_at_the_end_token_and_padding_is_ignored() -> None:
    progress = AnswerProgress([2, 5], [_END], _decode)
    done = _feed(progress, [1, 1], [2, _END], [_PAD, _PAD])
    assert done == [[False, False], [True, True], [True, True]]
    assert [answer.tokens for answer in progress.answers] == [[1, 2], [1, _END]]
    assert [answer.finish_reason for answer in progress.answers] == ["length", "stop"]
    assert progress.finish() == ["a b", "a"]


def test_whole_answers_end_as_those_that_grow() -> None:
    whole = AnswerProgress([5, 5], [_END], _decode)
    whole.take(torch.tensor([[1, 2, _END, _PAD], [1, 2, 4, 4]]))
    assert [answer.tokens for answer in whole.answers] == [[1, 2, _END], [1, 2, 4, 4]]
    assert [answer.finish_reason for answer in whole.answers] == ["stop", None]


def test_a_character_is_passed_on_once_it_is_complete() -> None:
    pieces: list[tuple[int, str]] = []

    def on_text(index: int, piece: str) -> bool:
        pieces.append((index, piece))
        return True

    progress = AnswerProgress([9], [_END], _decode, on_text)
    _feed(progress, [1], [3])
    assert pieces == [(0, "a")]
    progress.answers[0].tokens[-1] = 2  # the rest of the character has come
    _feed(progress, [_END])
    assert progress.finish() == ["a b"]
    assert pieces == [(0, "a"), (0, " b")]


def test_a_cancelled_answer_ends_at_once() -> None:
    progress = AnswerProgress([9, 9], [_END], _decode, lambda index, piece: index == 1)
    assert _feed(progress, [1, 1], [2, 2]) == [[True, False], [True, False]]
    assert [answer.finish_reason for answer in progress.answers] == ["cancelled", None]
    assert progress.finish() == ["a", "a b"]
