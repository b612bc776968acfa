"""Routers for experts that are mixed within linears, and for experts that tasks share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dmole._moved import moved_name
from dmole.experts.shape import ExpertShape
from dmole.experts.soft_prompts import PromptShape, Shape
from dmole.modality import INPUT
from dmole.routing.generative import GenerativeRouter
from dmole.routing.mixing import Mixing, TokenMixing
from dmole.routing.query import Meter, RouteQuery
from dmole.routing.routers import (
    Router,
    RouterFit,
    Routing,
    SharedRouter,
    route_by_name,
)
from dmole.routing.token_gates import TokenGate
from dmole.storage.files import check_name

if TYPE_CHECKING:
    from dmole.allocation import Allocation


class TokenRouter(SharedRouter):
    """Use one shared mixture for every sample; its linears weigh their experts by token.

    Args:
        gate: Maps the logits of a linear's router to the weights of its experts.
        expert: Name of the shared mixture; None takes the oldest.
    """

    def __init__(self, gate: TokenGate, expert: str | None = None) -> None:
        super().__init__(expert)
        self.mixing: Mixing = TokenMixing(gate)


class CommonExpertRouter(Router):
    """Use one expert shared by all tasks in addition to those that another router selects.

    The shared expert continues training in every stage. Where the other router selects no expert,
    the base model answers.

    Args:
        router: Selects the task's expert.
        mixing: Weighs the two against each other in the linears.
        common: Name of the shared expert.
    """

    def __init__(self, router: Router, mixing: Mixing, common: str = "common") -> None:
        if isinstance(router, GenerativeRouter):
            raise ValueError("CommonExpertRouter does not take a GenerativeRouter, which is asked")
        if router.soft:
            raise ValueError(
                f"a {type(router).__name__} weighs all experts, so it selects none that joins the "
                f"shared expert {common!r}"
            )
        if router.mixing is not None:
            raise ValueError(
                f"a {type(router).__name__} weighs experts within linears by its own rule, which "
                f"{type(mixing).__name__} would replace: give CommonExpertRouter another router"
            )
        self.router = router
        self.mixing = mixing
        self.common = check_name(common, "common")

    @property
    def needs_embeddings(self) -> bool:  # type: ignore[override]
        """Whether the other router is fitted to embeddings."""
        return self.router.needs_embeddings

    @property
    def least_samples(self) -> int:  # type: ignore[override]
        """Minimum number of training samples of a stage: that of the other router."""
        return self.router.least_samples

    @property
    def selects_experts(self) -> bool:  # type: ignore[override]
        """Whether the other router selects the experts of tasks."""
        return self.router.selects_experts

    @property
    def updates(self) -> Mapping[str, str]:
        """Versions of the experts of the other router."""
        return self.router.updates

    @updates.setter
    def updates(self, updates: Mapping[str, str]) -> None:
        self.router.updates = updates

    @property
    def refits_all(self) -> bool:  # type: ignore[override]
        """Whether a fit changes the choice of the other router among earlier experts."""
        return self.router.refits_all

    def set_vision_width(self, width: int) -> None:
        """Set the vision width of this and the other router."""
        super().set_vision_width(width)
        self.router.set_vision_width(width)

    def needs(self, query: RouteQuery) -> bool:
        """Return whether the other router reads the embeddings."""
        return self.router.needs(self._without_common(query))

    def meter(self, query: RouteQuery) -> Meter | None:
        """Return the meter of the other router."""
        return self.router.meter(self._without_common(query))

    def route(self, query: RouteQuery) -> Routing:
        """Return the experts of each sample; see :meth:`Router.route`."""
        return self._with_common(self.router.route(self._without_common(query)), query)

    def route_at(self, query: RouteQuery, scales: Sequence[float]) -> list[Routing]:
        """Return the routing under each factor on the thresholds; see :meth:`Router.route_at`."""
        found = self.router.route_at(self._without_common(query), scales)
        return [self._with_common(routing, query) for routing in found]

    def _with_common(self, routing: Routing, query: RouteQuery) -> Routing:
        """Return the routing of the other router with the shared expert."""
        common, others = str(self.common), self._others(query.experts)
        order = [(*names, common) if names else () for names in routing.order]
        losses = self._losses(routing.losses, others, query.experts)
        return route_by_name(order, query.experts, losses)

    def trained_with(self, expert: str, experts: Sequence[str]) -> tuple[str, ...]:
        """Return the experts of the other router and the shared one."""
        return (*self.router.trained_with(expert, self._others(experts)), str(self.common))

    def _without_common(self, query: RouteQuery) -> RouteQuery:
        return replace(query, experts=self._others(query.experts))

    def _others(self, experts: Sequence[str]) -> list[str]:
        return [name for name in experts if name != self.common]

    def _losses(
        self, losses: Tensor | None, others: Sequence[str], experts: Sequence[str]
    ) -> Tensor | None:
        if losses is None:
            return None
        wide = losses.new_full((len(losses), len(experts)), float("inf"))
        wide[:, [list(experts).index(name) for name in others]] = losses
        return wide

    def fit(
        self, expert: str, embeddings: Tensor, generator: torch.Generator | None = None
    ) -> RouterFit | None:
        """Fit the other router; see :meth:`Router.fit`."""
        return self.router.fit(expert, embeddings, generator)

    def stored_numbers(self) -> int:
        """Return how many numbers the other router has learned."""
        return self.router.stored_numbers()

    def multiply_adds(self, width: int) -> int:
        """Return the multiplications of the other router."""
        return self.router.multiply_adds(width)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the other router."""
        return self.router.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the result of :meth:`state_dict`."""
        self.router.load_state_dict(state)

    def save(self, folder: str | Path) -> None:
        """Save the other router."""
        self.router.save(folder)

    def load(self, folder: str | Path) -> None:
        """Load a router written by :meth:`save`."""
        self.router.load(folder)


def expert_shapes(allocation: Allocation, router: Router, alpha: float) -> dict[str, Shape]:
    """Return the shape of an allocation's expert by full path of the linear or input embedding.

    Args:
        allocation: Units, ranks and number of parallel experts.
        router: Router of the method; with or without a mixing.
        alpha: Numerator of the scaling of one low-rank update.

    Raises:
        ValueError: If a linear gets several experts and the router does not mix them, or a soft
            prompt is to be mixed.
    """
    mixing, common = router.mixing, allocation.expert == router.common
    shapes: dict[str, Shape] = {}
    for entry in allocation.experts:
        if entry.unit == INPUT:
            if mixing is not None:
                raise ValueError(
                    f"{type(router).__name__} mixes experts within linears, the allocator gives a "
                    "soft prompt: use a router without mixing, such as dmole.routing.PromptRouter"
                )
            shapes |= dict.fromkeys(entry.linears, PromptShape(entry.rank))
            continue
        if mixing is None and entry.mixture > 1:
            raise ValueError(
                f"the allocator gives {entry.mixture} experts to {entry.unit}, which "
                f"{type(router).__name__} does not mix: use dmole.routing.TokenRouter"
            )
        shape: Shape = (
            ExpertShape(entry.rank, alpha)
            if mixing is None
            else mixing.shape(entry.rank, alpha, entry.mixture, common=common)
        )
        shapes |= dict.fromkeys(entry.linears, shape)
    return shapes


def __getattr__(name: str) -> Any:
    return moved_name(__name__, name)
