"""Before each stage: write which samples of earlier stages it trains on again."""

from __future__ import annotations

from lightning.pytorch import LightningModule, Trainer

from dmole.callbacks.base import ContinualCallback
from dmole.run.state import sequence_of
from dmole.storage.files import write_csv

HEADER = ("stage", "task", "id")


class ReplayRecord(ContinualCallback):
    """Writes ``replay.csv``: each replayed sample, as often as it comes in an epoch.

    Where a stream replays nothing there is no such file. What was replayed follows from the
    stages, so a resumed run writes the same.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write what the stages so far have replayed."""
        state = sequence_of(trainer)
        if stage != "fit" or not state.is_global_zero:
            return
        rows = [
            {"stage": learned.index, "task": task, "id": sample.id}
            for learned in state.learned()
            for sample, task in state.data.replayed_items(learned)
        ]
        if rows:
            write_csv(state.run_dir / "replay.csv", HEADER, rows)
