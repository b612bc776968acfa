"""Pooling hidden states into router embeddings, and a cache of the embeddings by sample."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

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


class RowStore(Protocol):
    """Keeps embeddings outside of memory; implemented in `dmole.run.embeddings`."""

    def found(self, ids: Iterable[str]) -> dict[str, Tensor]:
        """Return the rows of the ids that are there, ``(D,)`` each."""


class EmbeddingCache:
    """One float32 row per sample, computed once because the base model never changes.

    Rows live in memory, on the CPU, and in the store if there is one. Ids of different tasks and
    splits must differ.

    Attributes:
        store: Has the rows that are not in memory; None for none.
    """

    def __init__(self) -> None:
        self._rows: dict[str, Tensor] = {}
        self.store: RowStore | None = None

    def __len__(self) -> int:
        """Return the number of rows in memory."""
        return len(self._rows)

    def add(self, ids: Sequence[str], rows: Tensor) -> None:
        """Keep the rows of new ids in memory; existing ids keep their first row.

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

    def found(self, ids: Iterable[str]) -> dict[str, Tensor]:
        """Return the rows of the ids that have one, ``(D,)`` each, float32 on the CPU."""
        wanted = dict.fromkeys(ids)
        rows = {key: self._rows[key] for key in wanted if key in self._rows}
        if self.store is not None and len(rows) < len(wanted):
            rows |= self.store.found(key for key in wanted if key not in rows)
        return rows

    def rows(self) -> dict[str, Tensor]:
        """Return the rows in memory, ``(D,)`` each, by id."""
        return dict(self._rows)

    def forget(self, *prefixes: str) -> None:
        """Drop the rows in memory of all ids that begin with one of the prefixes.

        A dropped row is read from the store or computed again on demand, with the same result.
        """
        self._rows = {k: row for k, row in self._rows.items() if not k.startswith(prefixes)}

    def drop(self, ids: Iterable[str]) -> None:
        """Drop the rows in memory of some ids."""
        for key in ids:
            self._rows.pop(key, None)
