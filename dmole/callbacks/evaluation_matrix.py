"""After each stage: answer the test samples of all tasks, score them, fill the matrix.

Experts are frozen after their stage and decoding is deterministic, so an answer is a function
of the sample and its gate set. Answers are kept under that key, and only samples whose gate set
is new are answered again.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from dmole.benchmarks.registry import build_metric
from dmole.callbacks.answers import AnswerBook, AnswerJournal
from dmole.callbacks.base import ContinualCallback, parts
from dmole.callbacks.evaluation_plan import journal_of, plan_oracle, plan_routed, sample_names
from dmole.callbacks.evaluation_results import (
    METRICS,
    constant_answers,
    count_active,
    expert_starts,
    matrix_file,
    metrics_file,
    prediction_lines,
    predictions,
    router_rates,
    routing_file,
    run_sizes,
    subsample_facts,
    unparsable_answers,
)
from dmole.callbacks.extended_results import extended_results
from dmole.callbacks.measuring import MeasuredSamples
from dmole.callbacks.skipped_steps import SkippedSteps
from dmole.callbacks.training_routing import TrainingRouting
from dmole.distributed import gather_objects
from dmole.metrics import retention, scoring_facts, summarize
from dmole.metrics.counterparts import KEY as COUNTERPARTS
from dmole.metrics.counterparts import counterparts_of_run
from dmole.metrics.evaluated import KEY as EVALUATED
from dmole.metrics.evaluated import evaluated_facts
from dmole.metrics.subsample import KEY as SUBSAMPLE
from dmole.metrics.subsample import standard_error
from dmole.metrics.summary import RUN_FORMAT
from dmole.module import Answers
from dmole.routing import GenerativeRouter, gate_set_name
from dmole.run.changes import leaves_cells_empty
from dmole.run.run_files import RunFile
from dmole.storage.predictions import predictions_file, read_stage
from dmole.storage.values import listed

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    import numpy.typing as npt

    from dmole.metrics import TaskScore
    from dmole.module import ContinualModule
    from dmole.run.context import EvaluationPass
    from dmole.run.extending import Parent
    from dmole.run.state import SequenceState

log = logging.getLogger("dmole")

EXAMPLES = 2
"""Test samples of a task whose answers are shown after each stage."""


class EvaluationMatrix(ContinualCallback):
    """Holds the evaluation matrix, the oracle matrix, the routing counts and all answers.

    The trainer plans the two passes of a stage with :meth:`plan` and :meth:`plan_oracle`, runs
    Lightning's test loop on each, and then calls :meth:`add_row`.

    Args:
        avg_scope: Whether AVG is over ``all`` stages or those that have ``seen`` the task.

    Attributes:
        matrix: ``(stages + 1, tasks)`` in percent; row 0 is before training; NaN is not evaluated.
        errors: Standard errors of the scores where ``data.eval_limit`` draws test samples.
        oracle: The same with the experts that each task was trained with, seen tasks only.
        routing: ``(stage, true task, gate set, count)`` of every evaluated stage.
        losses: Reconstruction losses of the test samples at the last evaluation, by expert and
            true task.
        scores: Each task's scores at the last evaluation, under all profiles of its metric.
        examples: Lines of the first `EXAMPLES` test samples of each task in the file of
            predictions of the last evaluation.

    Example:
        >>> from dmole import ContinualTrainer
        >>> from dmole.callbacks import EvaluationMatrix
        >>> matrix = EvaluationMatrix(avg_scope="seen")  # replaces the standard one
        >>> trainer = ContinualTrainer(callbacks=[matrix], accelerator="cpu")
        >>> [cb.avg_scope for cb in trainer.callbacks if isinstance(cb, EvaluationMatrix)]
        ['seen']
    """

    def __init__(self, avg_scope: str = "all") -> None:
        if avg_scope not in ("all", "seen"):
            raise ValueError(f"avg_scope must be 'all' or 'seen', got {avg_scope!r}")
        self.avg_scope = avg_scope
        self.matrix: npt.NDArray[np.float64] = np.empty((0, 0))
        self.oracle: npt.NDArray[np.float64] = np.empty((0, 0))
        self.errors: npt.NDArray[np.float64] = np.empty((0, 0))
        self.routing: list[tuple[int, str, str, int]] = []
        self.answers = AnswerBook()
        self._measured = MeasuredSamples()
        self.losses: Mapping[str, Mapping[str, Sequence[float]]] = {}
        self.scores: dict[str, TaskScore] = {}
        self.examples: dict[str, list[dict[str, Any]]] = {}
        self._metrics: dict[str, Any] | None = None
        self._constants: dict[str, dict[str, Any]] = {}
        self._journal = AnswerJournal()
        self._new_answers: list[Answers] = []

    # -- the two passes --------------------------------------------------------------------

    def plan(self, state: SequenceState, module: ContinualModule) -> EvaluationPass:
        """Return the pass that answers the test samples of a stage with the router's experts.

        These are the samples of the tasks to evaluate, and of tasks whose cells in the row of the
        stage are not empty. It does not change the state. All ranks must call it.

        Raises:
            Interrupted: If a signal requested the end of the run.
        """
        answers = self.answers if state.incremental_evaluation else AnswerBook()
        known = self.evaluated_tasks(state, state.stage.index)
        wanted = {*state.tasks_to_evaluate(state.stage.index), *known}
        tasks = [task for task in state.data.tested_task_names if task in wanted]
        return plan_routed(state, module, answers, tasks, self._measured)

    def plan_oracle(
        self, state: SequenceState, module: ContinualModule, routed: EvaluationPass
    ) -> EvaluationPass:
        """Return the pass that answers samples of seen tasks with the experts of their tasks.

        It does not change the state.

        Args:
            state: Has the evaluated stage.
            module: Has experts and router.
            routed: The routed pass, whose answers are used again.
        """
        return plan_oracle(state, module, routed, self.answers)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Open the journal of a pass."""
        if stage != "test":
            return
        state, module = parts(trainer, pl_module)
        evaluation = module.evaluation
        if evaluation.name == "routed" and not state.incremental_evaluation:
            self.answers.clear()
        plan, digests = evaluation.gate_sets, evaluation.digests
        earlier = self._journal.open(*journal_of(state, evaluation), plan, digests)
        gate_sets = [plan[key] for key in earlier]
        self._new_answers = [Answers(list(earlier), list(earlier.values()), gate_sets)]

    def on_test_batch_end(  # noqa: D102 - Lightning's hook
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        answers: Answers = outputs["answers"]
        self._new_answers.append(answers)
        self._journal.add(answers.keys, answers.texts, answers.gate_sets)
        state, module = parts(trainer, pl_module)
        in_step = module.backbone.in_step  # then all ranks end after the same batch
        if state.interruption.agreed(state.strategy) if in_step else state.interruption.requested:
            raise StopIteration  # ends Lightning's test loop; then the trainer ends the run

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Collect the answers of all ranks."""
        if stage != "test":
            return
        _, module = parts(trainer, pl_module)
        plan, digests = module.evaluation.gate_sets, module.evaluation.digests
        for answers in gather_objects(self._new_answers):
            for batch in answers:
                for key, text in zip(batch.keys, batch.texts, strict=True):
                    self.answers.put(key, plan[key], digests, text)
        self._new_answers = []

    # -- after both passes -----------------------------------------------------------------

    def add_row(
        self,
        state: SequenceState,
        module: ContinualModule,
        routed: EvaluationPass,
        oracle: EvaluationPass,
    ) -> None:
        """Score the answers of both passes, append the row of the stage and write the files."""
        stage = state.stage.index
        self._grow(state)
        self.losses = routed.losses
        tested = state.tasks_to_evaluate(state.stage.index)
        lines: dict[str, Iterator[dict[str, Any]]] = {}
        for column, task in enumerate(state.data.column_names):
            if task not in tested:
                continue  # the cell stays empty
            score = self.score(state, task, routed)
            self._enter(state, task, score)
            self.scores[task] = score
            if task in state.seen_tasks():
                self.oracle[stage, column] = self.score(state, task, oracle).value
            self._count(state, task, routed)
            lines[task] = self._lines(state, task, routed, score)
            self.examples[task] = list(islice(self._lines(state, task, routed, score), EXAMPLES))
        self._metrics = self.metrics(state, module)
        count_active(state, module, routed)
        log.info("scores: %s", self._row_text(state))
        if unread := unparsable_answers(self.scores):
            log.info("answers that are blank or that the metric cannot read: %s", unread)
        state.put(predictions(stage, lines), *self._tables(state))
        self.answers.keep_only([(each.gate_sets, each.digests) for each in (routed, oracle)])

    def recover(
        self,
        state: SequenceState,
        module: ContinualModule,
        routed: EvaluationPass,
        lost: Collection[str],
    ) -> None:
        """Write lost files of the current stage from the answers of a repeated routed pass.

        Args:
            state: Has the stage, whose evaluation was repeated.
            module: Has experts and router.
            routed: The repeated pass.
            lost: Names of files that are missing or changed.
        """
        stage, lines = state.stage.index, {}
        tested = state.data.tested_task_names
        for task in (name for name in self.evaluated_tasks(state, stage) if name in tested):
            score = self.score(state, task, routed)
            if stage == self.evaluated[-1]:
                self.scores[task] = score
            lines[task] = self._lines(state, task, routed, score)
        if predictions_file(stage) in lost:
            state.put(predictions(stage, lines))
        if METRICS in lost and stage == self.evaluated[-1]:
            self._metrics = self.metrics(state, module)
            state.put(*(file for file in self._tables(state) if file.name == METRICS))

    def empty_tasks(self, state: SequenceState, stage: int) -> list[str]:
        """Return the tasks to evaluate whose cells in the row of a stage are empty.

        There are none before the stage was evaluated.
        """
        if (stage, "evaluate") not in state.done or not self.matrix.size:
            return []
        row = zip(state.data.column_names, self.matrix[stage], strict=True)
        tasks = state.tasks_to_evaluate(stage)
        return [task for task, value in row if np.isnan(value) and task in tasks]

    def fill_row(
        self,
        state: SequenceState,
        routed: EvaluationPass,
        oracle: EvaluationPass,
        tasks: Collection[str],
    ) -> None:
        """Fill the cells of some tasks in the row of the current stage, and write the files."""
        stage, columns = state.stage.index, list(state.data.column_names)
        lines: dict[str, Iterable[dict[str, Any]]] = {}
        if state.is_global_zero:
            lines |= read_stage(state.run_dir, stage)
        for task in tasks:
            score = self.score(state, task, routed)
            self._enter(state, task, score)
            if task in state.seen_tasks():
                self.oracle[stage, columns.index(task)] = self.score(state, task, oracle).value
            self._count(state, task, routed)
            lines[task] = self._lines(state, task, routed, score)
        self.routing.sort(key=lambda row: (row[0], columns.index(row[1]), row[2]))
        in_order = {task: lines[task] for task in columns if task in lines}
        tables = (file for file in self._tables(state) if file.name != METRICS)
        state.put(predictions(stage, in_order), *tables)

    def renew_metrics(
        self, state: SequenceState, module: ContinualModule, routed: EvaluationPass
    ) -> None:
        """Write ``metrics.json`` again after rows were filled.

        Args:
            state: Its stage is the last one evaluated.
            module: Has experts and router.
            routed: The routed pass of that stage, whose samples all have answers.
        """
        self.recover(state, module, routed, (METRICS,))

    def lost_at(self, state: SequenceState, stage: int, lost: Collection[str]) -> list[str]:
        """Return the lost files that an evaluation of a stage can write again."""
        last = bool(self.evaluated) and stage == self.evaluated[-1]
        tested = state.data.tested_task_names
        whole = all(task in tested for task in self.evaluated_tasks(state, stage))
        files = {predictions_file(stage)} if whole else set()
        return [name for name in lost if name in files or (last and name == METRICS)]

    def evaluated_tasks(self, state: SequenceState, stage: int) -> list[str]:
        """Return the tasks whose cells in the row of a stage are not empty, in order."""
        if stage not in self.evaluated:
            return []
        row = zip(state.data.column_names, self.matrix[stage], strict=True)
        return [task for task, value in row if not np.isnan(value)]

    @property
    def evaluated(self) -> list[int]:
        """Indices of the stages that the matrix has a row of."""
        rows = ~np.isnan(self.matrix).all(axis=1) if self.matrix.size else np.empty(0, dtype=bool)
        return [int(index) for index in np.flatnonzero(rows)]

    @property
    def results(self) -> Mapping[str, Any]:
        """Content of ``metrics.json`` after the last evaluation; empty before the first."""
        return self._metrics or {}

    def _enter(self, state: SequenceState, task: str, score: TaskScore) -> None:
        """Enter the score of a task at the current stage, and its standard error."""
        cell = state.stage.index, state.data.column_names.index(task)
        self.matrix[cell] = score.value
        self.errors[cell] = standard_error(score, state.data.test_size(task))

    def _grow(self, state: SequenceState) -> None:
        shape = (len(state.plan) + 1, len(state.data.column_names))
        if self.matrix.shape != shape:
            self.matrix = np.full(shape, np.nan)
            self.oracle = np.full(shape, np.nan)
        if self.errors.shape != shape:
            self.errors = np.full(shape, np.nan)

    def score(self, state: SequenceState, task: str, evaluation: EvaluationPass) -> TaskScore:
        """Return the score of a task's answers under the plan of a pass."""
        samples = state.data.test_samples(task)
        texts = self._texts(state, task, evaluation)
        metric = build_metric(state.data.task(task).metric)
        facts = [sample.metadata for sample in samples]
        return metric.score(texts, [sample.references for sample in samples], facts)

    def _texts(self, state: SequenceState, task: str, evaluation: EvaluationPass) -> list[str]:
        """Return the answers to a task's test samples."""
        plan, digests = evaluation.gate_sets, evaluation.digests
        return [self.answers.get(key, plan[key], digests) for key in sample_names(state, task)]

    def _count(self, state: SequenceState, task: str, routed: EvaluationPass) -> None:
        names = (gate_set_name(routed.gate_sets[key]) for key in sample_names(state, task))
        counts = sorted(Counter(names).items())
        self.routing += [(state.stage.index, task, name, count) for name, count in counts]

    def _row_text(self, state: SequenceState) -> str:
        stage = state.stage.index
        row = zip(state.data.column_names, self.matrix[stage], self.errors[stage], strict=True)
        return ", ".join(
            f"{name} {value:.1f}" + (f" ± {error:.1f}" if error > 0 else "")
            for name, value, error in row
            if not np.isnan(value)
        )

    # -- files -----------------------------------------------------------------------------

    def _lines(
        self, state: SequenceState, task: str, routed: EvaluationPass, score: TaskScore
    ) -> Iterator[dict[str, Any]]:
        """Return the lines of a task in the file of predictions of the current stage."""
        gate_sets = [routed.gate_sets[key] for key in sample_names(state, task)]
        texts = self._texts(state, task, routed)
        return prediction_lines(state.data.test_samples(task), texts, gate_sets, score)

    def run_files(self, state: SequenceState, module: ContinualModule) -> Iterator[RunFile]:
        """Return the matrices, metrics and counts, and the predictions of all evaluated stages."""
        if self.evaluated:
            yield from self._tables(state)
        for stage in self.evaluated:
            yield RunFile(predictions_file(stage))

    def _tables(self, state: SequenceState) -> Iterator[RunFile]:
        """Return the matrices up to the last evaluated stage, the metrics and the counts."""
        names, rows = list(state.data.column_names), self.evaluated[-1] + 1
        limit = state.data.eval_limit
        yield matrix_file("evaluation_matrix.csv", self.matrix[:rows], names, limit)
        yield matrix_file("oracle_matrix.csv", self.oracle[:rows], names, limit)
        yield metrics_file(self._metrics)
        trained = state.callback_of(TrainingRouting).rows()
        yield routing_file(self.routing, [row for row in trained if row[0] < rows])

    def metrics(self, state: SequenceState, module: ContinualModule) -> dict[str, Any]:
        """Return the content of metrics.json for the stages evaluated so far."""
        rows = state.stage.index + 1
        learned_tasks = set(state.data.training_task_names)
        names = [task for task in state.data.column_names if task in learned_tasks]  # the first
        tasks_of = state.learned_columns()
        scope: Any = self.avg_scope
        learned, oracle = self.matrix[:rows, : len(names)], self.oracle[:rows, : len(names)]
        content: dict[str, Any] = {"format": RUN_FORMAT}
        content |= summarize(learned, names, scope, task_of_stage=tasks_of)
        sizes = {task: state.data.test_size(task) for task in state.data.tested_task_names}
        content[COUNTERPARTS] = counterparts_of_run(learned, names, tasks_of, sizes, self.scores)
        content |= scoring_facts(self.scores)
        if state.data.eval_limit is not None:
            content[SUBSAMPLE] = subsample_facts(state, self.errors[:rows])
        content["oracle"] = summarize(oracle, names, scope, task_of_stage=tasks_of)
        only_scored = list(state.data.column_names)[len(names) :]
        if only_scored:
            content["retention"] = retention(self.matrix[:rows, len(names) :], only_scored)
        if module.router.needs_embeddings or isinstance(module.router, GenerativeRouter):
            counts = state.callback_of(TrainingRouting).rows()
            trained = [row for row in counts if row[0] < rows]  # a later stage may have trained
            content["routing"] = router_rates(state, module.router, self.routing, trained)
        if leaves_cells_empty(state):
            wanted = [state.tasks_to_evaluate(row) for row in range(rows)]
            left_out = np.array([[task not in tasks for task in names] for tasks in wanted])
            left_out |= state.evaluates == "all"  # an earlier value has left cells empty
            content[EVALUATED] = evaluated_facts(
                state.evaluates, content, learned, left_out, scope, tasks_of, names
            )
        self._constants = self._constants or constant_answers(state)
        content["constant_answer"] = self._constants
        content["sizes"] = run_sizes(state, module)
        if starts := expert_starts(state, module):
            content["experts"] = starts
        content["fingerprints"] = state.fingerprints(module)
        records = [cb.rows for cb in state.callbacks if isinstance(cb, SkippedSteps) and cb.rows]
        if records:
            content["skipped_steps"] = records[0]
        if state.changes:
            content["accepted_changes"] = state.changes
        if state.parent is not None:
            content["parent"] = state.parent.for_metrics()
        return content

    def forget_answers(self, state: SequenceState) -> None:
        """Delete all answers, since the same experts would now give others."""
        self.answers.clear()
        rank = state.trainer.global_rank
        for path in (state.run_dir / "checkpoints").glob(f"answers_*_{rank}.jsonl"):
            path.unlink(missing_ok=True)

    def on_sequence_end(self, state: SequenceState, module: ContinualModule) -> None:
        """Remove the journals of the last passes."""
        if state.is_global_zero:
            for path in (state.run_dir / "checkpoints").glob("answers_*.jsonl"):
                path.unlink(missing_ok=True)

    # -- state -----------------------------------------------------------------------------

    def sequence_state_dict(self) -> dict[str, Any]:
        """Return matrices, counts and answers as texts of JSON."""
        return {
            # texts, since a checkpoint of thousands of small values is slow
            "matrix": json.dumps(self.matrix.tolist()),
            "oracle": json.dumps(self.oracle.tolist()),
            "errors": json.dumps(self.errors.tolist()),
            "routing": json.dumps(self.routing),
            "answers": json.dumps(self.answers.state_dict()),
            "metrics": None if self._metrics is None else json.dumps(self._metrics),
            "losses": self._last_losses(),
        }

    def _last_losses(self) -> dict[str, dict[str, Tensor]]:
        """Return the losses of the last evaluation of the run, which a figure shows at the end."""
        if not self.evaluated or self.evaluated[-1] + 1 < len(self.matrix):
            return {}
        return {
            expert: {
                task: torch.tensor(values, dtype=torch.float64) for task, values in own.items()
            }
            for expert, own in self.losses.items()
        }

    def load_sequence_state_dict(self, state: dict[str, Any]) -> None:
        """Load a saved state."""
        self.matrix = np.array(listed(state["matrix"]), dtype=np.float64)
        self.oracle = np.array(listed(state["oracle"]), dtype=np.float64)
        errors = listed(state.get("errors", []))  # none in a checkpoint before format 5
        self.errors = np.array(errors, dtype=np.float64)
        self.routing = [(s, t, g, c) for s, t, g, c in listed(state["routing"])]
        self.answers.load_state_dict(listed(state["answers"]))
        self.losses = {
            expert: {task: values.tolist() for task, values in own.items()}
            for expert, own in state.get("losses", {}).items()
        }
        metrics = state.get("metrics")  # None in a checkpoint before format 4
        self._metrics = None if metrics is None else json.loads(metrics)

    def extend_sequence_state(
        self,
        saved: dict[str, Any],
        state: SequenceState,
        module: ContinualModule,
        parent: Parent,
    ) -> dict[str, Any]:
        """Add empty cells for the new tasks; answers of a finished run count on."""
        return extended_results(saved, state, module, parent)
