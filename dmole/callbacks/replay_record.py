"""Before each stage: write the samples of earlier stages that it replays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningModule, Trainer

from dmole.callbacks.base import ContinualCallback, parts
from dmole.run.run_files import RunFile
from dmole.storage.files import write_csv

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dmole.module import ContinualModule
    from dmole.run.state import SequenceState
    from dmole.streams.stream import Stage

HEADER = ("stage", "task", "id")


class ReplayRecord(ContinualCallback):
    """Writes ``replay.csv``: each replayed or general sample, as often as an epoch has it.

    There is no such file if the stream does not replay samples. The stages determine the replayed
    samples, so a resumed run writes the same file.
    """

    def __init__(self) -> None:
        self._rows: dict[int, list[dict[str, Any]]] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the replayed samples of all stages so far."""
        if stage == "fit":
            state, module = parts(trainer, pl_module)
            state.put(*self.run_files(state, module))

    def run_files(self, state: SequenceState, module: ContinualModule) -> Iterator[RunFile]:
        """Return ``replay.csv`` if a stage so far replays samples."""
        for stage in state.learned():
            if stage.index not in self._rows:
                self._rows[stage.index] = _rows(state, stage)
        rows = [row for stage in state.learned() for row in self._rows[stage.index]]
        if rows:
            yield RunFile("replay.csv", lambda run: write_csv(run / "replay.csv", HEADER, rows))


def _rows(state: SequenceState, stage: Stage) -> list[dict[str, Any]]:
    return [
        {"stage": stage.index, "task": task, "id": sample.id}
        for sample, task in state.data.replayed_items(stage)
    ]
