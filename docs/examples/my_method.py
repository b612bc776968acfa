"""A method in one file outside the package: an allocator, a router and a regularizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dmole.allocation import Allocation, Allocator, Unit
from dmole.allocation.allocators import Scores
from dmole.regularizers import Regularizer, Step
from dmole.routing import LearningRouter, RouteQuery, Routing
from dmole.routing.routers import route_by_name


class LastBlocksAllocator(Allocator):
    """Give experts to the last blocks of each modality, whatever the task.

    Args:
        blocks: Number of blocks of each modality that get an expert.
        rank: Rank of a new expert.
    """

    def __init__(self, blocks: int = 1, *, rank: int = 8) -> None:
        super().__init__(rank=rank)
        if blocks < 1:
            raise ValueError(f"blocks must be at least 1, got {blocks}")
        self.blocks = blocks

    def allocate(
        self, expert: str, units: Sequence[Unit], scores: Scores | None, first: bool
    ) -> Allocation:
        """Return where a new expert is placed; scores only exclude units without a gradient."""
        candidates = self._candidates(units, scores)
        chosen: set[str] = set()
        for modality in ("vision", "language"):
            names = [unit.name for unit in candidates if unit.modality == modality]
            chosen.update(names[-self.blocks :])
        return self._plan(expert, units, chosen, scores=scores)


class NearestMeanRouter(LearningRouter):
    """Use the expert whose training samples have the nearest mean embedding.

    Args:
        least_cosine: A sample less similar than this to every mean gets the base model alone.
    """

    needs_embeddings = True

    def __init__(self, least_cosine: float = -1.0) -> None:
        self.least_cosine = least_cosine
        self._means: dict[str, Tensor] = {}

    def fit(
        self, expert: str, embeddings: Tensor, generator: torch.Generator | None = None
    ) -> None:
        """Remember the mean of the embeddings ``(N, D)`` that an expert was trained on."""
        self._means[expert] = embeddings.mean(dim=0)  # (D,)

    def route(self, query: RouteQuery) -> Routing:
        """Return the experts of each sample; in training the current one."""
        if query.training:
            name = query.experts[query.current_column()]
            return route_by_name([(name,)] * len(query.task_names), query.experts)
        names = [name for name in query.experts if name in self._means]
        if not names:  # before the first stage
            return route_by_name([()] * len(query.task_names), query.experts)
        means = torch.stack([self._means[name] for name in names])  # (E, D)
        embeddings = query.require_embeddings()  # (B, D)
        cosines = torch.cosine_similarity(embeddings[:, None], means[None], dim=-1)  # (B, E)
        best, columns = cosines.max(dim=1)
        order = [
            (names[column],) if cosine >= self.least_cosine else ()
            for cosine, column in zip(best.tolist(), columns.tolist(), strict=True)
        ]
        return route_by_name(order, query.experts)

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Return what was learned: it is stored in checkpoints and in the run folder."""
        return {name: {"mean": mean} for name, mean in self._means.items()}

    def restore(self, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Load what :meth:`tensors` returned."""
        self._means = {name: dict(parts)["mean"] for name, parts in tensors.items()}


class SmallUpdate(Regularizer):
    r"""Keep the updates of the experts in training small.

    .. math:: c \sum_{l} \left\| B_l \right\|_F^2

    Args:
        coefficient: Weight of the term; 0 leaves the loss unchanged.
    """

    def __init__(self, coefficient: float = 0.01) -> None:
        super().__init__()
        self.coefficient = coefficient

    def forward(self, step: Step) -> Tensor:
        """Return the term, a scalar."""
        total = step.zero()
        for name in step.experts:
            for _, expert in step.library.experts(name):
                total = total + expert.lora_b.float().square().sum()
        return self.coefficient * total
