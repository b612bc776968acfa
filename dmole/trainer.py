"""The stages of a sequence in order, one Lightning fit each, and their phases.

Before the first stage all tasks are evaluated with the bare model. Then each stage trains,
fits the router and is evaluated. What is done in a phase is the callbacks' business; this
module only says in which order, and keeps the clock.
"""

from __future__ import annotations

import logging
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher

from dmole.callbacks import EvaluationMatrix, default_callbacks
from dmole.callbacks.base import ContinualCallback
from dmole.callbacks.expert_allocation import describe_allocation, plan_allocation
from dmole.checkpoint import SequenceCheckpoint
from dmole.clock import Clock
from dmole.data.stream import SequentialStream, Stage, Stream
from dmole.files import write_json
from dmole.metrics import build_metric
from dmole.predictor import load_run
from dmole.routing import AutoencoderRouter

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dmole.allocation import Allocation
    from dmole.data import ContinualDataModule, Task
    from dmole.module import ContinualModule

log = logging.getLogger("dmole")

HARMLESS = (
    ".*does not have many workers.*",  # a matter of config, and right on a laptop
    ".*smaller than the logging interval.*",  # short stages are common in a sequence
    ".*module\\(s\\) in eval mode at the start of training.*",  # the base model is frozen
    ".*Total length of `list` across ranks is zero.*",  # every answer is known already
    ".*treespec, LeafSpec.*",  # Lightning 2.6 against torch 2.13
)
"""Warnings of Lightning that say nothing to a user of a sequence."""

NOT_OF_A_SEQUENCE: dict[str, tuple[Any, ...]] = {
    "max_steps": (-1,),
    "max_time": (),
    "min_steps": (),
    "min_epochs": (),
    "fast_dev_run": (False,),
    "limit_test_batches": (1.0,),
}
"""Arguments of Lightning's trainer that would leave stages or the matrix incomplete."""

BEFORE_TRAINING = Stage(0, "zero-shot", (), "")
"""Stage 0: the bare model."""


