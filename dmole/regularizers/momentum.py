"""Merging of shared experts with their values before a stage, and the record of a task's use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dmole.distributed import sum_over_ranks
from dmole.regularizers.base import Regularizer, StageView, Step

if TYPE_CHECKING:
    from dmole.experts import LoRAExpert

_PARTS = ("lora_a", "lora_b")


class MomentumMerge(Regularizer):
    r"""Merges the shared experts of a linear with their values before the stage; adds no loss.

    .. math:: \theta_i \leftarrow \lambda_i \theta_i^{before} + (1 - \lambda_i) \theta_i

    A task uses the experts that are most often among the two most probable of a token. The shares
    of this use are recorded for :class:`~dmole.routing.dual.DualMixing`. The routers are not
    merged, and nothing is after the first stage.

    Args:
        momentum: :math:`\lambda_i`, the share of the earlier values, in ``[0, 1]``.
        past_momentum: The same for an expert that the task before uses and this task does not.
        top_k: Experts that a task uses in each linear.
        samples: Training samples of the stage on which the use is counted.

    Raises:
        ValueError: If a number is out of range.

    Source:
        CL-MoE, 2025, https://arxiv.org/abs/2503.00413 (authors' code). There the tokens of
        some seconds are counted, over all linears together. Its rule matches no parameter by
        name as published, so that nothing is merged.
    """

    records = True

    def __init__(
        self,
        momentum: float = 0.7,
        past_momentum: float = 0.3,
        top_k: int = 2,
        samples: int = 200,
    ) -> None:
        super().__init__()
        for name, value in (("momentum", momentum), ("past_momentum", past_momentum)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {value}")
        if top_k < 1 or samples < 1:
            raise ValueError(f"top_k and samples must be at least 1, got {top_k} and {samples}")
        self.momentum = momentum
        self.past_momentum = past_momentum
        self.top_k = top_k
        self.samples = samples
        self._before: dict[str, Tensor] = {}

    def before_stage(self, stage: StageView) -> None:
        """Keep the values of the shared experts, and forget the use of a continued task.

        Raises:
            ValueError: If no linear records the use of experts.
        """
        shared = self._shared(stage)
        if not any(_uses(stage, stage.experts[0])):
            raise ValueError(
                "MomentumMerge: no linear records the use of experts; it needs a "
                "CommonExpertRouter with DualMixing, and an allocator that gives several experts"
            )
        for _, expert in stage.library.experts(stage.experts[0]):
            expert.usage.zero_()
        self._before = {
            f"{path}.{part}": getattr(expert, part).detach().clone().cpu()
            for path, expert in (shared.items() if stage.index > 1 else ())
            for part in _PARTS
        }

    def _shared(self, stage: StageView) -> dict[str, LoRAExpert]:
        """Return the shared experts by linear; a task may record its use of a part of them."""
        return {p: e for p, e in stage.library.experts(stage.experts[-1]) if e.shape.heads}

    def forward(self, step: Step) -> Tensor:
        """Return zero: the merge needs no penalty."""
        return step.zero()

    @torch.no_grad()
    def after_stage(self, stage: StageView) -> None:
        """Record the use of the experts by the stage's task, then merge them."""
        counts = self._counts(stage)
        names = [name for name in stage.library.names if name not in stage.experts]
        past = dict(_uses(stage, names[-1])) if names else {}
        own = dict(_uses(stage, stage.experts[0]))
        for path, expert in self._shared(stage).items():
            use = shares_of_use(counts[path].to(expert.lora_a.device), self.top_k)
            if path in own:
                own[path].usage.copy_(use)
            if self._before:
                before = past[path].usage > 0 if path in past else torch.zeros_like(use).bool()
                self._merge(path, expert, before & (use == 0))
        self._before = {}

    def _counts(self, stage: StageView) -> dict[str, Tensor]:
        """Return how often each expert is among the two most probable of a token, by linear."""
        counts = {p: torch.zeros(expert.shape.heads) for p, expert in self._shared(stage).items()}
        for batch in stage.samples(self.samples, 8):
            _, step = stage.step(batch)
            for record in step.gates.records if step.gates is not None else ():
                two = record.probabilities.topk(min(2, record.probabilities.shape[-1])).indices
                found = torch.bincount(two.flatten(), minlength=len(counts[record.path]))
                counts[record.path] += found.cpu()
        shared = self._shared(stage)
        return {p: sum_over_ranks(c.to(shared[p].router.device)).cpu() for p, c in counts.items()}

    def _merge(self, path: str, expert: LoRAExpert, past: Tensor) -> None:
        """Merge the experts of a linear; ``past`` ``(N,)`` are those that only the past uses."""
        kept = torch.where(past, self.past_momentum, self.momentum)  # (N,)
        kept = kept.repeat_interleave(expert.rank // expert.shape.heads).to(expert.lora_a)
        for part, factors in zip(_PARTS, (kept[:, None], kept[None, :]), strict=True):
            parameter = getattr(expert, part)
            before = self._before[f"{path}.{part}"].to(parameter)
            parameter.copy_(factors * before + (1 - factors) * parameter)

    def extra_tensors(self) -> dict[str, Tensor]:
        """Return the values of the shared experts before the stage; none between stages."""
        return dict(self._before)

    def load_extra_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the result of :meth:`extra_tensors`; see :meth:`Regularizer.load_tensors`."""
        for key in tensors:
            if key.rpartition(".")[2] not in _PARTS:
                raise ValueError(f"MomentumMerge: tensor {key} is unknown")
        self._before = {key: tensor.clone() for key, tensor in tensors.items()}


def shares_of_use(counts: Tensor, top_k: int) -> Tensor:
    """Return the shares of the ``top_k`` largest counts in their sum, zero elsewhere.

    Args:
        counts: Shape ``(N,)``.
        top_k: Number of counts; ties go to the lower index.

    Example:
        >>> shares_of_use(torch.tensor([1.0, 6.0, 0.0, 2.0]), 2)
        tensor([0.0000, 0.7500, 0.0000, 0.2500])
    """
    most = counts.argsort(descending=True, stable=True)[:top_k]
    kept = torch.zeros_like(counts).scatter(0, most, counts[most])
    return kept / kept.sum().clamp_min(1)


def _uses(stage: StageView, name: str) -> Iterator[tuple[str, LoRAExpert]]:
    """Yield the linears of an expert that record the use of others."""
    for path, expert in stage.library.experts(name):
        if expert.shape.usage:
            yield path, expert
