"""During the training of a stage: count the experts that each sample trains with."""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningModule, Trainer

from dmole.callbacks.base import ContinualCallback, parts
from dmole.distributed import gather_objects

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dmole.metrics.routing_rates import Count
    from dmole.module import ContinualModule
    from dmole.run.state import SequenceState

log = logging.getLogger("dmole")

_KEY = "training_routing"
"""Key in the checkpoint of a stage."""


class TrainingRouting(ContinualCallback):
    """Counts samples by the gate set that they trained with: the stage's expert and its partner.

    A sample counts once for each epoch. The counts are the rows of ``routing.csv`` with phase
    ``train``; the log names the partners of a stage after its training.
    """

    def __init__(self) -> None:
        self._counts: dict[int, Counter[tuple[str, str]]] = {}  # of earlier steps and stages
        self._running: tuple[int, Counter[tuple[str, str]]] | None = None  # of this rank
        self._incomplete: set[int] = set()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count the steps of this process."""
        state, module = parts(trainer, pl_module)
        self._running = (state.stage.index, module.stage.gate_sets)

    def on_stage_trained(self, state: SequenceState, module: ContinualModule) -> None:
        """Add up the counts of all ranks and log the partners."""
        self._counts, self._running = self._collect(), None
        index, expert = state.stage.index, state.stage.expert
        experts = {
            name for _, gate_set in self._counts.get(index, ()) for name in gate_set.split("+")
        }
        past = experts - {*state.stage.experts, "base"}
        if past or (module.router.needs_embeddings and len(module.library.names) > 1):
            log.info("expert %s: %s", expert, self._partners(index, past))

    def _partners(self, index: int, past: set[str]) -> str:
        """Return how many samples of a stage trained with which partner."""
        if index in self._incomplete:
            return "its checkpoint has no counts of partners"
        totals: Counter[str] = Counter()
        for (_, gate_set), count in self._counts.get(index, Counter()).items():
            names = [name for name in gate_set.split("+") if name in past]
            totals["+".join(names) or "no partner"] += count
        return "; ".join(f"{count} samples trained with {n}" for n, count in totals.most_common())

    def rows(self) -> Iterator[Count]:
        """Yield stage, true task, gate set and number of samples, for all finished stages."""
        for stage, counts in sorted(self._counts.items()):
            if stage not in self._incomplete:
                yield from ((stage, *key, count) for key, count in sorted(counts.items()))

    # -- state -----------------------------------------------------------------------------

    def _collect(self) -> dict[int, Counter[tuple[str, str]]]:
        """Return the counts of all ranks. All ranks must call it."""
        total = dict(self._counts)
        for running in gather_objects(self._running):
            if running is not None:
                stage, counts = running
                total[stage] = total.get(stage, Counter()) + counts
        return total

    def sequence_state_dict(self) -> dict[str, Any]:
        """Return the counts by stage. All ranks must call it."""
        counts = {
            stage: [[*key, count] for key, count in sorted(counts.items())]
            for stage, counts in self._collect().items()
        }
        return {"counts": counts, "incomplete": sorted(self._incomplete)}

    def load_sequence_state_dict(self, state: dict[str, Any]) -> None:
        """Load a state that :meth:`sequence_state_dict` returned.

        Raises:
            ValueError: If it has other values than names and counts.
        """
        rows = [tuple(map(type, row)) for counts in state["counts"].values() for row in counts]
        if any(row != (str, str, int) for row in rows):
            raise ValueError("the counts of training samples are no names and numbers")
        self._counts = {
            int(stage): Counter({(task, gate_set): count for task, gate_set, count in rows})
            for stage, rows in state["counts"].items()
        }
        self._incomplete = set(state["incomplete"])

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the counts of the stage so far. All ranks must call it."""
        checkpoint[_KEY] = self.sequence_state_dict()

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Continue from the counts of a checkpoint; those of earlier versions have none."""
        if _KEY in checkpoint:
            self.load_sequence_state_dict(checkpoint[_KEY])
        else:
            self._incomplete.add(parts(trainer, pl_module)[0].stage.index)
