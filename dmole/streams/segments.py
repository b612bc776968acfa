"""Cuts a stream of samples without task boundaries into segments, one expert for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from dmole.rejections import RejectionWindow
from dmole.storage.seeds import derive_seed
from dmole.streams.draws import Indices


class Gatekeeper(Protocol):
    """A router that accepts or rejects samples, such as an ``AutoencoderRouter``."""

    def fit(self, expert: str, embeddings: Tensor) -> object:
        """Learn to recognize the samples of an expert, ``(N, D)``."""

    def losses(self, embeddings: Tensor, experts: Sequence[str]) -> Tensor:
        """Return the loss of embeddings ``(N, D)`` under each expert, ``(N, E)``."""

    def threshold(self, expert: str) -> float:
        """Return the loss below which the expert accepts a sample."""


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The segments of a stream.

    Args:
        owner: Segment that each sample belongs to, in order of arrival, ``(N,)``. It is the segment
            in which the sample arrives, or an earlier one whose expert accepts it.
        starts: Position of the first sample of each segment, ascending from 0.
        alarms: Position of the sample that revealed each segment after the first.

    Raises:
        ValueError: If the values do not fit together.
    """

    owner: Indices
    starts: tuple[int, ...]
    alarms: tuple[int, ...]

    def __post_init__(self) -> None:
        arrives = self.arrives_in()
        if (
            len(self.alarms) != len(self.starts) - 1
            or any(a < s for a, s in zip(self.alarms, self.starts[1:], strict=True))
            or any(len(self.samples(segment)) == 0 for segment in range(len(self.starts)))
            or (self.owner > arrives).any()
        ):
            raise ValueError("the segments of the stream do not fit together")

    def arrives_in(self) -> Indices:
        """Return the segment in which each sample arrives, ``(N,)``."""
        if self.starts[:1] != (0,) or list(self.starts) != sorted(set(self.starts)):
            raise ValueError("the starts of the segments must ascend from 0")
        positions = np.arange(len(self.owner))
        found: Indices = np.searchsorted(np.array(self.starts), positions, side="right") - 1
        return found

    def samples(self, segment: int) -> Indices:
        """Return the positions of the samples that a segment's expert learns, ascending.

        They arrive in the segment and belong to it. A sample that arrives later finds the expert
        frozen, even if it belongs to it.
        """
        return np.flatnonzero((self.owner == segment) & (self.arrives_in() == segment))


