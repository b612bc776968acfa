"""The trainer of a sequence: it runs all stages in order, each as one Lightning fit.

Before the first stage, all tasks are evaluated with the base model alone. Then each stage has
three phases: training, router fitting and evaluation. Callbacks do the work of a phase; this file
sets the order.
"""

from __future__ import annotations

import logging
import warnings
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.fabric.plugins import ClusterEnvironment
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger

from dmole.benchmarks.registry import build_metric
from dmole.callbacks import EvaluationMatrix, default_callbacks
from dmole.callbacks.base import ContinualCallback
from dmole.callbacks.expert_allocation import describe_allocation, plan_allocation
from dmole.callbacks.router_comparison import RouterRow, compare_routers
from dmole.callbacks.router_refit import RunRefit, check_comparable
from dmole.callbacks.segments import check_segments, find_segments
from dmole.messages import one_line, show
from dmole.metrics.evaluated import PHRASES, Evaluated, check_evaluated
from dmole.routing import AutoencoderRouter
from dmole.routing.comparison import router_names
from dmole.run.agreement import check_learned
from dmole.run.arguments import check_arguments
from dmole.run.board import RunBoard
from dmole.run.changes import needs_new_answers
from dmole.run.checkpoint import load_sequence, save_sequence
from dmole.run.checkpoint_file import AtomicCheckpointIO
from dmole.run.closing import log_results
from dmole.run.context import EvaluationPass, StageContext
from dmole.run.earlier_layout import join_predictions
from dmole.run.embeddings import open_embeddings
from dmole.run.filling import RowFiller, warn_of_empty_cells
from dmole.run.identity import check_base_of_run
from dmole.run.learned import inherit_fingerprints, load_experts_and_router, stages_to_evaluate
from dmole.run.lightning_private import disable_signal_handlers, keep_module_in_place
from dmole.run.limits import check_limits
from dmole.run.remaining import forecast
from dmole.run.restoring import Restorer, lacks_checkpoint, loss_error, resume_position
from dmole.run.run_files import RunFile
from dmole.run.run_folder import finished_folder
from dmole.run.session import Session
from dmole.run.state import BEFORE_TRAINING, PHASES, SequenceState
from dmole.run.strategies import check_precision, check_strategy, prepare_sharding
from dmole.storage.files import remove_parts, write_json
from dmole.store import SPLITS
from dmole.strategies import ShardedBaseStrategy
from dmole.streams.stream import SequentialStream, Stage, Stream
from dmole.tracking import Tracking

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from dmole.allocation import Allocation
    from dmole.data import Task
    from dmole.data.formats import Split
    from dmole.datamodule import ContinualDataModule
    from dmole.module import ContinualModule

log = logging.getLogger("dmole")

IGNORED_WARNINGS = (
    ".*does not have many workers.*",  # the user's choice, and the right one on a laptop
    ".*smaller than the logging interval.*",  # short stages are common in a sequence
    ".*module\\(s\\) in eval mode at the start of training.*",  # the base model is frozen
    ".*across ranks is zero.*",  # every sample has an answer already
    ".*`lr_scheduler.step\\(\\)` before `optimizer.step\\(\\)`.*",  # 16-mixed skipped a first step
    ".*treespec, LeafSpec.*",  # Lightning 2.6 against torch 2.13
)
"""Warnings of Lightning that do not apply to a sequence."""


