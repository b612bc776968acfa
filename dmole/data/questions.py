"""Tokenizes the questions of samples, which the router embeds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from dmole.data.bounded_cache import BoundedCache
from dmole.data.sample import IMAGE_PLACEHOLDER, Sample

_KEPT = 4 * 2**20
"""Characters and tokens of questions that are kept."""


class Questions:
    """Turns the first user turns of samples into tokens, without images and template.

    Args:
        tokenizer: A tokenizer with a padding and an end-of-sequence token.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._kept: BoundedCache[str, tuple[int, ...]] = BoundedCache(_KEPT)

    def __call__(self, samples: Iterable[Sample]) -> dict[str, Tensor]:
        """Return ``input_ids`` and ``attention_mask``, ``(B, Q)``, right padded."""
        rows = [list(self._tokens(_first_question(sample))) for sample in samples]
        pad = self._tokenizer.pad
        padded = pad({"input_ids": rows}, padding_side="right", return_tensors="pt")
        return {"input_ids": padded["input_ids"], "attention_mask": padded["attention_mask"]}

    def _tokens(self, text: str) -> tuple[int, ...]:
        known = self._kept.get(text)
        if known is not None:
            return known
        tokenizer = self._tokenizer
        tokens = tuple(tokenizer(text, return_attention_mask=False)["input_ids"])
        bos = tokenizer.bos_token_id
        if bos is not None and (not tokens or tokens[0] != bos):
            tokens = (bos, *tokens)
        # an embedding averages over tokens, so there must be one
        tokens = tokens or (tokenizer.eos_token_id,)
        self._kept.put(text, tokens, len(text) + len(tokens))
        return tokens


def _first_question(sample: Sample) -> str:
    text = next(turn.text for turn in sample.turns if turn.role == "user")
    return text.replace(IMAGE_PLACEHOLDER, "").strip()
