"""Routers of experts that are mixed within the layers, and of experts that tasks share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dmole.routing.mixing import Mixing, TokenMixing
from dmole.routing.query import RouteQuery
from dmole.routing.routers import (
    LearningRouter,
    Router,
    RouterFit,
    Routing,
    SharedRouter,
    route_by_name,
)
from dmole.routing.task_keys import fit_key, key_scores
from dmole.routing.token_gates import TokenGate
from dmole.storage.files import check_name


class TokenRouter(SharedRouter):
    """Use one shared mixture for every sample; its layers choose among their experts by token.

    Args:
        gate: From the logits of a layer's router to the weights of its experts.
        expert: Name of the shared mixture; None takes the oldest.
    """

    def __init__(self, gate: TokenGate, expert: str | None = None) -> None:
        super().__init__(expert)
        self.mixing: Mixing = TokenMixing(gate)


class CommonExpertRouter(Router):
    """Use one expert that all tasks share beside those that another router chooses.

    The shared expert goes on training in every stage. Where the other router chooses nothing, the
    base model answers.

    Args:
        router: Chooses the task's expert.
        mixing: Weighs the two against each other in the layers.
        common: Name of the shared expert.
    """

    def __init__(self, router: Router, mixing: Mixing, common: str = "common") -> None:
        self.router = router
        self.mixing = mixing
        self.common = check_name(common, "common")

    @property
    def needs_embeddings(self) -> bool:  # type: ignore[override]
        """Whether the other router is fitted to embeddings."""
        return self.router.needs_embeddings

    def set_vision_width(self, width: int) -> None:
        """Hand on where the embedding's second half begins."""
        super().set_vision_width(width)
        self.router.set_vision_width(width)

    def needs(self, query: RouteQuery) -> bool:
        """Return whether the other router will read the embeddings."""
        return self.router.needs(self._without_common(query))

    def route(self, query: RouteQuery) -> Routing:
        """Return the experts of each sample; see :meth:`Router.route`."""
        others = self._without_common(query)
        routing = self.router.route(others)
        common = str(self.common)
        order = [(*names, common) if names else () for names in routing.order]
        losses = self._losses(routing.losses, others.experts, query.experts)
        return route_by_name(order, query.experts, losses)

    def own(self, expert: str, experts: Sequence[str]) -> tuple[str, ...]:
        """Return the task's expert and the shared one."""
        return (*self.router.own(expert, self._others(experts)), str(self.common))

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
        self, task: str, embeddings: Tensor, generator: torch.Generator | None = None
    ) -> RouterFit | None:
        """Fit the other router; see :meth:`Router.fit`."""
        return self.router.fit(task, embeddings, generator)

    def state_dict(self) -> dict[str, Any]:
        """Return what the other router learned."""
        return self.router.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned."""
        self.router.load_state_dict(state)

    def save(self, folder: str | Path) -> None:
        """Write the other router."""
        self.router.save(folder)

    def load(self, folder: str | Path) -> None:
        """Take over what :meth:`save` wrote."""
        self.router.load(folder)


class KeyRouter(LearningRouter):
    r"""Use the expert of the task whose keys are nearest, one key for images and one for text.

    .. math:: \hat t = \arg\max_t \cos(e_{img}, k_{img}^t) + \cos(e_{txt}, k_{txt}^t)

    Every sample gets an expert, those of tasks not yet learned too.

    Source:
        BranchLoRA, 2025, https://arxiv.org/abs/2506.02041, from secondary text. Keys are trained
        there to raise their cosine; with frozen encoders the best key has a closed form, which is
        taken here. Which encoders, and that the two cosines are summed, are inferred: ours are the
        base model's own, as for the autoencoders.
    """

    needs_embeddings = True

    def __init__(self) -> None:
        self._keys: dict[str, Tensor] = {}

    def needs(self, query: RouteQuery) -> bool:
        """Return whether there are keys to compare with: not in training."""
        return not query.training and any(name in self._keys for name in query.experts)

    def fit(self, task: str, embeddings: Tensor, generator: torch.Generator | None = None) -> None:
        """Compute the task's keys; see :meth:`Router.fit`."""
        width = self._split()
        halves = (embeddings[:, :width], embeddings[:, width:])
        self._keys[task] = torch.cat([fit_key(half) for half in halves])

    def route(self, query: RouteQuery) -> Routing:
        """Return the experts of each sample; see :meth:`Router.route`."""
        if query.training:
            name = query.experts[query.current_column()]
            return route_by_name([(name,)] * len(query.task_names), query.experts)
        fitted = [name for name in query.experts if name in self._keys]
        if not fitted:
            return route_by_name([()] * len(query.task_names), query.experts)
        embeddings, width = query.require_embeddings(), self._split()  # (B, D)
        keys = torch.stack([self._keys[name] for name in fitted])  # (F, D)
        scores = key_scores(embeddings[:, :width], keys[:, :width]) + key_scores(
            embeddings[:, width:], keys[:, width:]
        )  # (B, F)
        best = scores.argmax(dim=1).tolist()  # B columns of F
        return route_by_name([(fitted[column],) for column in best], query.experts)

    def _split(self) -> int:
        if self.vision_width is None:
            raise RuntimeError("the key router does not know the width of the vision tower")
        return self.vision_width

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Return the keys; see :meth:`LearningRouter.tensors`."""
        return {name: {"key": key} for name, key in self._keys.items()}

    def restore(self, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take over what :meth:`tensors` returned; see :meth:`LearningRouter.restore`."""
        for name, saved in tensors.items():
            if set(saved) != {"key"}:
                raise ValueError(f"router of {name}: expected a tensor 'key', got {sorted(saved)}")
        self._keys = {name: saved["key"] for name, saved in tensors.items()}
