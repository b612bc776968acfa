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

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector
from lightning.pytorch.utilities import rank_zero_only

from dmole.benchmarks.registry import build_metric
from dmole.callbacks import EvaluationMatrix, StageCheckpoint, default_callbacks
from dmole.callbacks.base import ContinualCallback
from dmole.callbacks.expert_allocation import describe_allocation, plan_allocation
from dmole.predictor import load_experts_and_router
from dmole.routing import AutoencoderRouter
from dmole.run.checkpoint import SequenceCheckpoint
from dmole.run.checkpoint_file import AtomicCheckpointIO
from dmole.run.clock import Clock
from dmole.run.session import Session
from dmole.run.strategies import check_precision, check_strategy
from dmole.storage.files import remove_parts, write_json
from dmole.streams.stream import SequentialStream, Stage, Stream

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dmole.allocation import Allocation
    from dmole.data import Task
    from dmole.datamodule import ContinualDataModule
    from dmole.module import ContinualModule
    from dmole.run import Interruption

log = logging.getLogger("dmole")

HARMLESS = (
    ".*does not have many workers.*",  # a matter of config, and right on a laptop
    ".*smaller than the logging interval.*",  # short stages are common in a sequence
    ".*module\\(s\\) in eval mode at the start of training.*",  # the base model is frozen
    ".*across ranks is zero.*",  # every answer is known already
    ".*`lr_scheduler.step\\(\\)` before `optimizer.step\\(\\)`.*",  # 16-mixed skipped a first step
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
        plugins: Plugins of Lightning, such as a cluster environment.
        checkpoint_every_n_steps: Optimizer steps between two checkpoints within a stage's
            training; 0 saves there on a signal only. After each phase the run is saved anyway.
        accept_changes: Go on with a checkpoint although a setting that changes the numbers, such
            as the learning rate, is another; each is logged. Base model, data and order of tasks
            must be the same in any case.
        kwargs: Any other argument of :class:`lightning.pytorch.Trainer`, except those that the
            sequence decides: epochs belong to the tasks.

    Raises:
        ValueError: If strategy or precision would give wrong numbers, see `dmole.run.strategies`.

    Example:
        >>> from dmole import ContinualDataModule, ContinualModule, ContinualTrainer
        >>> from dmole import PretrainedBackbone, SharedRouter, Task, UniformAllocator
        >>> address = "synthetic://count/{}?size=8"
        >>> task = Task("count", train=address.format("train"), test=address.format("test"))
        >>> module = ContinualModule(PretrainedBackbone("tiny"), UniformAllocator(), SharedRouter())
        >>> trainer = ContinualTrainer(accelerator="cpu", enable_progress_bar=False)
        >>> trainer.fit(module, ContinualDataModule([task]))
        >>> (trainer.run_dir / "evaluation_matrix.csv").read_text().splitlines()[0]
        'stage,count'
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
        plugins: list[Any] | None = None,
        checkpoint_every_n_steps: int = 100,
        accept_changes: bool = False,
        log_every_n_steps: int = 10,
        **kwargs: Any,
    ) -> None:
        for message in HARMLESS:
            warnings.filterwarnings("ignore", message)
        for option, allowed in NOT_OF_A_SEQUENCE.items():
            if kwargs.get(option) not in (None, *allowed):
                raise ValueError(f"trainer.{option} cuts stages short: a sequence needs them whole")
        board = RunBoard(default_root_dir, name=name, version=version)
        progress = kwargs.get("enable_progress_bar") is not False
        super().__init__(
            default_root_dir=default_root_dir,
            callbacks=[
                *default_callbacks(callbacks or [], progress_bar=progress),
                # the last one: what the others counted at a step must be in the checkpoint
                StageCheckpoint(checkpoint_every_n_steps),
            ],
            logger=[board, *(loggers or [])],
            plugins=[AtomicCheckpointIO(), *(plugins or [])],
            log_every_n_steps=log_every_n_steps,
            max_epochs=1,  # set for each stage from its tasks
            num_sanity_val_steps=0,  # there is no validation loop
            enable_model_summary=False,  # would be printed once a stage
            enable_checkpointing=False,  # checkpoints follow the phases, see SequenceCheckpoint
            use_distributed_sampler=False,  # the loader shards by itself, and resumes exactly
            **kwargs,
        )
        check_strategy(self.strategy)
        check_precision(self.precision_plugin)
        self.stream = stream or SequentialStream()
        self.incremental_evaluation = incremental_evaluation
        self.accept_changes = accept_changes
        self.clock = Clock()
        self.sequence_checkpoint = SequenceCheckpoint()
        self.plan: list[Stage] = []
        self.current_stage = BEFORE_TRAINING
        self.phase = "evaluate"
        self.evaluation_pass = "routed"
        self.samples_trained = 0
        self._session = Session(self, name, version)
        self._signal_connector = _NoSignals(self)
        self._board = board
        self._stage_checkpoint: Path | None = None
        self._data: ContinualDataModule | None = None

    @property
    def run_dir(self) -> Path:
        """Folder of this run; the same on every rank."""
        return Path(self._board.log_dir)

    @property
    def data(self) -> ContinualDataModule:
        """The datamodule of the running sequence."""
        if self._data is None:
            raise RuntimeError("no sequence is running: call fit, evaluate or predict first")
        return self._data

    @property
    def interruption(self) -> Interruption:
        """Whether a signal asked the run to end."""
        return self._session.interruption

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
            ckpt_path: What to go on from: ``last``, the newest run of this name; ``auto``, the
                same if there is one and else a fresh run; a run folder or a checkpoint in it.

        Raises:
            ValueError: If the data has a fault, the run folder exists or is in use, model or
                trainer have learned before, the allocator needs scores of a quantized base model,
                or the checkpoint does not fit model and data.
            Interrupted: If a signal asked the run to end; it can be gone on with.
            PeerError: If another process failed.
        """
        if datamodule is None:
            raise ValueError("fit needs a datamodule with the tasks")
        if model.library.names or self.clock.laps:
            raise ValueError("a sequence needs a new module and a new trainer; these have learned")
        if model.allocator.needs_scores:
            model.backbone.check_scorable()

        def prepare() -> None:
            self._begin(model, datamodule)

        with self._session.opened(model, ckpt_path, prepare) as checkpoint:
            self._learn(model, checkpoint)
        log.info("results are in %s", self.run_dir)

    def _learn(self, model: ContinualModule, checkpoint: Path | None) -> None:
        """Go through all phases of all stages that are not done yet."""
        done: set[tuple[int, str]] = set()
        if checkpoint is not None:
            done, self._stage_checkpoint = self.sequence_checkpoint.load(self, model, checkpoint)
            log.info("goes on with %s", self.run_dir)
            if self.is_global_zero:
                remove_parts(self.run_dir)  # of the process that was killed
        else:
            self.sequence_checkpoint.save(self, model, done)  # from now on there is a way back
        for stage in [BEFORE_TRAINING, *self.plan]:
            self.current_stage = stage
            for phase in ("train", "router", "evaluate") if stage.index else ("evaluate",):
                if (stage.index, phase) in done:
                    continue
                self._run_phase(model, phase)
                done.add((stage.index, phase))
                self.sequence_checkpoint.save(self, model, done)
                self.interruption.check(self.strategy)
        self._for_callbacks("on_sequence_end", model)

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
            for name in filter(None, (model.router.common, stage.expert)):
                if name not in plans:
                    plan = plans[name] = plan_allocation(self, model, stage, name)
                    print(describe_allocation(plan, model.count_parameters(plan)))
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
        load_experts_and_router(model, run)
        if threshold_scale is not None:
            router = getattr(model.router, "router", model.router)  # behind a common expert
            if not isinstance(router, AutoencoderRouter):
                raise ValueError(f"a {type(router).__name__} has no thresholds to scale")
            router.threshold_scale = threshold_scale
        self.write_to(output)
        for stage in [BEFORE_TRAINING, *self.plan]:
            used = self._experts_of(model, self.plan[: stage.index])
            if used & self._experts_of(model, self.plan[stage.index :]):
                continue  # those experts are another stage's by now
            self.current_stage, model.visible_experts = stage, len(used)
            self._run_phase(model, "evaluate")
        self._for_callbacks("on_sequence_end", model)

    def _experts_of(self, model: ContinualModule, stages: Sequence[Stage]) -> set[str]:
        """Return the experts that some stages train."""
        common = {model.router.common} if stages and model.router.common else set()
        return {stage.expert for stage in stages} | common

    def _begin(self, model: ContinualModule, datamodule: ContinualDataModule) -> None:
        """Bind model and data to the run and refuse what cannot work before anything is written."""
        self._data = datamodule
        datamodule.attach_processor(model.backbone.processor, model.backbone.context_length)
        datamodule.check()
        for task in datamodule.tasks:
            _check_metric(task)
        model.answer_lengths = {task.name: task.max_new_tokens for task in datamodule.tasks}
        self.plan = self.stream.stages(datamodule.training_task_names)
        for stage in self.plan:
            datamodule.stage_items(stage)  # a buffer too small is found now

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
        self.data.set_stage(stage)
        # Lightning's epoch counter is never reset
        self.fit_loop.max_epochs = self.current_epoch + self.data.epochs(stage.tasks)
        checkpoint, self._stage_checkpoint = self._stage_checkpoint, None
        super().fit(model, datamodule=self.data, ckpt_path=checkpoint, weights_only=True)
        if cut := self.data.collator.truncated:
            log.warning("%d times so far a sample was cut to data.max_length", cut)

    def _evaluate(self, model: ContinualModule) -> None:
        """Answer the test samples with routed experts, then with each task's own (oracle)."""
        self.evaluation_pass = "routed"
        self._answer(model)
        self.evaluation_pass = "oracle"
        table = next(cb for cb in self.callbacks if isinstance(cb, EvaluationMatrix))  # type: ignore[attr-defined]
        if self.current_stage.index and table.prepare(self, model):
            self._answer(model)
        self._for_callbacks("on_evaluation_end", model)

    def _answer(self, model: ContinualModule) -> None:
        """Run Lightning's test loop once; it ends early if the run has to."""
        super().test(model, datamodule=self.data, verbose=False)
        self.interruption.check(self.strategy)

    def write_to(self, run: Path) -> None:
        """Write to a given folder."""
        self._board = RunBoard(run.parent, name="", version=run.name)
        self.loggers = [self._board, *self.loggers[1:]]

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

    def _for_callbacks(self, hook: str, model: ContinualModule) -> None:
        for callback in self.continual_callbacks():
            getattr(callback, hook)(self, model)

    def continual_callbacks(self) -> Sequence[ContinualCallback]:
        """Return the callbacks that act at stage boundaries."""
        return [cb for cb in self.callbacks if isinstance(cb, ContinualCallback)]  # type: ignore[attr-defined]


class RunBoard(TensorBoardLogger):
    """TensorBoard without the file of hyperparameters: a run has its ``config.yaml``."""

    @rank_zero_only
    def save(self) -> None:
        """Write what is waiting."""
        self.experiment.flush()


class _NoSignals(_SignalConnector):
    """Keeps Lightning from handling signals: it would save what it knows of one stage only."""

    def register_signal_handlers(self) -> None:
        self.received_sigterm = False

    def teardown(self) -> None:
        pass


def _check_metric(task: Task) -> None:
    try:
        build_metric(task.metric)
    except ValueError as error:
        raise ValueError(f"task {task.name!r}: {error}") from error
