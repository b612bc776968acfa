"""What data each stage of a sequence sees, and which expert it trains."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dmole.files import check_name

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Stage:
    """One stage of training.

    Args:
        index: 1-based; 0 stands for "before training".
        name: What logs and progress bars call it.
        tasks: Tasks whose train data it draws from.
        expert: Expert it trains; one that exists already goes on training.
    """

    index: int
    name: str
    tasks: tuple[str, ...]
    expert: str


class Stream(ABC):
    """Orders the tasks into stages."""

    @abstractmethod
    def stages(self, task_names: Sequence[str]) -> list[Stage]:
        """Return the stages for the tasks in their given order."""


class SequentialStream(Stream):
    """One task after the other.

    Args:
        shared_expert: Name of a single expert that every stage goes on training. ``None``
            gives each task an expert of its own, named after it.
    """

    def __init__(self, shared_expert: str | None = None) -> None:
        if shared_expert is not None:
            check_name(shared_expert, "shared_expert")
        self.shared_expert = shared_expert

    def stages(self, task_names: Sequence[str]) -> list[Stage]:
        """Return one stage a task."""
        return [
            Stage(i, name, (name,), self.shared_expert or name)
            for i, name in enumerate(task_names, start=1)
        ]


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
    """No training at all: the base model is evaluated and nothing else happens."""

    def stages(self, task_names: Sequence[str]) -> list[Stage]:
        """Return no stage."""
        return []
