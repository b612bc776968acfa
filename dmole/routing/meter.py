"""Measures of samples under autoencoders, computed by sample and by expert."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import Tensor

    from dmole.routing.autoencoder import ReconstructorStack
    from dmole.routing.bank import AutoencoderBank


class BankMeter:
    """A :class:`~dmole.routing.query.Meter` over the autoencoders of a bank.

    Args:
        bank: Has the autoencoders.
        experts: The measured experts.
        ranks: Whether the measures have distances as ranks, which the bank keeps moments for.
    """

    def __init__(self, bank: AutoencoderBank, experts: Sequence[str], *, ranks: bool) -> None:
        self.experts = experts
        self.has_ranks = ranks
        self._bank = bank
        self._stacks: dict[str, ReconstructorStack] = {}

    def version(self, expert: str) -> object:
        """Return an object that is another one after the expert was fitted again."""
        return self._bank.version(expert)

    def losses(self, embeddings: Tensor, experts: Sequence[str], device: torch.device) -> Tensor:
        """Return the losses of raw embeddings ``(N, D)`` under some experts, ``(N, n)``."""
        for name in experts:
            if name not in self._stacks:
                self._stacks[name] = self._bank.stack(name, device)
        return self._bank.columns(embeddings, [self._stacks[name] for name in experts])

    def ranks(self, embeddings: Tensor) -> Tensor | None:
        """Return the distances of raw embeddings ``(N, D)``, ``(N, C)``, if they are ranks."""
        return self._bank.distances(embeddings, self.experts) if self.has_ranks else None
