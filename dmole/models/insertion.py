"""Places for soft prompt tokens in a processed batch.

The batch gets placeholder tokens, so that the base model computes position ids, token types and
attention masks as for any text. Only their embeddings are replaced,
see :mod:`dmole.experts.soft_prompts`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dmole.data.labels import Targets
from dmole.experts.soft_prompts import NONE
from dmole.transfer import to_device

Side = Literal["left", "right"]
"""Side on which a batch is padded."""

FAMILIES = frozenset(
    {
        *("llava", "llava_next", "llava_onevision", "internvl", "qwen2_vl", "qwen2_5_vl"),
        *("qwen3_vl", "idefics3", "smolvlm", "paligemma", "gemma3", "mllama"),
    }
)
"""Families in which a soft prompt equal to the embeddings of tokens acts like these tokens."""

_PER_TOKEN = ("attention_mask", "token_type_ids", "mm_token_type_ids", "cross_attention_mask")
"""Inputs with one entry per token, which is 0 for padding and for text."""


def check_insertion(family: str) -> None:
    """Refuse a model family into which soft prompts cannot be inserted.

    Args:
        family: ``model_type`` of the config.

    Raises:
        ValueError: If the family is not one of `FAMILIES`; names it.
    """
    if family not in FAMILIES:
        raise ValueError(
            f"soft prompts cannot be put into the input of a {family} model: it is not among the "
            f"families for which this is exact ({', '.join(sorted(FAMILIES))})"
        )


@dataclass(frozen=True)
class Insertion:
    """A batch with placeholders for the soft prompts of its samples.

    The soft prompts of a sample come before its first token, or after it if that is the token that
    begins a sequence. Samples with fewer soft prompt tokens than others are padded.

    Args:
        inputs: The batch, longer by ``N`` tokens.
        index: ``(B, T + N)`` row of the joined soft prompts at each place of one, `NONE` elsewhere.
        shifts: ``(B, T)`` new position of every old token.
    """

    inputs: dict[str, Tensor]
    index: Tensor
    shifts: Tensor

    @classmethod
    def of(
        cls, inputs: dict[str, Tensor], rows: Tensor, side: Side, pad: int, begin: int | None
    ) -> Insertion:
        """Insert placeholders into a batch.

        Args:
            inputs: Output of the processor for ``B`` samples of ``T`` tokens.
            rows: ``(B, N)`` rows of the joined soft prompts, `NONE` where a sample has fewer.
            side: Side on which the batch is padded.
            pad: Id of the padding token, which all placeholders have.
            begin: Id of the token that begins a sequence; None if there is none.

        Raises:
            ValueError: If the batch has an input with one entry per token of unknown meaning.
        """
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        (samples, length), more = ids.shape, rows.shape[1]
        _check_inputs(inputs, ids.shape)
        rows = to_device(rows, ids.device)
        counts = (rows != NONE).sum(dim=1, keepdim=True)  # (B, 1)
        first = mask.bool().int().argmax(dim=1, keepdim=True)  # (B, 1)
        starts = first + (ids.gather(1, first) == begin) if begin is not None else first
        offset = more - counts if side == "left" else torch.zeros_like(counts)
        place = torch.arange(length + more, device=ids.device) - offset  # (B, T + N)
        slot = place - starts
        inserted = (slot >= 0) & (slot < counts)
        old = torch.where(slot < 0, place, place - counts)
        source = old.where((old >= 0) & (old < length) & ~inserted, length)  # the last is filler
        found = dict(inputs)
        found["input_ids"] = _taken(ids, source, pad)
        for key in _PER_TOKEN:
            if key in inputs:
                found[key] = _taken(inputs[key], source, 0)
        found["attention_mask"] = found["attention_mask"].masked_fill(inserted, 1)
        index = rows.gather(1, slot.clamp(0, more - 1)).masked_fill(~inserted, NONE)
        tokens = torch.arange(length, device=ids.device).expand(samples, length)  # (B, T)
        shifts = tokens + offset + torch.where(tokens < starts, 0, counts)
        return cls(found, index, shifts)

    def moved(self, targets: Targets) -> Targets:
        """Return the targets of the batch in the longer one."""
        shape = self.index.shape
        columns = self.shifts.flatten().index_select(0, targets.positions)  # (M,)
        positions = targets.samples * shape[1] + columns
        return targets._replace(positions=positions, shape=shape)

    def check_length(self, limit: int | None) -> None:
        """Raise a `ValueError` if a sample is longer than the base model allows.

        Args:
            limit: Maximum number of tokens; None sets no limit.
        """
        if limit is None or self.index.shape[1] <= limit:
            return
        most = int(self.inputs["attention_mask"].sum(dim=1).max())
        if most > limit:
            raise ValueError(
                f"a sample has {most} tokens with its soft prompts, the base model takes {limit}: "
                "lower data.max_length or the tokens of the prompts"
            )


def _taken(values: Tensor, source: Tensor, fill: int) -> Tensor:
    """Return values ``(B, T, ...)`` at ``source`` ``(B, S)``; position ``T`` is the filler."""
    filler = values.new_full((len(values), 1, *values.shape[2:]), fill)
    samples = torch.arange(len(values), device=values.device)[:, None]
    return torch.cat([values, filler], dim=1)[samples, source]


def _check_inputs(inputs: dict[str, Tensor], shape: torch.Size) -> None:
    for key, value in inputs.items():
        if key in ("input_ids", *_PER_TOKEN) or key.startswith(("pixel", "image")):
            continue
        if value.shape[:2] == shape:
            raise ValueError(f"soft prompts cannot be inserted: input {key} has unknown entries")
