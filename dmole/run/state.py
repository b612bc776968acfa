"""The state of a sequence, which trainer, callbacks, checkpoints and session share."""

from __future__ import annotations

import logging
import secrets
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dmole.metrics.evaluated import Evaluated, evaluated_tasks
from dmole.models.identity import base_parts
from dmole.run.board import RunBoard
from dmole.run.clock import Clock
from dmole.run.extending import Inheritance
from dmole.run.frozen import FrozenExperts
from dmole.run.run_files import RunFile, RunFiles
from dmole.run.signals import Interruption
from dmole.storage.tensors import DigestCache, tensor_digest
from dmole.store import SPLITS
from dmole.streams.stream import Stage

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import torch
    from lightning.pytorch import Callback, Trainer
    from lightning.pytorch.strategies import Strategy

    from dmole.data.formats import Split
    from dmole.datamodule import ContinualDataModule
    from dmole.models.identity import Parts
    from dmole.module import ContinualModule
    from dmole.run.clock import Lap
    from dmole.run.extending import Parent
    from dmole.run.remaining import Forecast
    from dmole.streams.stream import Stream

log = logging.getLogger("dmole")

C = TypeVar("C")
T = TypeVar("T")

BEFORE_TRAINING = Stage(0, "zero-shot", (), "")
"""Stage 0: the base model without experts."""

PHASES = ("train", "router", "evaluate")
"""Phases of a stage, in order; before the first stage there is only an evaluation."""


