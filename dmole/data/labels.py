"""Locates the tokens of the answers among the tokens of a conversation."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from dmole.data.rendering import AnswerSpan, Rendered

IGNORED = -100
"""Label of tokens without loss, as in the cross entropy of torch and transformers."""


def answer_tokens(labels: Tensor) -> Tensor:
    """Return the number of tokens over which the loss of a batch is averaged, a scalar.

    Args:
        labels: ``(B, T)``, `IGNORED` for tokens without loss. A token is predicted from the one
            before it, so the label of the first position is never used.
    """
    return answer_positions(labels).sum()


def answer_positions(labels: Tensor) -> Tensor:
    """Return which positions predict an answer token, ``(B, T - 1)``."""
    return labels[:, 1:] != IGNORED


class Targets(NamedTuple):
    """The ``M`` answer tokens of a batch and the positions that predict them.

    Args:
        positions: ``(M,)`` positions in ``(B, T)``, flattened, in order.
        samples: ``(M,)`` row of the batch.
        tokens: ``(M,)`` ids of the answer tokens.
        shape: ``(B, T)``.
    """

    positions: Tensor
    samples: Tensor
    tokens: Tensor
    shape: torch.Size

    @classmethod
    def of(cls, labels: Tensor, positions: Tensor | None = None) -> Targets:
        """Return the targets of labels.

        Args:
            labels: ``(B, T)``, `IGNORED` for tokens without loss.
            positions: The positions, if they are known; else the host waits for the labels.
        """
        if positions is None:
            positions = predicting_positions(labels)
        samples = torch.div(positions, labels.shape[1], rounding_mode="floor")
        tokens = labels.flatten().index_select(0, positions + 1)
        return cls(positions, samples, tokens, labels.shape)


def predicting_positions(labels: Tensor) -> Tensor:
    """Return the positions that predict an answer token in the flattened labels, ``(M,)``."""
    rows = torch.zeros_like(labels, dtype=torch.bool)  # (B, T)
    rows[:, :-1] = answer_positions(labels)
    return rows.flatten().nonzero().flatten()


def answer_labels(
    inputs: dict[str, Tensor], offsets: Tensor, rendered: list[Rendered], tokenizer: Any
) -> Tensor:
    """Return the token ids of the answers and their end tokens, `IGNORED` elsewhere.

    A processor replaces one placeholder with many image tokens, so character positions in the
    rendered text and in the tokenized text differ by an unknown shift. The end token of
    an answer occurs equally often in both: its n-th occurrence gives the shift around the answer.

    Args:
        inputs: Output of the processor with ``input_ids`` and ``attention_mask``, ``(B, T)``.
        offsets: First and one-past-last character of each token, ``(B, T, 2)``.
        rendered: The texts passed to the processor, one per row.
        tokenizer: The tokenizer of the processor.

    Returns:
        Labels of shape ``(B, T)``.

    Raises:
        ValueError: If the numbers of end tokens in the text and in the tokens differ.
    """
    ids = inputs["input_ids"]
    labels = torch.full_like(ids, IGNORED)
    for row, conversation in enumerate(rendered):
        # padding may use the end token; a token added by the tokenizer has no characters
        real = inputs["attention_mask"][row].bool() & (offsets[row, :, 1] > offsets[row, :, 0])
        for answer in conversation.answers:
            end = _end_position(ids[row], real, conversation.text, answer, tokenizer)
            shift = int(offsets[row, end, 0]) - _token_start(conversation.text, answer, tokenizer)
            inside = real & (offsets[row, :, 0] >= answer.start + shift)
            inside[end + 1 :] = False
            labels[row, inside] = ids[row, inside]
    return labels


def _end_position(ids: Tensor, real: Tensor, text: str, answer: AnswerSpan, tokenizer: Any) -> int:
    token_id = tokenizer.convert_tokens_to_ids(answer.end_token)
    positions = ((ids == token_id) & real).nonzero().flatten()
    expected = text.count(answer.end_token)
    if len(positions) != expected:
        raise ValueError(
            f"the processor kept {len(positions)} of {expected} end tokens {answer.end_token!r}"
        )
    return int(positions[text.count(answer.end_token, 0, answer.end)])


def _token_start(text: str, answer: AnswerSpan, tokenizer: Any) -> int:
    """Return the first character of the end token; some tokens include the space before them."""
    token_id = tokenizer.convert_tokens_to_ids(answer.end_token)
    if tokenizer.added_tokens_decoder[token_id].lstrip:
        return len(text[: answer.end].rstrip())
    return answer.end
