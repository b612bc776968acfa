"""Before each stage: write the samples of earlier stages that it replays."""

from __future__ import annotations

from lightning.pytorch import LightningModule, Trainer

from dmole.callbacks.base import ContinualCallback
from dmole.run.state import sequence_of
from dmole.storage.files import write_csv

HEADER = ("stage", "task", "id")


class ReplayRecord(ContinualCallback):
    """Writes ``replay.csv``: each replayed sample, once for each time it occurs in an epoch.

    There is no such file if the stream does not replay samples. The stages determine the replayed
    samples, so a resumed run writes the same file.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the replayed samples of all stages so far."""
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