class SequenceState:
    """State of a sequence. The trainer owns it; all others read it.

    Args:
        trainer: Lightning's trainer, with its strategy, callbacks, loggers and counters.
        board: TensorBoard logger of the run; its folder is the run folder.
        stream: Orders the tasks into stages.
        incremental_evaluation: Whether a test sample is answered again only if its experts
            changed.
        accept_changes: Whether a checkpoint made with other settings may be resumed.

    Attributes:
        plan: All stages in order; empty before a sequence begins.
        stage: The current stage; its index is 0 before the first stage.
        phase: ``train``, ``router`` or ``evaluate``.
        done: Finished phases, as pairs of stage index and phase.
        samples_trained: Samples that the current stage has trained on so far, on all ranks.
        clock: Seconds, memory and parameters of the run.
        forecast: What the remaining time is estimated from; None before the first phase.
        interruption: Whether a signal requested the end of the run.
        settings: All settings as they were before training; empty until the first checkpoint.
        run_id: Random identifier of the run in its checkpoints.
        fills_rows: Whether earlier stages are evaluated on tasks that were added after them.
        evaluates: Which tasks are evaluated after which stage.
        keeps_embeddings: Whether embeddings are read from the run folder and kept there.
        parent: The finished run that this one extends; None for none.
        inherited: Stages and tasks of the parent, known before the run folder is open.
        files: Digests of the files that the run has written.
        frozen: Files of the experts that no longer train, for checkpoints.
        splits: Splits of the data that are read; an evaluation reads the test samples only.
        changes: Settings that were changed at a resume, in order, see :mod:`dmole.run.changes`.
        saved_settings: Settings of the checkpoint if this run was resumed with others; else empty.
    """

    def __init__(
        self,
        trainer: Trainer,
        board: RunBoard,
        stream: Stream,
        incremental_evaluation: bool = True,
        accept_changes: bool = False,
    ) -> None:
        self.trainer = trainer
        self.stream = stream
        self.incremental_evaluation = incremental_evaluation
        self.accept_changes = accept_changes
        self.plan: list[Stage] = []
        self.stage = BEFORE_TRAINING
        self.phase = "evaluate"
        self.done: set[tuple[int, str]] = set()
        self.samples_trained = 0
        self.clock = Clock()
        self.forecast: Forecast | None = None
        self.interruption = Interruption()
        self.settings: dict[str, str] = {}
        self.changes: list[dict[str, Any]] = []
        self.saved_settings: dict[str, str] = {}
        self.run_id = secrets.token_hex(8)
        self.fills_rows = False
        self.evaluates: Evaluated = "all"
        self.keeps_embeddings = True
        self.parent: Parent | None = None
        self.inherited = Inheritance()
        self.files = RunFiles()
        self.frozen = FrozenExperts()
        self.digests = DigestCache(tensor_digest)  # of tensors that no longer change
        self._board = board
        self._data: ContinualDataModule | None = None
        self.splits: tuple[Split, ...] = SPLITS
        self._fingerprints: dict[str, Any] | None = None
        self._base_parts: Parts | None = None
        self._position: Stage | None = None  # while an earlier stage is revisited

    # -- run folder and data ---------------------------------------------------------------

    @property
    def run_dir(self) -> Path:
        """Folder of the run; the same on every rank."""
        return Path(self._board.log_dir)

    def write_to(self, run: Path) -> None:
        """Set the run folder; TensorBoard writes there from now on."""
        earlier, self._board = self._board, RunBoard(run.parent, name="", version=run.name)
        self.trainer.loggers = [
            self._board if logger is earlier else logger for logger in self.trainer.loggers
        ]

    @property
    def board(self) -> RunBoard:
        """TensorBoard of the run."""
        return self._board

    def put(self, *files: RunFile) -> None:
        """Write files into the run folder and remember their digests; only rank 0 writes."""
        if self.is_global_zero:
            trained = (self._position or self.stage).index - (self.phase == "train")
            self.files.put(self.run_dir, self.plan[: max(0, trained)], files)

    @property
    def data(self) -> ContinualDataModule:
        """The datamodule of the running sequence.

        Raises:
            RuntimeError: If no sequence is running.
        """
        if self._data is None:
            raise RuntimeError("no sequence is running: call fit, evaluate or predict first")
        return self._data

    @data.setter
    def data(self, data: ContinualDataModule) -> None:
        self._data = data

    def fingerprints(self, module: ContinualModule) -> dict[str, Any]:
        """Return the SHA-256 of the base model's weights and, by split, of each task's samples.

        ``base_parts`` is the rest of the base model's identity, see `dmole.models.identity`.
        ``general`` are the digests of general data, where stages train on some.
        """
        if self._fingerprints is None:
            of_task = self._data_fingerprints()
            self._fingerprints = {
                "base": module.backbone.fingerprint(),
                "base_parts": self.base_parts(module),
                "data": {name: of_task[name] for name in self.data.task_names},
            }
            if general := {n: of_task[n] for n in self.data.general_names if n in of_task}:
                self._fingerprints["general"] = general
        return self._fingerprints

    def _data_fingerprints(self) -> dict[str, dict[str, str]]:
        """Return the digests of all samples; of files that are gone, those of the parent."""
        found = self.data.fingerprint(self.splits)
        for task, split in self.data.missing:
            saved = self.inherited.fingerprints.get(task, {})
            found[task] = {s: found[task].get(s, saved.get(s, "")) for s in (*found[task], split)}
        return found

    def base_parts(self, module: ContinualModule) -> Parts:
        """Return the identity of the base model without its weights, which costs little."""
        if self._base_parts is None:
            self._base_parts = base_parts(module.backbone, module.beams)
        return self._base_parts

    def make_plan(self, module: ContinualModule) -> None:
        """Order the tasks into stages, unless the stream has yet to find them in the samples."""
        if self.stream.planned:
            stages = self.stream.stages(self.data.training_task_names)
            self.plan = [replace(stage, common=module.router.common) for stage in stages]

    # -- processes -------------------------------------------------------------------------

    @property
    def strategy(self) -> Strategy:
        """Lightning's strategy, which connects the processes."""
        return self.trainer.strategy

    @property
    def device(self) -> torch.device:
        """Device of this process."""
        return self.trainer.strategy.root_device

    @property
    def is_global_zero(self) -> bool:
        """Whether this process writes the files of the run."""
        return self.trainer.is_global_zero

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return self.trainer.world_size

    def until_requested(self, batches: Iterable[T], module: ContinualModule) -> Iterator[T]:
        """Yield batches until a request to end; see `Interruption.until_requested`.

        Args:
            batches: The batches of this process.
            module: Tells whether its ranks must make the same passes.
        """
        in_step = self.strategy if module.backbone.in_step else None
        return self.interruption.until_requested(batches, in_step)

    # -- stages ----------------------------------------------------------------------------

    def learned(self) -> tuple[Stage, ...]:
        """Return the stages up to and including the current one."""
        return tuple(self.plan[: self.stage.index])

    def seen_tasks(self) -> tuple[str, ...]:
        """Return the tasks of the stages up to and including the current one, in order."""
        return tuple(dict.fromkeys(task for stage in self.learned() for task in stage.tasks))

    def tasks_to_evaluate(self, stage: int) -> list[str]:
        """Return the tasks whose test samples are answered after a stage, in order.

        Args:
            stage: Index of the stage; 0 is before training.
        """
        learned = [stage.tasks for stage in self.plan]
        return evaluated_tasks(self.evaluates, stage, learned, self.data.tested_task_names)

    def updated_expert(self, stage: Stage) -> str | None:
        """Return the expert whose next version a stage trains; None for any other stage.

        A stage with an ``update`` that trains the expert of the earlier task itself, as one shared
        by all tasks, makes no version.
        """
        for task in stage.tasks:
            past = self.data.predecessors.get(task)
            found = next((s.expert for s in self.plan if past in s.tasks), stage.expert)
            if found != stage.expert:
                return found
        return None

    def learned_columns(self) -> list[list[int]]:
        """Return the columns of the matrix that each stage up to the current one learns."""
        names = self.data.column_names
        columns = {name: index for index, name in enumerate(names)}
        return [[columns[t] for t in stage.tasks if t in columns] for stage in self.learned()]

    @contextmanager
    def revisited(self, stage: Stage) -> Iterator[None]:
        """Make an earlier stage the current one while it is evaluated again.

        The stages in ``digests.json`` remain those that the run has learned.
        """
        position = self.stage
        self.stage, self._position = stage, position
        try:
            yield
        finally:
            self.stage, self._position = position, None

    @contextmanager
    def timed(self, phase: str) -> Iterator[Lap]:
        """Time a phase of the current stage."""
        with self.clock.lap(self.stage.index, self.stage.name, phase) as lap:
            yield lap

    # -- callbacks -------------------------------------------------------------------------

    @property
    def callbacks(self) -> list[Callback]:
        """All callbacks of the trainer."""
        return self.trainer.callbacks  # type: ignore[attr-defined, no-any-return]

    def callback_of(self, kind: type[C]) -> C:
        """Return the first callback of a type.

        Raises:
            ValueError: If the trainer has no callback of this type.
        """
        for callback in self.callbacks:
            if isinstance(callback, kind):
                return callback
        raise ValueError(f"the trainer has no callback {kind.__name__}")


def sequence_of(trainer: Trainer) -> SequenceState:
    """Return the state of the sequence that a trainer runs.

    Raises:
        TypeError: If the trainer is a plain Lightning trainer.
    """
    state = getattr(trainer, "sequence", None)
    if not isinstance(state, SequenceState):
        raise TypeError(
            f"this callback needs a dmole.ContinualTrainer, not a {type(trainer).__name__}"
        )
    return state
