"""Pooling hidden states into router embeddings, and a cache of the embeddings by sample."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def masked_max_pool(hidden: Tensor, mask: Tensor) -> Tensor:
    """Return the maximum over the unmasked positions.

    Args:
        hidden: States of shape ``(B, S, D)``.
        mask: Non-zero where a position is valid, shape ``(B, S)``.

    Returns:
        Float32 of shape ``(B, D)``; a row without a valid position is 0.

    Raises:
        ValueError: If the shapes do not match.

    Source:
        D-MoLE, 2025, https://arxiv.org/abs/2506.11672. The release pools over padding too, so
        that an embedding depends on its batch mates; this one does not.
    """
    if hidden.ndim != 3 or mask.shape != hidden.shape[:2]:
        raise ValueError(
            f"expected hidden (B, S, D) and mask (B, S), "
            f"got {tuple(hidden.shape)} and {tuple(mask.shape)}"
        )
    valid = mask.to(device=hidden.device, dtype=torch.bool)  # (B, S)
    if hidden.shape[1] == 0:
        return hidden.new_zeros(hidden.shape[0], hidden.shape[2], dtype=torch.float32)
    pooled = hidden.float().masked_fill(~valid.unsqueeze(-1), float("-inf")).amax(dim=1)  # (B, D)
    return pooled.masked_fill(~valid.any(dim=1, keepdim=True), 0.0)


def combine(vision: Tensor, text: Tensor) -> Tensor:
    """Return the embedding: vision and text concatenated.

    Args:
        vision: Pooled vision states of shape ``(B, Dv)``, zeros for a sample without images.
        text: Pooled text states of shape ``(B, Dl)``.

    Returns:
        Float32 of shape ``(B, Dv + Dl)``.

    Source:
        D-MoLE, 2025, https://arxiv.org/abs/2506.11672.
    """
    return torch.cat((vision.float(), text.float()), dim=-1)  # (B, Dv + Dl)


class EmbeddingCache:
    """One float32 row per sample, computed once because the base model never changes.

    Rows live on the CPU. Ids of different tasks and splits must differ.
    """

    def __init__(self) -> None:
        self._rows: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, ids: Sequence[str], rows: Tensor) -> None:
        """Store the rows of new ids; existing ids keep their first row.

        Args:
            ids: One per row.
            rows: Shape ``(N, D)``.

        Raises:
            ValueError: If lengths or widths disagree or a row is not finite.
        """
        if rows.ndim != 2 or len(ids) != rows.shape[0]:
            raise ValueError(f"{len(ids)} ids do not fit rows of shape {tuple(rows.shape)}")
        width = next(iter(self._rows.values())).shape[0] if self._rows else rows.shape[1]
        if rows.shape[1] != width:
            raise ValueError(f"embeddings have {width} dimensions here, got {rows.shape[1]}")
        kept = rows.detach().to(device="cpu", dtype=torch.float32)
        for key, row in zip(ids, kept, strict=True):
            if key in self._rows:
                continue
            if not torch.isfinite(row).all():
                raise ValueError(f"embedding of sample {key} is not finite")
            self._rows[key] = row.clone()

    def missing(self, ids: Iterable[str]) -> list[str]:
        """Return the ids without a row, in order, each once."""
        return [key for key in dict.fromkeys(ids) if key not in self._rows]

    def get_many(self, ids: Sequence[str]) -> Tensor:
        """Return the rows of the ids, shape ``(N, D)``, float32 on the CPU.

        Raises:
            KeyError: If an id has no row.
        """
        for key in ids:
            if key not in self._rows:
                raise KeyError(f"sample {key} has no embedding")
        if not ids:
            return torch.empty(0, next(iter(self._rows.values())).shape[0] if self._rows else 0)
        return torch.stack([self._rows[key] for key in ids])

    def forget(self, *prefixes: str) -> None:
        """Drop the rows of all ids that begin with one of the prefixes.

        A dropped row is computed again on demand, with the same result.
        """
        self._rows = {k: row for k, row in self._rows.items() if not k.startswith(prefixes)}
