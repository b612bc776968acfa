"""The routing of a run's test samples, computed again from its router and its embeddings.

Neither the base model nor the data of the run are read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from dmole.routing import AutoencoderRouter, RouteQuery
from dmole.routing.entries import learned_part
from dmole.run.embeddings import read_embeddings
from dmole.run.learned import read_names, read_router
from dmole.storage.digests import read_digests
from dmole.storage.versions import newest_versions, versions_of
from dmole.streams.stream import Stage

SCALES = tuple(2.0 ** (step / 2) for step in range(-4, 5))
"""Factors on the thresholds of the run: 0.25 to 4, among them 1."""

_AT_ONCE = 1024  # samples that are routed together, unless the router takes a vote
_BATCH = 32  # samples of a vote where the run does not say: the default of the data module


@dataclass(frozen=True)
class RoutedTask:
    """The test samples of a task as the router sees them.

    Args:
        task: Name of the task.
        own: Its experts, newest version first; none for a task that was not learned.
        ids: Ids of its samples.
        losses: Loss of each sample under each autoencoder, ``(samples, experts)``.
        orders: Experts of each sample, best first, under each of `SCALES`.
    """

    task: str
    own: tuple[str, ...]
    ids: Sequence[str]
    losses: npt.NDArray[np.float32]
    orders: Sequence[Sequence[tuple[str, ...]]]

    @property
    def as_run(self) -> Sequence[tuple[str, ...]]:
        """Experts of each sample under the thresholds of the run."""
        return self.orders[SCALES.index(1.0)]


class KeptRouting:
    """A run's router and the embeddings of its test samples.

    Args:
        run: The run folder.
        learned: The stages up to the last evaluation.
        fingerprints: Those in ``metrics.json``: base model and samples.

    Raises:
        ValueError: If a file of the router is missing or damaged, which is named, or if the run
            scales all thresholds to zero or infinity.

    Attributes:
        experts: Experts of the last evaluation, oldest first.
        fitted: Those of them that have an autoencoder; empty if the router compares no losses.
        thresholds: Their thresholds, ``(experts,)``.
        common: The expert that all tasks share, if there is one.
    """

    def __init__(
        self, run: Path, learned: Sequence[Stage], fingerprints: Mapping[str, Any]
    ) -> None:
        self._run = run
        self._fingerprints = fingerprints
        self._router, settings = read_router(run)
        self._learned = learned
        trained = {name for stage in learned for name in stage.experts}
        self.experts = [name for name in read_names(run, read_digests(run)) if name in trained]
        self.common = self._router.common
        inner = learned_part(self._router)
        self._inner = inner if isinstance(inner, AutoencoderRouter) else None
        fitted = self._inner.fitted if self._inner is not None else ()
        self.fitted = [name for name in self.experts if name in fitted]
        self.thresholds = np.array([self._autoencoders.threshold(name) for name in self.fitted])
        self._scale = self._inner.threshold_scale if self._inner is not None else 1.0
        if self._scale in (0.0, math.inf):
            found = "none" if self._scale == 0.0 else "all"
            raise ValueError(
                f"threshold_scale is {self._scale}: {found} of the samples are accepted, whatever "
                "the thresholds are"
            )
        votes = self._inner is not None and self._inner.vote == "batch"
        self._size = int(settings.data.get("eval_batch_size", _BATCH)) if votes else _AT_ONCE

    @property
    def _autoencoders(self) -> AutoencoderRouter:
        assert self._inner is not None  # there is no fitted expert without it
        return self._inner

    @property
    def scales(self) -> tuple[float, ...]:
        """The factors on the thresholds."""
        return SCALES

    def own(self, task: str) -> tuple[str, ...]:
        """Return the experts of a task, newest version first; none if it was not learned."""
        names = (stage.expert for stage in reversed(self._learned) if task in stage.tasks)
        expert = next(names, None)
        if expert is None or expert not in self.experts:
            return ()
        newest = newest_versions(self.experts, self._router.updates)[expert]
        return versions_of(newest, self._router.updates)

    def embeddings(self, task: str, ids: Sequence[str]) -> Tensor:
        """Return the embeddings of test samples, ``(N, D)``.

        Raises:
            ValueError: If they were not kept or are those of another base model or other samples.
        """
        samples = (self._fingerprints.get("data") or {}).get(task) or {}
        found = {
            "base model": self._fingerprints.get("base"),
            "list of samples": samples.get("test"),
        }
        origin = {name: value for name, value in found.items() if isinstance(value, str)}
        if len(origin) < len(found):
            raise ValueError(f"{self._run / 'metrics.json'} has no fingerprints of {task!r}")
        return read_embeddings(self._run, task, ids, origin, self._width)

    @property
    def _width(self) -> int:
        """Length of an embedding."""
        return int(self._autoencoders.tensors()[self.fitted[0]]["w_enc"].shape[1])

    def routed(self, task: str, ids: Sequence[str]) -> RoutedTask:
        """Return losses and routing of test samples under the thresholds times `SCALES`.

        Args:
            task: Their task.
            ids: Their ids, in the order of the evaluation: a vote depends on it.

        Raises:
            ValueError: As for :meth:`embeddings`.
        """
        rows = self.embeddings(task, ids)
        orders: list[list[tuple[str, ...]]] = [[] for _ in SCALES]
        factors = [scale * self._scale for scale in SCALES]
        shared: dict[tuple[str, ...], tuple[str, ...]] = {}  # equal gate sets are one object
        for start in range(0, len(ids), self._size):
            part = rows[start : start + self._size]
            query = RouteQuery(part, [task] * len(part), "test", None, self.experts)
            for order, routing in zip(orders, self._router.route_at(query, factors), strict=True):
                order.extend(shared.setdefault(names, names) for names in routing.order)
        losses = self._autoencoders.losses(rows, self.fitted).numpy()
        return RoutedTask(task, self.own(task), ids, losses, orders)

    def reconstructed(self, task: str, ids: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        """Return preprocessed embeddings and what the autoencoder of their task makes of them.

        Args:
            task: The task of the samples.
            ids: Their ids.

        Returns:
            Both ``(N, D)``; the second is None if no autoencoder was fitted to the task.

        Raises:
            ValueError: As for :meth:`embeddings`.
        """
        rows = self.embeddings(task, ids)
        own = [name for name in self.own(task) if name in self.fitted]
        inputs, outputs = self._autoencoders.reconstruct(rows, own[0] if own else self.fitted[0])
        return inputs, outputs if own else None
