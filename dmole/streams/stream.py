"""Streams: the tasks, training samples and expert of each stage."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dmole.storage.files import check_name
from dmole.streams.blur import Blur
from dmole.streams.draws import Draw
from dmole.streams.replay import Replay

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dmole.data.task import Task

_STAGE_TASKS = Draw()


@dataclass(frozen=True)
class Stage:
    """One stage of training.

    Args:
        index: 1-based; 0 stands for "before training".
        name: Name in logs and progress bars.
        tasks: Tasks of the stage; it uses their epochs and batch sizes.
        expert: Expert that the stage trains; an existing expert continues training.
        draw: Rule for the training samples; by default all samples of the tasks.
        common: Expert that every stage trains in addition, if the router has one.
    """

    index: int
    name: str
    tasks: tuple[str, ...]
    expert: str
    draw: Draw = _STAGE_TASKS
    common: str | None = None

    @property
    def experts(self) -> tuple[str, ...]:
        """All experts that the stage trains: its expert, then the common one."""
        return tuple(filter(None, (self.expert, self.common)))


class Stream(ABC):
    """Orders the tasks into stages.

    Its constructor arguments, stored as attributes of the same names, are settings of the run. A
    checkpoint with other values is not resumed.
    """

    @property
    def planned(self) -> bool:
        """Whether the stages are known; a stream may have to find them in the samples first."""
        return True

    @property
    def general(self) -> tuple[Task, ...]:
        """Data that stages train on in addition to their tasks; they have no stage of their own."""
        return ()

    @abstractmethod
    def stages(self, task_names: Sequence[str]) -> list[Stage]:
        """Return the stages for the tasks in the given order."""

    def state_dict(self) -> dict[str, Any]:
        """Return what the stream has found in the samples, for a checkpoint."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the result of :meth:`state_dict`.

        Raises:
            ValueError: If the state belongs to another stream.
        """
        if state:
            raise ValueError(f"{type(self).__name__} has no state, got {sorted(state)}")


class SequentialStream(Stream):
    """One task after the other.

    Args:
        shared_expert: Name of a single expert that every stage trains. ``None``
            gives each task a separate expert with the name of the task.

    Example:
        >>> from dmole.streams import SequentialStream
        >>> [(stage.index, stage.expert) for stage in SequentialStream().stages(["paint", "count"])]
        [(1, 'paint'), (2, 'count')]
        >>> stages = SequentialStream(shared_expert="shared").stages(["paint", "count"])
        >>> [(stage.index, stage.expert) for stage in stages]
        [(1, 'shared'), (2, 'shared')]
    """

    def __init__(self, shared_expert: str | None = None) -> None:
        if shared_expert is not None:
            check_name(shared_expert, "shared_expert")
        self.shared_expert = shared_expert

    def stages(self, task_names: Sequence[str]) -> list[Stage]:
        """Return one stage per task."""
        return [
            Stage(i, name, (name,), self.shared_expert or name, self._draw(i, task_names))
            for i, name in enumerate(task_names, start=1)
        ]

    def _draw(self, index: int, task_names: Sequence[str]) -> Draw:
        """Return the draw of the stage with this index."""
        return _STAGE_TASKS


class ReplayStream(SequentialStream):
    """One task after the other, with replayed samples of earlier tasks in each stage.

    A buffer of bounded size holds a uniform draw of all training samples of the earlier tasks,
    each counted once. The first stage has no replay. See `dmole.streams.replay`.

    Args:
        shared_expert: Name of the expert that every stage trains; ``None`` gives each
            task a separate expert.
        buffer_size: Maximum number of samples in the buffer.
        buffer_mb: Alternative to ``buffer_size``: maximum size in megabytes (10^6 bytes), with
            image files as on disk (pixels for an image in memory) and the text in UTF-8.
        share: Share of replayed samples in an epoch, in (0, 1): samples of the buffer are repeated
            or left out, the same in every epoch of the stage. ``None`` replays each sample once
            per epoch.
        seed: Seed of the buffer; ``None`` uses the seed of the data.

    Raises:
        ValueError: If not exactly one size is given, or a number is out of range.

    Source:
        Chaudhry et al., 2019, https://arxiv.org/abs/1902.10486.
    """

    def __init__(
        self,
        shared_expert: str | None = "shared",
        buffer_size: int | None = None,
        buffer_mb: float | None = None,
        share: float | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__(shared_expert)
        if (buffer_size is None) == (buffer_mb is None):
            raise ValueError(
                "a replay buffer needs either buffer_size or buffer_mb, got "
                f"{buffer_size} and {buffer_mb}"
            )
        if buffer_size is not None and buffer_size < 1:
            raise ValueError(f"buffer_size must be at least 1, got {buffer_size}")
        if buffer_mb is not None and not 0 < buffer_mb < float("inf"):
            raise ValueError(f"buffer_mb must be above 0 and finite, got {buffer_mb}")
        if share is not None and not 0 < share < 1:
            raise ValueError(f"share must be in (0, 1), got {share}")
        self.buffer_size = buffer_size
        self.buffer_mb = buffer_mb
        self.share = share
        self.seed = seed

    def _draw(self, index: int, task_names: Sequence[str]) -> Draw:
        past = tuple(task_names[: index - 1])
        return Replay(past, self.buffer_size, self.buffer_mb, self.share, self.seed)


class BlurredStream(SequentialStream):
    """One task after the other, without sharp boundaries.

    Each stage has as many samples as its task. A share of them comes from the tasks before and
    after, half from each; the first and the last stage take all of it from their one neighbor.
    The samples are mixed uniformly over the stage. See `dmole.streams.blur`.

    Args:
        beta: Share of foreign samples in a stage, in [0, 1); 0 is the clean stream.
        shared_expert: Name of the expert that every stage trains; ``None`` gives each
            task a separate expert.
        seed: Seed of the draw; ``None`` uses the seed of the data.

    Raises:
        ValueError: If ``beta`` is out of range.
    """

    def __init__(
        self, beta: float, shared_expert: str | None = None, seed: int | None = None
    ) -> None:
        super().__init__(shared_expert)
        if not 0 <= beta < 1:
            raise ValueError(f"beta must be in [0, 1), got {beta}")
        self.beta = beta
        self.seed = seed

    def _draw(self, index: int, task_names: Sequence[str]) -> Draw:
        return Blur(tuple(task_names), self.beta, self.seed)


class JointStream(Stream):
    """All tasks at once, one expert: the usual upper bound.

    Args:
        expert: Name of the expert.
    """

    def __init__(self, expert: str = "joint") -> None:
        self.expert = check_name(expert, "expert")

    def stages(self, task_names: Sequence[str]) -> list[Stage]:
        """Return a single stage over the union of the tasks."""
        return [Stage(1, self.expert, tuple(task_names), self.expert)]


class ZeroShotStream(Stream):
    """No training: only the base model is evaluated."""

    def stages(self, task_names: Sequence[str]) -> list[Stage]:
        """Return no stage."""
        return []
