"""The allocator of soft prompts, whose only unit is the input of the language model."""

from __future__ import annotations

import math
from collections.abc import Sequence

from dmole.allocation.allocators import Allocator, Scores
from dmole.allocation.plan import Allocation, Unit
from dmole.modality import INPUT


class PromptAllocator(Allocator):
    """Give every new expert a soft prompt: learned tokens in the input of the language model.

    No linear gets an update. In an allocation the rank of the unit is the number of tokens.

    Args:
        tokens: Number of tokens of an expert's soft prompt.
        lr_factor: Factor on the learning rate. Entries of a soft prompt are as large as embeddings,
            so that a rate for LoRA hardly changes them.

    Raises:
        ValueError: If there are no tokens, or the factor is not a positive number.

    Source:
        ModalPrompt, 2025, https://arxiv.org/abs/2410.05849 (10 tokens in the authors' scripts). The
        factor is ours.

    Example:
        >>> from dmole.allocation import PromptAllocator, Unit
        >>> units = [Unit("language.input", "language", ("model.embed_tokens",), 64)]
        >>> plan = PromptAllocator(tokens=10).allocate("count", units, None, first=True)
        >>> [(entry.unit, entry.rank, entry.parameters) for entry in plan.experts]
        [('language.input', 10, 64)]
    """

    def __init__(self, tokens: int = 10, lr_factor: float = 1.0) -> None:
        super().__init__(modules=("language",), budget_fraction=1.0)
        if tokens < 1:
            raise ValueError(f"tokens must be at least 1, got {tokens}")
        if not 0 < lr_factor < math.inf:
            raise ValueError(f"lr_factor must be a positive number, got {lr_factor}")
        self.lr_factor = lr_factor
        self.unit = "input"
        self.tokens = tokens

    @property
    def expert_rank(self) -> int:
        """Number of tokens of a new expert."""
        return self.tokens

    def allocate(
        self, expert: str, units: Sequence[Unit], scores: Scores | None, first: bool
    ) -> Allocation:
        """Return the allocation of a new expert: the input of the language model.

        Raises:
            ValueError: If the input of the language model is not among the units.
        """
        if INPUT not in {unit.name for unit in units}:
            raise ValueError(f"expert {expert}: the model has no unit {INPUT} for a soft prompt")
        return self._plan(expert, units, {INPUT}, scores=scores)
