"""Generation of a batch whose answers end independently: own lengths, cancelling, partial text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

OnText = Callable[[int, str], bool]
"""Receives the index of an answer and its next piece of text; returns whether to continue it."""

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
"""Decoded from the first bytes of a character whose last bytes are still missing."""


@dataclass
class Generated:
    """The answer to one prompt.

    Args:
        tokens: Token ids so far, with the token that ends the answer.
        finish_reason: Why it ended; None while it continues.
        sent: Text that has been passed on.
    """

    tokens: list[int] = field(default_factory=list)
    finish_reason: Literal["stop", "length", "cancelled"] | None = None
    sent: str = ""


class AnswerProgress(StoppingCriteria):  # type: ignore[misc]
    """Ends each answer of a batch on its own and passes its text on while it grows.

    Args:
        limits: Maximum number of tokens of each answer.
        ends: Ids of the tokens that end an answer.
        decode: Returns the texts of lists of token ids.
        on_text: Receives the text; None passes nothing on.
    """

    def __init__(
        self,
        limits: Sequence[int],
        ends: Sequence[int],
        decode: Callable[[list[list[int]]], list[str]],
        on_text: OnText | None = None,
    ) -> None:
        self.answers = [Generated() for _ in limits]
        self._limits = limits
        self._ends = frozenset(ends)
        self._decode = decode
        self._on_text = on_text

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> torch.BoolTensor:
        """Return ``(B,)``: whether each answer is complete."""
        self._add(input_ids[:, -1].tolist())
        self._pass_on()
        done = [answer.finish_reason is not None for answer in self.answers]
        return torch.tensor(done, device=input_ids.device)  # type: ignore[return-value]

    def take(self, tokens: Tensor) -> None:
        """Take whole answers ``(B, T)``, padded on the right, instead of one token at a time."""
        for column in tokens.T.tolist():
            self._add(column)

    def _add(self, tokens: Sequence[int]) -> None:
        """Add the next token of each answer; behind the end of an answer it is padding."""
        for answer, limit, token in zip(self.answers, self._limits, tokens, strict=True):
            if answer.finish_reason is None:
                answer.tokens.append(token)
                if token in self._ends:
                    answer.finish_reason = "stop"
                elif len(answer.tokens) >= limit:
                    answer.finish_reason = "length"

    def _pass_on(self) -> None:
        """Pass the new text of all answers on, without what a later token may still change."""
        if self._on_text is None:
            return
        rows = [row for row, answer in enumerate(self.answers) if answer.finish_reason is None]
        texts = self._decode([self.answers[row].tokens for row in rows]) if rows else []
        for row, text in zip(rows, texts, strict=True):
            answer, text = self.answers[row], text.rstrip(_INCOMPLETE).rstrip()
            if text.startswith(answer.sent) and len(text) > len(answer.sent):
                piece, answer.sent = text[len(answer.sent) :], text
                if not self._on_text(row, piece):
                    answer.finish_reason = "cancelled"

    def finish(self) -> list[str]:
        """Return the texts of all answers, after passing on what is left of them."""
        texts = self._decode([answer.tokens for answer in self.answers])
        for row, (answer, text) in enumerate(zip(self.answers, texts, strict=True)):
            left = text[len(answer.sent) :] if text.startswith(answer.sent) else ""
            if self._on_text is not None and left and answer.finish_reason != "cancelled":
                self._on_text(row, left)
                answer.sent = text
        return texts


def as_criteria(progress: AnswerProgress) -> StoppingCriteriaList:
    """Return the argument ``stopping_criteria`` of ``generate``."""
    return StoppingCriteriaList([progress])
