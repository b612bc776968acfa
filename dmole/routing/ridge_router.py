"""A ridge classifier on random features of the embeddings, in closed form and without samples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dmole.routing.preprocessing import normalize_rows
from dmole.routing.query import RouteQuery
from dmole.routing.routers import LearningRouter, Routing, route_by_name
from dmole.storage.versions import newest_versions


class RidgeRouter(LearningRouter):
    r"""Use the expert of the class that a ridge regression on random features predicts.

    .. math:: h(x) = \max(0, R \bar x), \quad G = \sum_n h(x_n) h(x_n)^\top, \quad
        c_t = \sum_{n \in t} h(x_n), \quad
        \hat t = \arg\max_t h(x)^\top (G + \lambda I)^{-1} c_t

    with :math:`\bar x` the image and the text embedding, each of length 1, and :math:`R` a fixed
    matrix of normal draws. The sums :math:`G` and :math:`c_t` grow by each task's samples, so no
    sample is kept, and the result is that of a regression on all samples in any order of the
    tasks. Every sample gets an expert, including samples of tasks that are not learned yet.

    Args:
        projection: Number :math:`M` of random features. The sums hold ``M * M`` numbers, and ``M``
            more for each expert.
        ridge: :math:`\lambda` as a factor of the mean of the diagonal of :math:`G`.
        seed: Seed of :math:`R`.

    Raises:
        ValueError: If an argument is out of range.

    Source:
        RanPAC, 2023, https://arxiv.org/abs/2307.02251. There :math:`\lambda` is chosen on held-out
        samples of each task; here it is a fixed factor. The lengths of 1 are ours.
    """

    needs_embeddings = True
    selects_experts = True
    refits_all = True

    def __init__(self, projection: int = 512, ridge: float = 1e-3, seed: int = 42) -> None:
        if projection < 1:
            raise ValueError(f"projection must be at least 1, got {projection}")
        if not 0 < ridge < math.inf:
            raise ValueError(f"ridge must be a positive number, got {ridge}")
        self.projection = projection
        self.ridge = ridge
        self.seed = seed
        self._sums: dict[str, Tensor] = {}  # (M,) each, float64
        self._gram = torch.zeros(projection, projection, dtype=torch.float64)
        self._weights: Tensor | None = None  # (M, F), solved on demand
        self._matrix: Tensor | None = None  # (D, M)

    def features(self, embeddings: Tensor) -> Tensor:
        """Return the random features of embeddings ``(N, D)``, ``(N, M)`` float64."""
        width = embeddings.shape[1]
        if self._matrix is None or len(self._matrix) != width:
            generator = torch.Generator().manual_seed(self.seed)
            self._matrix = torch.randn(
                width, self.projection, generator=generator, dtype=torch.float64
            )
        split = self.vision_width or 0
        halves = (embeddings[:, :split], embeddings[:, split:])
        rows = torch.cat([normalize_rows(half).double() for half in halves], dim=1)  # (N, D)
        return (rows @ self._matrix).relu()

    def fit(
        self, expert: str, embeddings: Tensor, generator: torch.Generator | None = None
    ) -> None:
        """Add the samples of an expert to the sums; see :meth:`Router.fit`.

        Samples that the expert was fitted to before stay in the sums.

        Raises:
            ValueError: If there are no embeddings.
        """
        if not len(embeddings):
            raise ValueError(f"expert {expert!r} has no embeddings to fit a classifier to")
        features = self.features(embeddings)  # (N, M)
        zero = features.new_zeros(self.projection)
        self._gram = self._gram + features.T @ features
        self._sums[expert] = self._sums.get(expert, zero) + features.sum(dim=0)
        self._weights = None

    def classifier(self) -> Tensor:
        """Return the weights of the classes in the order of their first fit, ``(M, F)``."""
        if self._weights is None:
            shift = self.ridge * float(self._gram.diagonal().mean()) or 1.0
            system = self._gram + shift * torch.eye(self.projection, dtype=torch.float64)
            self._weights = torch.linalg.solve(system, torch.stack([*self._sums.values()], dim=1))
        return self._weights

    def needs(self, query: RouteQuery) -> bool:
        """Return whether classes are compared: in the test phase, once there are some."""
        return not query.training and any(name in self._sums for name in query.experts)

    def route(self, query: RouteQuery) -> Routing:
        """Return the expert of each sample; see :meth:`Router.route`."""
        samples = len(query.task_names)
        if query.training:
            name = query.experts[query.current_column()]
            return route_by_name([(name,)] * samples, query.experts)
        known = [(column, n) for column, n in enumerate(self._sums) if n in query.experts]
        if not known:
            return route_by_name([()] * samples, query.experts)
        weights = self.classifier()[:, [column for column, _ in known]]  # (M, F)
        scores = self.features(query.require_embeddings()) @ weights  # (B, F)
        newest = newest_versions(query.experts, self.updates)
        best = scores.argmax(dim=1).tolist()
        return route_by_name([(newest[known[place][1]],) for place in best], query.experts)

    def multiply_adds(self, width: int) -> int:
        """Return the multiplications of a sample: those of the features and of the classes."""
        return self.projection * (width + len(self._sums))

    def kind(self) -> dict[str, Any]:
        """Return what the sums depend on."""
        return {"projection": self.projection, "seed": self.seed}

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Return the sums, those of all samples with the first expert."""
        entries = {name: {"sum": values} for name, values in self._sums.items()}
        for first in list(entries)[:1]:
            entries[first]["gram"] = self._gram
        return entries

    def restore(self, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Restore the result of :meth:`tensors`; see :meth:`LearningRouter.restore`."""
        size = self.projection
        for place, (name, saved) in enumerate(tensors.items()):
            shapes = {"sum": (size,)} | ({} if place else {"gram": (size, size)})
            if {key: tuple(value.shape) for key, value in saved.items()} != shapes:
                raise ValueError(f"router of {name}: expected tensors of the shapes {shapes}")
        entries = list(tensors.values())
        self._sums = {name: saved["sum"].double() for name, saved in tensors.items()}
        self._gram = entries[0]["gram"].double() if entries else self._gram * 0
        self._weights = None