class Segmenter:
    """Finds segments in order of arrival, without labels of tasks and without look-ahead.

    The first ``min_segment`` samples of a segment fit its autoencoder. From then on, a sample
    belongs to the segment if its autoencoder accepts it, to an earlier expert if only that accepts
    it, and is *rejected* otherwise. A rejected sample belongs where the sample before it does,
    until the rejections in the window pass the limit. Then a new segment begins, at the sample from
    which on they exceed the limit most, and its first samples fit the next autoencoder.

    The autoencoder of the running segment is fitted again whenever the segment has doubled, without
    the samples of the window, and at its end.

    Args:
        router: Gatekeeper without experts; it is fitted.
        window: See :class:`~dmole.rejections.RejectionWindow`.
        limit: See :class:`~dmole.rejections.RejectionWindow`.
        min_segment: Samples that fit the first autoencoder of a segment.
        names: Beginning of the names of the segments.
        fit_samples: Maximum number of samples of a fit, chosen at random.
        seed: Seed of this choice.
    """

    def __init__(
        self,
        router: Gatekeeper,
        window: int,
        limit: float,
        min_segment: int,
        names: str = "segment",
        fit_samples: int = 2000,
        seed: int = 0,
    ) -> None:
        self._router = router
        self._window = RejectionWindow(window, limit)
        self._min_segment = min_segment
        self._names = names
        self._fit_samples = fit_samples
        self._seed = seed
        self._starts = [0]
        self._alarms: list[int] = []
        self._owner: list[int] = []  # of the judged samples of all segments
        self._rows: Tensor | None = None  # (n, D): samples of the running segment so far
        self._fitted = 0  # judged samples of the running segment at its last fit

    def add(self, rows: Tensor) -> None:
        """Take the next samples.

        Args:
            rows: Embeddings in order of arrival, ``(N, D)``.
        """
        self._rows = rows if self._rows is None else torch.cat([self._rows, rows])
        while self._step(self._rows):
            pass

    def finish(self) -> Segmentation:
        """Return the segments of all samples so far; at least one is needed."""
        rest = 0  # too few samples for an autoencoder
        if self._rows is not None and not self._fitted:
            rest = len(self._rows)
        owner = np.array([*self._owner, *[len(self._starts) - 1] * rest], np.int64)
        return Segmentation(owner, tuple(self._starts), tuple(self._alarms))

    def _step(self, rows: Tensor) -> bool:
        """Judge samples up to the next fit or alarm; return whether there is more to do."""
        segment, start = len(self._starts) - 1, self._starts[-1]
        if not self._fitted:
            if len(rows) < self._min_segment:
                return False
            self._owner += [segment] * self._min_segment
            self._fit(self._min_segment)
            return True
        judged = len(self._owner) - start
        due = min(len(rows), 2 * self._fitted)
        for owner in self._owners(rows[judged:due]):
            self._owner.append(self._owner[-1] if owner is None else owner)
            alarm = self._window.add(owner is None)
            if alarm is not None:
                self._begin_segment(len(self._owner) - alarm.length, len(self._owner) - 1)
                return True
        if due == 2 * self._fitted:
            self._fit(due)
        return due < len(rows)

    def _owners(self, rows: Tensor) -> list[int | None]:
        """Return the segment whose expert accepts a sample, the running one first; else None."""
        if not len(rows):
            return []
        names = [segment_name(self._names, segment) for segment in range(len(self._starts))]
        losses = self._router.losses(rows, names)  # (n, E)
        limits = torch.tensor([self._router.threshold(n) for n in names], dtype=losses.dtype)
        accepted = losses < limits  # (n, E)
        best = losses.masked_fill(~accepted, torch.inf)
        best[:, -1] = torch.where(accepted[:, -1], -1.0, torch.inf)  # no loss is below 0
        chosen = best.argmin(dim=1).tolist()
        found = accepted.any(dim=1).tolist()
        return [owner if any_ else None for owner, any_ in zip(chosen, found, strict=True)]

    def _begin_segment(self, start: int, alarm: int) -> None:
        """End the running segment before a position, with a last fit, and begin the next one."""
        assert self._rows is not None  # a sample has raised the alarm
        kept = start - self._starts[-1]
        del self._owner[start:]
        self._fit(kept, margin=0)
        self._rows = self._rows[kept:]
        self._starts.append(start)
        self._alarms.append(alarm)
        self._window.clear()
        self._fitted = 0

    def _fit(self, count: int, margin: int | None = None) -> None:
        """Fit the autoencoder of the running segment to its first samples.

        Args:
            count: Judged samples of the segment.
            margin: Last samples that are left out; None leaves out those of the window, which may
                belong to a new task, but not those that begin the segment.
        """
        assert self._rows is not None
        segment, start = len(self._starts) - 1, self._starts[-1]
        if margin is None:
            margin = min(self._window.window, count - self._min_segment)
        owner = torch.tensor(self._owner[start : start + count - margin])
        chosen = torch.nonzero(owner == segment).flatten()  # (n,)
        if len(chosen) > self._fit_samples:
            generator = torch.Generator().manual_seed(derive_seed(self._seed, segment, count))
            order = torch.randperm(len(chosen), generator=generator)[: self._fit_samples]
            chosen = chosen[order.sort().values]
        self._router.fit(segment_name(self._names, segment), self._rows[chosen])
        self._fitted = count


def segment_name(prefix: str, segment: int) -> str:
    """Return the name of a segment and its expert.

    Example:
        >>> segment_name("segment", 0)
        'segment_1'
    """
    return f"{prefix}_{segment + 1}"
