"""Freezing of the branches that a task used most."""

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
    """Freezes, in every linear, the branches that the stage's samples used most; adds no loss.

    The use of a branch is the sum of its weights over the samples. A count of selections would not
    work: in a causal language model all sequences with the same first token select the same
    branches. A branch that no sample used stays trainable.

    Later tasks may still select frozen branches. Once all branches of a linear are frozen, only
    the routers (and the trunk) continue training there.

    Args:
        top_k: Used branches that a stage freezes in each linear.
        samples: Training samples of the stage on which the use is measured.
        freeze_trunk: Freeze the shared down-projection after the first stage, too. Otherwise it
            continues training, which changes the output of frozen branches.

    Raises:
        ValueError: If a number is below one.

    Source:
        BranchLoRA, 2025, https://arxiv.org/abs/2506.02041, after secondary texts. Whether the
        trunk is frozen is unknown. They do not define the case that all branches are frozen;
        continuing with the frozen branches is our policy.
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
        """Check that there are branches to freeze.

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
        """Return zero: frozen branches need no penalty."""
        return step.zero()

    @torch.no_grad()
    def after_stage(self, stage: StageView) -> None:
        """Sum the weights of each branch over the stage's samples and freeze the most used."""
        sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros(()))
        for batch in stage.samples(self.samples, 8):
            _, step = stage.step(batch)
            for record in step.gates.records if step.gates is not None else ():
                sums[record.path] = sums[record.path] + record.weights.float().sum(0).cpu()
        for path, expert in self._branched(stage).items():
            use = sums[path] if path in sums else torch.zeros(expert.shape.branches)  # (branches,)
            use = sum_over_ranks(use.to(expert.frozen.device))
            most_used = use.argsort(descending=True, stable=True)[: self.top_k]
            expert.frozen[most_used[use[most_used] > 0]] = 1.0
            if self.freeze_trunk:
                expert.trunk_frozen.fill_(1.0)
