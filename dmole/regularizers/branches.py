"""Freezing the branches that a task used most."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dmole.distributed import sum_over_ranks
from dmole.regularizers.base import Regularizer, StageView, Step

if TYPE_CHECKING:
    from dmole.experts import LoRAExpert


class BranchFreezing(Regularizer):
    """Freezes in every linear the branches that the stage's samples used most; adds no loss.

    Use is the sum of a branch's weights over the samples. Counting choices would not do: in a
    causal language model sequences that begin alike all choose the same branches, equally often.
    A branch that no sample used stays free.

    Later tasks may still choose frozen branches. Once all of a linear are frozen, they can choose
    among frozen ones alone, and only routers (and the trunk) go on learning there.

    Args:
        top_k: Branches that a stage freezes in each linear, of those it used.
        samples: Training samples of the stage that are counted.
        freeze_trunk: Freeze the shared down-projection after the first stage too. Otherwise it
            goes on moving, and with it what frozen branches compute.

    Raises:
        ValueError: If a number is below one.

    Source:
        BranchLoRA, 2025, https://arxiv.org/abs/2506.02041, from secondary text. Whether the trunk
        is frozen is not known; that frozen branches may all be used up is left open there, and
        going on with them is our policy.
    """

    records = True

    def __init__(self, top_k: int = 2, samples: int = 500, freeze_trunk: bool = False) -> None:
        super().__init__()
        if top_k < 1 or samples < 1:
            raise ValueError(f"top_k and samples must be at least 1, got {top_k} and {samples}")
        self.top_k = top_k
        self.samples = samples
        self.freeze_trunk = freeze_trunk

    def before_stage(self, stage: StageView) -> None:
        """Make sure that there is something to freeze.

        Raises:
            ValueError: If no linear has branches.
        """
        if not self._branched(stage):
            raise ValueError(
                "BranchFreezing: no linear has branches; it needs a CommonExpertRouter with "
                "BranchMixing, and an allocator that gives several experts"
            )

    def _branched(self, stage: StageView) -> dict[str, LoRAExpert]:
        common = stage.library.experts(stage.experts[-1])
        return {path: expert for path, expert in common if expert.shape.branches > 1}

    def forward(self, step: Step) -> Tensor:
        """Return zero: what is frozen needs no penalty."""
        return step.logits.new_zeros(())

    @torch.no_grad()
    def after_stage(self, stage: StageView) -> None:
        """Sum what the stage's samples weigh each branch with and freeze the heaviest."""
        sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros(()))
        for batch in stage.samples(self.samples, 8):
            _, step = stage.step(batch)
            for record in step.gates.records if step.gates is not None else ():
                sums[record.path] = sums[record.path] + record.weights.float().sum(0).cpu()
        for path, expert in self._branched(stage).items():
            used = sums[path] if path in sums else torch.zeros(expert.shape.branches)  # (branches,)
            used = sum_over_ranks(used.to(expert.frozen.device))
            heaviest = used.argsort(descending=True, stable=True)[: self.top_k]
            expert.frozen[heaviest[used[heaviest] > 0]] = 1.0
            if self.freeze_trunk:
                expert.trunk_frozen.fill_(1.0)
