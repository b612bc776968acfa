"""General data in every stage: a baseline against forgetting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dmole.data.task import Task
from dmole.storage.files import check_name
from dmole.streams.draws import Draw, Inventory, Part, random_order, walk
from dmole.streams.replay import replayed_count
from dmole.streams.stream import SequentialStream

NAME = "general"


@dataclass(frozen=True)
class GenericMix(Draw):
    """The stage's tasks, and a share of general samples.

    Args:
        name: Name of the general data.
        share: Share of general samples in an epoch, in [0, 1).
        index: 1-based number of the stage.
        seed: Seed of the draw; ``None`` uses the seed of the data.
    """

    name: str
    share: float
    index: int
    seed: int | None

    def replayed(self, tasks: Sequence[str], data: Inventory, seed: int) -> list[Part]:
        """Return the general samples of the stage, the same in every epoch.

        Raises:
            ValueError: If the share is less than one sample.
        """
        if not self.share:
            return []
        new = sum(data.train_size(name) * data.repeat(name) for name in tasks)
        count = replayed_count(new, self.share)
        if not count:
            raise ValueError(
                f"share {self.share} of the {new} samples of {', '.join(tasks)} is less than "
                "one general sample"
            )
        own_seed = seed if self.seed is None else self.seed
        order = random_order(data.train_size(self.name), own_seed, "general", self.index)
        return [Part(self.name, walk(order, 0, count))]


class GenericStream(SequentialStream):
    """One task after the other, each mixed with general data.

    General data are samples of what the base model was tuned on, or of the kind. They are drawn
    anew for each stage, the first included, and have no stage and no test of their own.

    Args:
        source: Training samples, as ``train`` of a :class:`~dmole.data.Task`.
        share: Share of general samples in an epoch, in [0, 1).
        image_root: Folder that image paths of the source are relative to, as in a task.
        shared_expert: Name of the expert that every stage trains; ``None`` gives each task a
            separate expert.
        name: Name of the general data in ``replay.csv``; no task may have it.
        seed: Seed of the draw; ``None`` uses the seed of the data.

    Raises:
        ValueError: If the share is out of range, or the name is not a name.

    Source:
        Low-rate adapters with 10 to 50% of general data, 2026, https://arxiv.org/abs/2603.14493.
    """

    def __init__(
        self,
        source: str,
        share: float = 0.25,
        image_root: str | None = None,
        shared_expert: str | None = "shared",
        name: str = NAME,
        seed: int | None = None,
    ) -> None:
        super().__init__(shared_expert)
        if not 0 <= share < 1:
            raise ValueError(f"share must be in [0, 1), got {share}")
        self.source = source
        self.share = share
        self.image_root = image_root
        self.name = check_name(name, "name")
        self.seed = seed

    @property
    def general(self) -> tuple[Task, ...]:
        """The general data."""
        return (Task(self.name, train=self.source, image_root=self.image_root),)

    def _draw(self, index: int, task_names: Sequence[str]) -> Draw:
        return GenericMix(self.name, self.share, index, self.seed)
