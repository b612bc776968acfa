"""A stream without task boundaries: its stages are the segments that a router finds in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch

from dmole.rejections import RejectionWindow
from dmole.storage.files import check_name
from dmole.streams.draws import Draw, Indices, Inventory, Part
from dmole.streams.segments import Gatekeeper, Segmentation, Segmenter, segment_name
from dmole.streams.stream import Stage, Stream


@dataclass(frozen=True, eq=False)
class SegmentDraw(Draw):
    """The samples that a segment's expert learns, whatever tasks they are from.

    Args:
        parts: Indices of the samples of each task, in order of arrival.
    """

    parts: tuple[tuple[str, Indices], ...]

    def arriving(self, tasks: Sequence[str], data: Inventory, seed: int) -> list[Part]:
        """Return all samples of the segment, since it knows no tasks."""
        return [
            Part(name, indices) for name, indices in self.parts for _ in range(data.repeat(name))
        ]

    def scored(self, tasks: Sequence[str]) -> list[tuple[str, ...]]:
        """Return a single group, since a segment knows no tasks."""
        return [tuple(tasks)]


class AutoStream(Stream):
    """The tasks one after the other, without saying where one ends and the next begins.

    The training samples arrive in the order of the tasks and of their files. A new segment, with
    an expert of its own, begins where the share of samples that no autoencoder accepts passes a
    limit; see :class:`~dmole.streams.segments.Segmenter`. Embeddings and autoencoders depend on
    the frozen base model alone and not on the experts. All segments are therefore found before the
    first stage trains, in order of arrival and without look-ahead, as if each stage had been
    trained at its alarm. An expert learns the samples that arrive in its segment and belong to it;
    those that an earlier expert accepts are not learned again.

    The names of the tasks are used for the evaluation alone: a task counts as learned by the
    segment that most of its samples belong to. A segment that is not the first choice of any task
    is listed under the task of most of its samples.

    Args:
        window: Number of samples over which rejections are counted, at least 2.
        limit: Share of rejected samples in the window above which a segment begins, at least
            1 / window and below 1.
        min_segment: Samples at the beginning of a segment that fit its first autoencoder; no
            segment begins among them. At least 2.
        prefix: Beginning of the names of segments and experts.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> stream = AutoStream(window=64)
        >>> stream.planned  # the segments are found when the run begins
        False
    """

    def __init__(
        self,
        window: int = 32,
        limit: float = 0.5,
        min_segment: int = 100,
        prefix: str = "segment",
    ) -> None:
        RejectionWindow(window, limit)  # checks both
        if min_segment < 2:
            raise ValueError(f"min_segment must be at least 2, got {min_segment}")
        self.window = window
        self.limit = limit
        self.min_segment = min_segment
        self.prefix = check_name(prefix, "prefix")
        self._found: Segmentation | None = None
        self._sizes: tuple[int, ...] = ()

    @property
    def planned(self) -> bool:
        """Whether the segments have been found."""
        return self._found is not None

    @property
    def segmentation(self) -> Segmentation:
        """The segments.

        Raises:
            ValueError: If they have not been found yet.
        """
        if self._found is None:
            raise ValueError("the segments of an AutoStream are found when its run begins")
        return self._found

    def segmenter(self, router: Gatekeeper, fit_samples: int, seed: int) -> Segmenter:
        """Return a segmenter with the settings of the stream; see :class:`Segmenter`."""
        rule = (self.window, self.limit, self.min_segment)
        return Segmenter(router, *rule, self.prefix, fit_samples, seed)

    def set_segments(self, found: Segmentation, sizes: Sequence[int]) -> None:
        """Set the segments.

        Args:
            found: The segments.
            sizes: Number of training samples of each task, in the order of the tasks.

        Raises:
            ValueError: If the segments are not those of so many samples.
        """
        if sum(sizes) != len(found.owner):
            raise ValueError(f"{sum(sizes)} samples arrive, the segments have {len(found.owner)}")
        self._found, self._sizes = found, tuple(sizes)

    def stages(self, task_names: Sequence[str]) -> list[Stage]:
        """Return one stage per segment.

        Raises:
            ValueError: If the segments have not been found yet, or in another number of tasks.
        """
        if len(task_names) != len(self._sizes) and self.planned:
            raise ValueError(f"the segments are of {len(self._sizes)} tasks, not {len(task_names)}")
        stages = []
        for segment, tasks in enumerate(self._tasks_of(task_names)):
            name = segment_name(self.prefix, segment)
            draw = SegmentDraw(self._parts(segment, task_names))
            stages.append(Stage(segment + 1, name, tasks, name, draw))
        return stages

    def counts(self, task_names: Sequence[str]) -> list[Counter[tuple[str, int]]]:
        """Return the arriving samples of each segment, by true task and owning segment."""
        found, task = self.segmentation, self._task_of_position()
        result: list[Counter[tuple[str, int]]] = [Counter() for _ in found.starts]
        rows = zip(found.arrives_in().tolist(), task.tolist(), found.owner.tolist(), strict=True)
        for (segment, index, owner), count in Counter(rows).items():
            result[segment][task_names[index], owner] += count
        return result

    def _task_of_position(self) -> Indices:
        return np.repeat(np.arange(len(self._sizes)), self._sizes)

    def _parts(self, segment: int, task_names: Sequence[str]) -> tuple[tuple[str, Indices], ...]:
        """Return the indices within each task of the samples that a segment's expert learns."""
        positions = self.segmentation.samples(segment)
        task = self._task_of_position()[positions]
        first = np.array([0, *accumulate(self._sizes)])
        parts = ((index, positions[task == index] - first[index]) for index in np.unique(task))
        return tuple((task_names[index], indices) for index, indices in parts)

    def _tasks_of(self, task_names: Sequence[str]) -> list[tuple[str, ...]]:
        """Return the tasks that count as learned by each segment; see the class."""
        owned = np.zeros((len(self.segmentation.starts), len(self._sizes)), np.int64)  # (S, T)
        np.add.at(owned, (self.segmentation.owner, self._task_of_position()), 1)
        chosen = owned.argmax(axis=0).tolist()  # (T,)
        tasks = []
        for segment, row in enumerate(owned):
            own = [index for index, choice in enumerate(chosen) if choice == segment]
            tasks.append(tuple(task_names[index] for index in own or [int(row.argmax())]))
        return tasks

    # -- state -----------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the segments, for a checkpoint; empty if they have not been found yet."""
        if self._found is None:
            return {}
        return {
            "owner": torch.from_numpy(self._found.owner),
            "starts": list(self._found.starts),
            "alarms": list(self._found.alarms),
            "sizes": list(self._sizes),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the result of :meth:`state_dict`.

        Raises:
            ValueError: If the values do not fit together.
        """
        if not state:
            self._found, self._sizes = None, ()
            return
        owner = state["owner"].to(torch.int64).numpy()
        found = Segmentation(owner, tuple(state["starts"]), tuple(state["alarms"]))
        self.set_segments(found, state["sizes"])
