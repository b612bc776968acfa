"""Answer style diversification: part of each task in other styles of answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dmole.data.answer_styles import STYLES
from dmole.streams.draws import Draw, Inventory, Part, Rewording, random_order
from dmole.streams.stream import SequentialStream


@dataclass(frozen=True)
class AnswerStyles(Draw):
    """All samples of the stage's tasks, a share of them in another style of answer.

    Args:
        share: Share of the samples of a task that are reworded, in [0, 1].
        styles: Names of `dmole.data.answer_styles.STYLES`; each gets an equal part of the share.
        seed: Seed of the choice; ``None`` uses the seed of the data.
    """

    share: float
    styles: tuple[str, ...]
    seed: int | None

    def arriving(self, tasks: Sequence[str], data: Inventory, seed: int) -> list[Part]:
        """Return the samples of the tasks; the same ones are reworded in every epoch."""
        own_seed = seed if self.seed is None else self.seed
        return [
            Part(name, rewording=self._rewording(name, data, own_seed))
            for name in tasks
            for _ in range(data.repeat(name))
        ]

    def _rewording(self, name: str, data: Inventory, seed: int) -> Rewording | None:
        size = data.train_size(name)
        count = round(self.share * size)
        if not count:
            return None
        chosen = random_order(size, seed, "styles", name)[:count].tolist()
        styles = {index: self.styles[i % len(self.styles)] for i, index in enumerate(chosen)}
        return Rewording(styles, seed)


class AnswerStyleStream(SequentialStream):
    """One task after the other, with part of each task in other styles of answer.

    A task whose answers all have one form teaches a model to give this form to any question.
    Yes/no questions, choices and sentences about the same images keep it from that. See
    `dmole.data.answer_styles` for their wording.

    Args:
        share: Share of the samples of a task that are reworded, in [0, 1]; they take the place
            of the original ones.
        styles: Styles, each of an equal part of the share: ``yes_no``, ``choice``, ``sentence``.
        shared_expert: Name of the expert that every stage trains; ``None`` gives each task a
            separate expert.
        seed: Seed of the choice; ``None`` uses the seed of the data.

    Raises:
        ValueError: If the share is out of range, or a style is unknown.

    Source:
        SEFE, 2025, https://arxiv.org/abs/2505.02486; rules in place of its language model are ours.
    """

    def __init__(
        self,
        share: float = 0.2,
        styles: Sequence[str] = STYLES,
        shared_expert: str | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__(shared_expert)
        if not 0 <= share <= 1:
            raise ValueError(f"share must be in [0, 1], got {share}")
        if not styles or not {*styles} <= {*STYLES}:
            raise ValueError(f"styles must be some of {', '.join(STYLES)}, got {list(styles)}")
        self.share = share
        self.styles = list(styles)
        self.seed = seed

    def _draw(self, index: int, task_names: Sequence[str]) -> Draw:
        return AnswerStyles(self.share, tuple(self.styles), self.seed)