class ContinualTrainer(Trainer):
    """A Lightning trainer for a sequence of tasks.

    Args:
        name: Name of the run; its folder is ``<default_root_dir>/<name>/version_<N>``.
        version: Number of the run folder. ``None`` takes the next free one.
        default_root_dir: Where the runs are.
        stream: Orders the tasks into stages.
        incremental_evaluation: Answer a test sample again only where its experts changed. Exact,
            since experts are frozen after their stage and decoding is deterministic.
        callbacks: Callbacks beside the standard ones; one of a standard type replaces it.
        loggers: Loggers beside TensorBoard.
        kwargs: Any other argument of :class:`lightning.pytorch.Trainer`, except those that the
            sequence decides: epochs belong to the tasks.

    Raises:
        ValueError: If the strategy starts new processes for every stage.
    """

    def __init__(
        self,
        name: str = "dmole",
        version: int | None = None,
        default_root_dir: str = "runs",
        stream: Stream | None = None,
        incremental_evaluation: bool = True,
        callbacks: list[Callback] | None = None,
        loggers: list[Logger] | None = None,
        log_every_n_steps: int = 10,
        **kwargs: Any,
    ) -> None:
        for message in HARMLESS:
            warnings.filterwarnings("ignore", message)
        for option, allowed in NOT_OF_A_SEQUENCE.items():
            if kwargs.get(option) not in (None, *allowed):
                raise ValueError(f"trainer.{option} cuts stages short: a sequence needs them whole")
        board = TensorBoardLogger(default_root_dir, name=name, version=version)
        progress = kwargs.get("enable_progress_bar") is not False
        super().__init__(
            default_root_dir=default_root_dir,
            callbacks=default_callbacks(callbacks or [], progress_bar=progress),
            logger=[board, *(loggers or [])],
            log_every_n_steps=log_every_n_steps,
            max_epochs=1,  # set for each stage from its tasks
            num_sanity_val_steps=0,  # there is no validation loop
            enable_model_summary=False,  # would be printed once a stage
            enable_checkpointing=False,  # checkpoints follow the phases, see SequenceCheckpoint
            use_distributed_sampler=False,  # the loader shards by itself, and resumes exactly
            **kwargs,
        )
        if isinstance(self.strategy.launcher, _MultiProcessingLauncher):
            raise ValueError("a sequence needs its processes to last: use trainer.strategy ddp")
        self.stream = stream or SequentialStream()
        self.incremental_evaluation = incremental_evaluation
        self.clock = Clock()
        self.sequence_checkpoint = SequenceCheckpoint()
        self.plan: list[Stage] = []
        self.current_stage = BEFORE_TRAINING
        self.phase = "evaluate"
        self.evaluation_pass = "routed"
        self.samples_trained = 0
        self._board = board
        self._run_dir: Path | None = None
        self._fixed_version = version is not None
        self._data: ContinualDataModule | None = None

    @property
    def run_dir(self) -> Path:
        """Folder of this run; the same on every rank. To be asked by all ranks alike."""
        if self._run_dir is None:
            self._run_dir = Path(self.strategy.broadcast(self._board.log_dir))
        return self._run_dir

    @property
    def data(self) -> ContinualDataModule:
        """The datamodule of the running sequence."""
        if self._data is None:
            raise RuntimeError("no sequence is running: call fit, evaluate or predict first")
        return self._data

    # -- verbs -----------------------------------------------------------------------------

    def fit(  # type: ignore[override]
        self,
        model: ContinualModule,
        datamodule: ContinualDataModule | None = None,
        ckpt_path: str | None = None,
    ) -> None:
        """Learn the sequence of tasks, from the start or from a checkpoint.

        Args:
            model: The module.
            datamodule: The tasks.
            ckpt_path: Checkpoint to go on from: a file, or a run folder.

        Raises:
            ValueError: If the data has a fault, the run folder exists, model or trainer have
                learned before, or the checkpoint does not fit model and data.
        """
        if datamodule is None:
            raise ValueError("fit needs a datamodule with the tasks")
        if model.library.names or self.clock.laps:
            raise ValueError("a sequence needs a new module and a new trainer; these have learned")
        self._begin(model, datamodule)
        done = self._resume(model, ckpt_path)
        self._connect(model)
        for stage in [BEFORE_TRAINING, *self.plan]:
            self.current_stage = stage
            for phase in ("train", "router", "evaluate") if stage.index else ("evaluate",):
                if (stage.index, phase) in done:
                    continue
                self._run_phase(model, phase)
                done.add((stage.index, phase))
                self.sequence_checkpoint.save(self, model, done)
        self._for_callbacks("on_sequence_end", model)
        log.info("results are in %s", self.run_dir)

    def allocate(
        self, model: ContinualModule, datamodule: ContinualDataModule
    ) -> dict[str, Allocation]:
        """Return and print where each stage's expert would go; nothing is trained or written.

        Args:
            model: The module.
            datamodule: The tasks.
        """
        self._begin(model, datamodule)
        plans: dict[str, Allocation] = {}
        for stage in self.plan:
            if stage.expert not in plans:
                device = self.strategy.root_device
                plan = plan_allocation(model, datamodule, stage.expert, stage.tasks, device)
                plans[stage.expert] = plan
                print(describe_allocation(plan))
        return plans

    def evaluate(
        self,
        model: ContinualModule,
        datamodule: ContinualDataModule,
        run: Path,
        output: Path,
        threshold_scale: float | None = None,
    ) -> None:
        """Compute the matrix of a finished run again from its experts and router.

        Rows whose experts went on training afterwards cannot be had again and stay empty.

        Args:
            model: A module without experts.
            datamodule: The tasks, with the test files to use.
            run: Folder of the finished run.
            output: Receives matrices, metrics, routing and predictions; must not exist.
            threshold_scale: Factor on the router's thresholds; None keeps the run's.

        Raises:
            ValueError: If ``output`` exists or the run does not fit the model.
        """
        if output.exists():
            raise ValueError(f"{output} exists; name another output")
        self._begin(model, datamodule)
        load_run(model, run)
        if threshold_scale is not None:
            if not isinstance(model.router, AutoencoderRouter):
                raise ValueError(f"a {type(model.router).__name__} has no thresholds to scale")
            model.router.threshold_scale = threshold_scale
        self.continue_in(TensorBoardLogger(output.parent, name="", version=output.name))
        for stage in [BEFORE_TRAINING, *self.plan]:
            used = {earlier.expert for earlier in self.plan[: stage.index]}
            if used & {later.expert for later in self.plan[stage.index :]}:
                continue  # those experts are another stage's by now
            self.current_stage, model.visible_experts = stage, len(used)
            self._run_phase(model, "evaluate")

    def _begin(self, model: ContinualModule, datamodule: ContinualDataModule) -> None:
        """Bind model and data to the run and refuse what cannot work before anything is written."""
        self._data = datamodule
        datamodule.attach_processor(model.backbone.processor, model.backbone.context_length)
        datamodule.check()
        for task in datamodule.tasks:
            _check_metric(task)
        model.answer_lengths = {task.name: task.max_new_tokens for task in datamodule.tasks}
        self.plan = self.stream.stages(datamodule.training_task_names)

    def _connect(self, model: ContinualModule) -> None:
        """Connect processes that were started for us: a resumed phase may need them at once."""
        environment = getattr(self.strategy, "cluster_environment", None)
        if environment is None or isinstance(environment, LightningEnvironment):
            return  # one process, or one that starts the others later, behind this checkpoint
        if environment.creates_processes_externally:
            self.strategy.connect(model)
            self.strategy.setup_environment()
            log.debug("run folder %s", self.run_dir)  # all ranks must ask before one asks alone

    def _resume(self, model: ContinualModule, ckpt_path: str | None) -> set[tuple[int, str]]:
        """Return the phases that are done, none for a fresh run."""
        if ckpt_path is not None:
            return self.sequence_checkpoint.load(self, model, Path(ckpt_path))
        folder = Path(self._board.log_dir)
        if self._fixed_version and self.is_global_zero and folder.exists():
            raise ValueError(f"the run folder {folder} exists; choose another trainer.version")
        return set()

    # -- phases ----------------------------------------------------------------------------

    def _run_phase(self, model: ContinualModule, phase: str) -> None:
        self.phase = phase
        stage = self.current_stage
        log.info("stage %d/%d %s: %s", stage.index, len(self.plan), stage.name, phase)
        with self.timed(phase) as lap:
            if phase == "train":
                self.samples_trained = 0
                self._train(model)
                lap.samples = self.samples_trained
            elif phase == "router":
                self._for_callbacks("on_stage_trained", model)
            else:
                self._evaluate(model)
        if self.is_global_zero:
            write_json(self.run_dir / "timing.json", self.clock.report())

    def _train(self, model: ContinualModule) -> None:
        stage = self.current_stage
        self.data.set_stage(stage.index, stage.tasks)
        # Lightning's epoch counter is never reset
        self.fit_loop.max_epochs = self.current_epoch + self.data.epochs(stage.tasks)
        super().fit(model, datamodule=self.data)
        if cut := self.data.collator.truncated:
            log.warning("%d times so far a sample was cut to data.max_length", cut)
        if self.interrupted:
            raise KeyboardInterrupt

    def _evaluate(self, model: ContinualModule) -> None:
        """Answer the test samples with routed experts, then with each task's own (oracle)."""
        self.evaluation_pass = "routed"
        super().test(model, datamodule=self.data, verbose=False)
        self.evaluation_pass = "oracle"
        table = next(cb for cb in self.callbacks if isinstance(cb, EvaluationMatrix))  # type: ignore[attr-defined]
        if self.current_stage.index and table.prepare(self, model):
            super().test(model, datamodule=self.data, verbose=False)
        self._for_callbacks("on_evaluation_end", model)

    def continue_in(self, board: TensorBoardLogger) -> None:
        """Write to the folder of an earlier run instead of a new one."""
        self.loggers = [board, *self.loggers[1:]]
        self._board = board
        self._run_dir = None

    # -- helpers ---------------------------------------------------------------------------

    @contextmanager
    def timed(self, phase: str) -> Iterator[Any]:
        """Time a phase of the current stage."""
        stage = self.current_stage
        with self.clock.lap(stage.index, stage.name, phase) as lap:
            yield lap

    def learned(self) -> tuple[Stage, ...]:
        """Return the stages up to and including the current one."""
        return tuple(self.plan[: self.current_stage.index])

    def seen_tasks(self) -> tuple[str, ...]:
        """Return the tasks trained on so far, in order."""
        return tuple(dict.fromkeys(task for stage in self.learned() for task in stage.tasks))

    @property
    def interrupted(self) -> bool:
        """Whether the last fit was stopped from outside."""
        return self.state.status == "interrupted"

    def _for_callbacks(self, hook: str, model: ContinualModule) -> None:
        for callback in self.continual_callbacks():
            getattr(callback, hook)(self, model)

    def continual_callbacks(self) -> Sequence[ContinualCallback]:
        """Return the callbacks that act at stage boundaries."""
        return [cb for cb in self.callbacks if isinstance(cb, ContinualCallback)]  # type: ignore[attr-defined]


def _check_metric(task: Task) -> None:
    try:
        build_metric(task.metric)
    except ValueError as error:
        raise ValueError(f"task {task.name!r}: {error}") from error