class ContinualTrainer(Trainer):
    """A Lightning trainer for a sequence of tasks.

    Args:
        name: Name of the run; its folder is ``<default_root_dir>/<name>/version_<N>``.
        version: Number of the run folder. ``None`` takes the next free one.
        default_root_dir: Folder that holds the runs.
        stream: Orders the tasks into stages.
        incremental_evaluation: Answer a test sample again only if its experts changed. This is
            exact, since experts are frozen after their stage and decoding is deterministic.
        callbacks: Callbacks in addition to the standard ones; a callback of a standard type
            replaces the standard one.
        loggers: Loggers in addition to those of ``report_to``.
        report_to: Names of trackers of experiments: ``tensorboard``, ``wandb``, ``mlflow``,
            ``swanlab``, ``trackio``. None is TensorBoard alone, an empty list is none.
        plugins: Cluster environments of Lightning.
        checkpoint_every_n_steps: Optimizer steps between two checkpoints within the training of a
            stage; 0 saves only on a signal. The run is always saved after each phase.
        accept_changes: Resume a checkpoint even if a setting that changes the results, such as the
            learning rate, differs; each difference is logged with the stage or step from which it
            counts, and refused if it can no longer count. Base model, data and order of tasks must
            always be the same.
        evaluate: Tasks whose test samples are answered: ``all`` after each stage and before
            training, ``seen`` after each stage those learned so far, or all after the ``last``
            stage alone. Figures that need the others are missing; see ``docs/metrics.md``.
        fill_rows: Evaluate the stages of a finished run that this run extends on the new tasks,
            too, so that the matrix has no empty cells. A row stays as it is if a later stage has
            trained its experts further.
        keep_embeddings: Keep the router embeddings of samples in the run folder, so that a resumed
            run, an evaluation of the run and a run that extends it read them.
        case_images: Number of test samples of each task whose images are kept in the run folder, at
            most 160 pixels wide and high, for reports; 0 keeps none.
        report: Write ``report.html``, the page of the run, after each stage and at the end.
        kwargs: Any other argument of :class:`lightning.pytorch.Trainer`, except those that the
            sequence sets itself; epochs are a setting of the tasks.

    Raises:
        ValueError: If strategy or precision would give wrong results, see `dmole.run.strategies`,
            or a name of ``report_to`` is unknown or not installed.

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
        report_to: list[str] | None = None,
        plugins: list[ClusterEnvironment] | None = None,
        checkpoint_every_n_steps: int = 100,
        accept_changes: bool = False,
        evaluate: Evaluated = "all",
        fill_rows: bool = False,
        keep_embeddings: bool = True,
        case_images: int = 24,
        report: bool = True,
        log_every_n_steps: int = 10,
        **kwargs: Any,
    ) -> None:
        for message in IGNORED_WARNINGS:
            warnings.filterwarnings("ignore", message)
        known = {"name": name, "version": version, "log_every_n_steps": log_every_n_steps}
        check_arguments(known | kwargs)
        check_evaluated(evaluate)
        self._tracking = Tracking(report_to)
        board = RunBoard(default_root_dir, name=name, version=version)
        boards = [board] if self._tracking.uses_tensorboard else []
        super().__init__(
            default_root_dir=default_root_dir,
            callbacks=default_callbacks(
                callbacks or [],
                progress_bar=kwargs.get("enable_progress_bar") is not False,
                checkpoint_every_n_steps=checkpoint_every_n_steps,
                case_images=case_images,
                report=report,
            ),
            logger=[*boards, *(loggers or [])],
            plugins=[AtomicCheckpointIO(), *(plugins or [])],
            log_every_n_steps=log_every_n_steps,
            max_epochs=1,  # each stage sets it from its tasks
            num_sanity_val_steps=0,  # there is no validation loop
            enable_model_summary=False,  # it would be printed in every stage
            enable_checkpointing=True,  # by StageCheckpoint, which Lightning runs last
            use_distributed_sampler=False,  # the loader shards the data and resumes exactly
            **kwargs,
        )
        check_strategy(self.strategy)
        keep_module_in_place(self.strategy)
        check_precision(self.precision_plugin)
        stream = stream or SequentialStream()
        self.sequence = SequenceState(self, board, stream, incremental_evaluation, accept_changes)
        self._session = Session(self.sequence, name, version)
        self._stage_checkpoint: Path | None = None
        self.sequence.evaluates = evaluate
        self.sequence.fills_rows = fill_rows
        self.sequence.keeps_embeddings = keep_embeddings
        disable_signal_handlers(self)

    @property
    def run_dir(self) -> Path:
        """Folder of this run; the same on every rank."""
        return self.sequence.run_dir

    # -- commands --------------------------------------------------------------------------

    def fit(  # type: ignore[override]
        self,
        model: ContinualModule,
        datamodule: ContinualDataModule | None = None,
        ckpt_path: str | None = None,
    ) -> None:
        """Learn the sequence of tasks, from the start or from a checkpoint.

        The module stays on the device of this process, from the first phase on.

        Args:
            model: The module.
            datamodule: The tasks.
            ckpt_path: Checkpoint to resume. ``last`` is the newest run of this name. ``auto`` is
                the same if there is one, else a new run starts. It may also be a run folder or a
                checkpoint in it. If that run is finished and its tasks are followed by others in
                the data, a new run folder begins with its results and learns the others.

        Raises:
            ValueError: If the data has an error, the run folder exists or is in use, model or
                trainer have been trained before, or the checkpoint does not fit model and data.
            Interrupted: If a signal requested the end of the run; it can be resumed.
            PeerError: If another process failed.
        """
        if datamodule is None:
            raise ValueError("fit needs a datamodule with the tasks")
        if model.library.names or self.sequence.clock.laps:
            raise ValueError("a sequence needs a new module and a new trainer; these have learned")

        def prepare() -> None:
            self._begin(model, datamodule, ckpt_path)
            check_limits(self.sequence, model)

        with self._session.opened(model, ckpt_path, prepare) as checkpoint:
            try:
                self._learn(model, checkpoint)
            finally:
                self.sequence.board.finalize("ended")
        if gone := [task for task, split in datamodule.missing if split == "test"]:
            log.warning("evaluated without: %s; their test files are gone", ", ".join(gone))
        log_results(self.sequence, self.sequence.callback_of(EvaluationMatrix).results)
        log.info("results are in %s", self.run_dir)

    def _learn(self, module: ContinualModule, checkpoint: Path | None) -> None:
        """Run all phases of all stages that are not done yet."""
        state = self.sequence
        open_embeddings(state, module, state.run_dir, grows=True)
        if checkpoint is not None:
            self._resume(module, checkpoint)
        else:
            save_sequence(state, module)  # from now on the run can be resumed
        self._tracking.start(state, module)
        if not state.stream.planned:
            self._find_stages(module)
            save_sequence(state, module)
        for stage in [BEFORE_TRAINING, *state.plan]:
            state.stage = stage
            for phase in PHASES if stage.index else PHASES[-1:]:
                if (stage.index, phase) in state.done:
                    continue
                self._run_phase(module, phase)
                state.done.add((stage.index, phase))
                if phase != "evaluate":
                    check_learned(state, module, f"after phase {phase} of stage {stage.index}")
                self._restore(module)
                save_sequence(state, module)
                state.interruption.check(state.strategy)
        warn_of_empty_cells(self._fill_rows(module))
        self._end(module)
        self._complete(module)
        self._tracking.finish(state)

    def _resume(self, module: ContinualModule, checkpoint: Path) -> None:
        """Restore the state of a checkpoint, and the files of the run that were lost."""
        state = self.sequence
        self._stage_checkpoint = load_sequence(state, module, checkpoint)
        check_learned(state, module, "in the checkpoint")
        log.info("resuming %s", state.run_dir)
        if needs_new_answers(state):
            state.callback_of(EvaluationMatrix).forget_answers(state)
        if self.is_global_zero:
            remove_parts(state.run_dir)  # left by a killed process
        if resume_position(state):
            join_predictions(state, state.callback_of(EvaluationMatrix))
            self._restore(module, thorough=True)
            if state.phase == "evaluate":  # else an evaluation is to be resumed first
                self._fill_rows(module)

    def allocate(
        self, model: ContinualModule, datamodule: ContinualDataModule
    ) -> dict[str, Allocation]:
        """Return and print the allocation of each stage's expert, without training or files.

        Args:
            model: The module.
            datamodule: The tasks.
        """
        self._begin(model, datamodule)
        if not self.sequence.stream.planned:
            self._find_stages(model)
        check_limits(self.sequence, model)
        plans: dict[str, Allocation] = {}
        for stage in self.sequence.plan:
            for name in reversed(stage.experts):  # the common expert comes first, as in a run
                if name not in plans:
                    plan = plan_allocation(self.sequence, model, stage, name)
                    past = self.sequence.updated_expert(stage)
                    if past is not None and name == stage.expert:
                        plan = plan.starting_from(plans[past])
                    plans[name] = plan
                    show(describe_allocation(plan, model.count_parameters(plan)))
        if model.allocator.start == "closest" and len(plans.keys() - {model.router.common}) > 1:
            show("start: closest: a later expert that starts from a past one takes its units")
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

        A row stays empty if a later stage continued to train its experts.

        Args:
            model: A module without experts.
            datamodule: The tasks, with the test files to use: those of the run, some of them in any
                order, or others. Training files are not read.
            run: Folder of the finished run.
            output: Folder for matrices, metrics, routing and predictions; must not exist.
            threshold_scale: Factor on the router's thresholds; None keeps those of the run.

        Raises:
            ValueError: If ``output`` exists, a file of the run was changed, the run does not fit
                the model, or the base model differs from that of the run and changes are not
                accepted. ``output`` is then not made.
        """
        state = self.sequence
        self._open_finished(model, datamodule, run, ("test",))
        if threshold_scale is not None:
            router = getattr(model.router, "router", model.router)  # inside CommonExpertRouter
            if not isinstance(router, AutoencoderRouter):
                raise ValueError(f"a {type(router).__name__} has no thresholds to scale")
            router.threshold_scale = threshold_scale
        with finished_folder(output, writes=self.is_global_zero) as folder:
            state.write_to(folder)
            try:
                for stage in [BEFORE_TRAINING, *state.plan]:
                    if _experts(state.plan[: stage.index]) & _experts(state.plan[stage.index :]):
                        continue  # a later stage has changed these experts
                    state.stage = stage
                    self._run_phase(model, "evaluate")
                self._end(model)
            finally:
                state.board.finalize("ended")
            state.strategy.barrier()  # other processes write their answers there

    def compare_routers(
        self,
        model: ContinualModule,
        datamodule: ContinualDataModule,
        run: Path,
        output: Path,
        names: Sequence[str],
    ) -> list[RouterRow]:
        """Fit routers to the experts of a finished run, and compare their routing of test samples.

        No expert is trained. Embeddings that the run has kept are read, others are computed.

        Args:
            model: A module without experts.
            datamodule: The tasks of the run, with their training and test files.
            run: Folder of the finished run.
            output: Folder for the tables; must not exist.
            names: Names of :data:`dmole.routing.comparison.ROUTERS`, or ``all``.

        Returns:
            One row for each router, that of the run as it was saved first.

        Raises:
            ValueError: As for :meth:`evaluate`, or if a name is unknown, the run has no experts
                of tasks, or a named router cannot choose among them. ``output`` is then not made.
        """
        state = self.sequence
        router_names(names)  # refuses unknown names before anything is loaded
        own = deepcopy(model.router)
        self._open_finished(model, datamodule, run, SPLITS)
        check_comparable(state, model, run)
        state.stage = state.plan[-1]
        with finished_folder(output, writes=self.is_global_zero) as folder:
            state.write_to(folder)
            try:
                refit = RunRefit(state, model, own, run)
                rows = compare_routers(state, model, refit, names, self._answer)
            finally:
                state.board.finalize("ended")
            state.strategy.barrier()  # other processes write their answers there
        return rows

    def _open_finished(
        self,
        model: ContinualModule,
        datamodule: ContinualDataModule,
        run: Path,
        splits: tuple[Split, ...],
    ) -> None:
        """Load the experts, the router and the stages of a finished run."""
        state = self.sequence
        if isinstance(self.strategy, ShardedBaseStrategy):
            self.strategy.leave_whole()
        self._bind(model, datamodule, splits)
        check_base_of_run(run, state.fingerprints(model), state.accept_changes)
        load_experts_and_router(model, run)
        state.plan = stages_to_evaluate(state, model, run)
        inherit_fingerprints(state, model, run)
        open_embeddings(state, model, run, grows=False)

    def _bind(
        self,
        module: ContinualModule,
        data: ContinualDataModule,
        splits: tuple[Split, ...] = SPLITS,
        optional: Collection[str] = (),
    ) -> None:
        """Bind module and data to the run, and read the data; see `ContinualDataModule.check`."""
        state = self.sequence
        state.data, state.splits = data, splits
        data.trainer = self  # Lightning sets it in the first fit or test only
        base = module.backbone
        data.attach_processor(base.processor, base.context_length, base.prompts)
        data.add_general(state.stream.general)
        data.check(splits, optional)
        for task in data.tasks:
            _check_metric(task)

    def _begin(
        self, module: ContinualModule, data: ContinualDataModule, ckpt_path: str | None = None
    ) -> None:
        """Bind module and data to the run, and refuse invalid input before any file is written."""
        state = self.sequence
        state.data = data
        state.make_plan(module)
        prepare_sharding(self.strategy, self.world_size, module, data)
        state.inherited = self._session.inheritance(ckpt_path)
        self._bind(module, data, optional=state.inherited.tasks)
        if ckpt_path is None and module.allocator.initializer is not None:
            module.allocator.initializer.check_files()
        if not state.stream.planned:
            check_segments(state, module)
        for stage in state.plan[state.inherited.stages :]:
            try:
                data.stage_items(stage)  # refuses a replay buffer that is too small
            except FileNotFoundError as error:
                raise ValueError(
                    f"stage {stage.name} trains on samples of earlier tasks too, which are gone: "
                    f"{one_line(error)}"
                ) from error

    def _find_stages(self, module: ContinualModule) -> None:
        """Let the stream find its stages in the samples."""
        find_segments(self.sequence, module)
        self.sequence.make_plan(module)
        check_limits(self.sequence, module)

    def _end(self, module: ContinualModule) -> None:
        """Let callbacks act at the end, and close the loggers, which figures have opened again."""
        self._call_continual("on_sequence_end", module)
        for logger in self.loggers:
            logger.finalize("success")

    def _complete(self, module: ContinualModule) -> None:
        """Make sure that the run has all its files; raise if some cannot be written again."""
        lost = self._restore(module, thorough=True)
        if lacks_checkpoint(self.sequence):
            save_sequence(self.sequence, module)
        if lost:
            raise loss_error(self.sequence, lost)

    # -- phases ----------------------------------------------------------------------------

    def _run_phase(self, module: ContinualModule, phase: str) -> None:
        state, stage = self.sequence, self.sequence.stage
        state.phase = phase
        state.forecast = forecast(state)
        left = state.forecast.remaining().text()
        text = f"stage {stage.index}/{len(state.plan)} {stage.name}: {phase}"
        log.info("%s (%s)" if left else "%s%s", text, left)
        with state.timed(phase) as lap:
            if phase == "train":
                state.samples_trained = 0
                self._train(module)
                lap.samples = state.samples_trained
            elif phase == "router":
                self._finish_training(module)
            else:
                self._evaluate(module)
        state.put(self._timing())

    def _timing(self) -> RunFile:
        report = self.sequence.clock.report
        return RunFile("timing.json", lambda run: write_json(run / "timing.json", report()), False)

    def _restore(self, module: ContinualModule, *, thorough: bool = False) -> list[str]:
        """Write lost files of the run again; return those that cannot be; see `restoring`."""
        self._session.keep_lock()
        matrix = self.sequence.callback_of(EvaluationMatrix)
        restorer = Restorer(self.sequence, module, matrix, self._answer)
        return restorer.restore(self._timing(), thorough=thorough)

    def _fill_rows(self, module: ContinualModule) -> dict[int, str]:
        """Fill empty cells of earlier rows if asked; return why others stay, by stage."""
        if not self.sequence.fills_rows:
            return {}

        def save() -> None:
            if self._stage_checkpoint is None:  # saving would remove that of a stage in training
                save_sequence(self.sequence, module)

        matrix = self.sequence.callback_of(EvaluationMatrix)
        return RowFiller(self.sequence, module, matrix, self._answer, save).fill()

    def _train(self, module: ContinualModule) -> None:
        state = self.sequence
        state.data.set_stage(state.stage)
        self._call_continual("on_stage_start", module)
        # Lightning's epoch counter is never reset
        self.fit_loop.max_epochs = self.current_epoch + state.data.epochs(state.stage.tasks)
        checkpoint, self._stage_checkpoint = self._stage_checkpoint, None
        with module.restored.of(checkpoint):
            super().fit(module, datamodule=state.data, ckpt_path=checkpoint, weights_only=True)
        if cut := state.data.collator.truncated:
            log.warning("samples were cut to data.max_length %d times so far", cut)

    def _finish_training(self, module: ContinualModule) -> None:
        stage = self.sequence.stage
        if module.stage.index == stage.index:
            module.focus(module.stage)
        else:  # another process has trained the stage
            module.focus(StageContext.of(stage, self.sequence.data.epochs(stage.tasks)))
        self._call_continual("on_stage_trained", module)
        self._call_continual("on_experts_final", module)

    def _evaluate(self, module: ContinualModule) -> None:
        """Answer the test samples with routed experts, then with those of their task (oracle)."""
        state, matrix = self.sequence, self.sequence.callback_of(EvaluationMatrix)
        if not state.tasks_to_evaluate(state.stage.index) and state.evaluates != "all":
            which = state.evaluates
            log.info("not evaluated (trainer.evaluate %s: %s)", which, PHRASES[which])
            self._call_continual("on_evaluation_end", module)
            return
        routed = matrix.plan(state, module)
        self._answer(module, routed)
        oracle = matrix.plan_oracle(state, module, routed)
        if oracle.pending:
            self._answer(module, oracle)
        matrix.add_row(state, module, routed, oracle)
        self._call_continual("on_evaluation_end", module)

    def _answer(self, module: ContinualModule, evaluation: EvaluationPass) -> None:
        """Run Lightning's test loop once; it ends early if a signal requests the end of the run."""
        state = self.sequence
        module.evaluation = evaluation
        state.data.set_evaluation(evaluation)
        super().test(module, datamodule=state.data, verbose=False)
        module.evaluation = EvaluationPass()
        state.interruption.check(state.strategy)

    def _call_continual(self, hook: str, module: ContinualModule) -> None:
        for callback in self.sequence.callbacks:
            if isinstance(callback, ContinualCallback):
                getattr(callback, hook)(self.sequence, module)


def _experts(stages: Sequence[Stage]) -> set[str]:
    """Return the experts that some stages train."""
    return {name for stage in stages for name in stage.experts}


def _check_metric(task: Task) -> None:
    try:
        build_metric(task.metric)
    except ValueError as error:
        raise ValueError(f"task {task.name!r}: {error}") from error
