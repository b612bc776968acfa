"""After each stage: answer the test samples of all tasks, score them, fill the matrix.

Experts are frozen after their stage and decoding is deterministic, so an answer is a function
of the sample and its gate set. Answers are kept under that key, and only samples whose gate set
is new are answered again.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning.pytorch import LightningModule, Trainer

from dmole.benchmarks.registry import build_metric
from dmole.callbacks.answers import AnswerBook, AnswerJournal, GateSet
from dmole.callbacks.base import ContinualCallback, parts
from dmole.callbacks.router_fitting import embed_samples
from dmole.distributed import gather_objects
from dmole.metrics import retention, scoring_facts, summarize, write_matrix
from dmole.metrics.routing_rates import routing_rates
from dmole.module import Answers
from dmole.routing import RouteQuery, gate_set_name
from dmole.storage.files import write_csv, write_json, write_lines

if TYPE_CHECKING:
    import numpy.typing as npt

    from dmole.data import Sample
    from dmole.metrics import TaskScore
    from dmole.module import ContinualModule
    from dmole.trainer import ContinualTrainer

log = logging.getLogger("dmole")


class EvaluationMatrix(ContinualCallback):
    """Keeps the evaluation matrix, the oracle matrix, the routing counts and all answers.

    Args:
        avg_scope: Whether AVG runs over ``all`` stages or those that have ``seen`` the task.

    Attributes:
        matrix: ``(stages + 1, tasks)`` in percent; row 0 before training; NaN not evaluated.
        oracle: The same with each sample's own expert, seen tasks only.
        routing: ``(stage, true task, gate set, count)`` of every evaluated stage.
        gate_plan: Gate set of every test sample at the last evaluation.
        losses: Reconstruction losses of the test samples then, by expert and true task.
        scores: Each task's scores at the last evaluation, under all profiles of its metric.

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
        self.routing: list[tuple[int, str, str, int]] = []
        self.gate_plan: dict[str, GateSet] = {}
        self.answers = AnswerBook()
        self._journal = AnswerJournal()
        self.losses: dict[str, dict[str, list[float]]] = {}
        self.scores: dict[str, TaskScore] = {}
        self._fresh: list[Answers] = []
        self._digests: dict[str, str] = {}

    # -- before the test loop --------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Route all test samples and leave those to answer whose gate set is new."""
        if stage != "test":
            return
        sequence, module, data = parts(trainer, pl_module)
        self.prepare(sequence, module)
        plan = module.gate_plan
        name = f"stage {sequence.current_stage.index} {sequence.evaluation_pass}"
        file = f"answers_{sequence.evaluation_pass}_{trainer.global_rank}.jsonl"
        path = sequence.run_dir / "checkpoints" / file
        known = self._journal.open(path, name, plan, self._digests)
        gate_sets = [plan[key] for key in known]
        self._fresh = [Answers(list(known), list(known.values()), gate_sets)]
        data.set_answered(known.keys())

    def prepare(self, sequence: ContinualTrainer, module: ContinualModule) -> int:
        """Plan the gate sets of the coming pass and return how many samples it must answer."""
        data = sequence.data
        routed = sequence.evaluation_pass == "routed"
        tasks = data.task_names if routed else sequence.seen_tasks()
        plan: dict[str, GateSet] = {}
        if routed:
            self.losses = {}
        for task in tasks:
            own = self._routed if routed else self._own
            plan |= own(sequence, module, task)
        if routed:
            self.gate_plan = plan
            if not sequence.incremental_evaluation:
                self.answers.clear()
        module.gate_plan = plan
        self._digests = {name: module.library.digest(name) for name in module.experts}
        pending = {
            task: self.answers.missing(_keys(sequence, task), plan, self._digests) for task in tasks
        }
        data.set_pending(pending)
        return sum(map(len, pending.values()))

    def _routed(
        self, trainer: ContinualTrainer, module: ContinualModule, task: str
    ) -> dict[str, GateSet]:
        """Return the router's gate sets for a task's test samples, batch by batch."""
        data = trainer.data
        keys = _keys(trainer, task)
        embeddings = None
        query = RouteQuery(None, (), "test", None, module.experts)
        if module.router.needs(query):
            pairs = [(sample, task) for sample in data.test_samples(task)]
            embeddings = embed_samples(trainer, module, pairs, "test")
        plan: dict[str, GateSet] = {}
        size = data.eval_batch_size
        for start in range(0, len(keys), size):  # only a batch vote looks beyond the sample
            part = slice(start, start + size)
            rows = None if embeddings is None else embeddings[part]
            names = [task] * len(keys[part])
            routing = module.router.route(replace(query, embeddings=rows, task_names=names))
            plan |= dict(zip(keys[part], routing.order, strict=True))
            if routing.losses is not None:
                for expert, column in zip(module.experts, routing.losses.T, strict=True):
                    self.losses.setdefault(expert, {}).setdefault(task, []).extend(column.tolist())
        return plan

    def _own(
        self, trainer: ContinualTrainer, module: ContinualModule, task: str
    ) -> dict[str, GateSet]:
        """Return the gate sets that the task's own last stage was trained with."""
        expert = next(s.expert for s in reversed(trainer.learned()) if task in s.tasks)
        own = module.router.own(expert, module.experts)
        return dict.fromkeys(_keys(trainer, task), own)

    # -- the test loop ---------------------------------------------------------------------

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
        self._fresh.append(answers)
        self._journal.add(answers.keys, answers.texts, answers.gate_sets)
        sequence, _, _ = parts(trainer, pl_module)
        if sequence.interruption.requested:
            raise StopIteration  # Lightning's way out of the loop; the trainer does the rest

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take over the answers of all ranks."""
        if stage != "test":
            return
        _, module, _ = parts(trainer, pl_module)
        plan = module.gate_plan
        for answers in gather_objects(self._fresh):
            for batch in answers:
                for key, text in zip(batch.keys, batch.texts, strict=True):
                    self.answers.put(key, plan[key], self._digests, text)
        self._fresh = []
        module.gate_plan = {}

    # -- after both passes -----------------------------------------------------------------

    def on_evaluation_end(self, trainer: ContinualTrainer, module: ContinualModule) -> None:
        """Score the answers, append the row, write the files."""
        stage = trainer.current_stage.index
        self._grow(trainer)
        oracle: dict[str, GateSet] = {}
        for task in trainer.seen_tasks():
            oracle |= self._own(trainer, module, task)
        for column, task in enumerate(trainer.data.task_names):
            score = self._score(trainer, module, task, self.gate_plan)
            self.matrix[stage, column] = score.value
            self.scores[task] = score
            if task in trainer.seen_tasks():
                self.oracle[stage, column] = self._score(trainer, module, task, oracle).value
            self._count(trainer, stage, task)
            if trainer.is_global_zero:
                self._write_predictions(trainer, module, task, score)
        self._count_active(trainer, module)
        log.info("scores: %s", self._row_text(trainer, stage))
        if trainer.is_global_zero:
            self._write(trainer, module)
        self.answers.keep_only([self.gate_plan, oracle], self._digests)

    def _grow(self, trainer: ContinualTrainer) -> None:
        shape = (len(trainer.plan) + 1, len(trainer.data.task_names))
        if self.matrix.shape != shape:
            self.matrix = np.full(shape, np.nan)
            self.oracle = np.full(shape, np.nan)

    def _score(
        self,
        trainer: ContinualTrainer,
        module: ContinualModule,
        task: str,
        plan: dict[str, GateSet],
    ) -> TaskScore:
        samples = trainer.data.test_samples(task)
        texts = [self._answer(module, task, sample, plan) for sample in samples]
        metric = build_metric(trainer.data.task(task).metric)
        facts = [sample.metadata for sample in samples]
        return metric.score(texts, [sample.references for sample in samples], facts)

    def _answer(
        self, module: ContinualModule, task: str, sample: Sample, plan: dict[str, GateSet]
    ) -> str:
        key = f"{task}/test/{sample.id}"
        return self.answers.get(key, plan[key], self._digests)

    def _count(self, trainer: ContinualTrainer, stage: int, task: str) -> None:
        counts = Counter(gate_set_name(self.gate_plan[key]) for key in _keys(trainer, task))
        self.routing += [(stage, task, name, count) for name, count in sorted(counts.items())]

    def _count_active(self, trainer: ContinualTrainer, module: ContinualModule) -> None:
        """Note the parameters that an average test sample uses, base model included."""
        sizes = {name: module.library.count(name) for name in module.experts}
        used = sum(sizes[name] for gate_set in self.gate_plan.values() for name in gate_set)
        base = module.backbone.parameter_count()
        trainer.clock.parameters["base"] = base
        trainer.clock.parameters["total"] = base + sum(sizes.values())
        trainer.clock.parameters["active"] = base + used / max(1, len(self.gate_plan))

    def _row_text(self, trainer: ContinualTrainer, stage: int) -> str:
        names = trainer.data.task_names
        return ", ".join(f"{n} {v:.1f}" for n, v in zip(names, self.matrix[stage], strict=True))

    # -- files -----------------------------------------------------------------------------

    def _write_predictions(
        self, trainer: ContinualTrainer, module: ContinualModule, task: str, score: TaskScore
    ) -> None:
        stage = trainer.current_stage.index
        samples = trainer.data.test_samples(task)
        write_lines(
            trainer.run_dir / "predictions" / f"stage_{stage}" / f"{task}.jsonl",
            (
                {
                    "id": sample.id,
                    "prompt": sample.prompt,
                    "prediction": self._answer(module, task, sample, self.gate_plan),
                    "references": list(sample.references),
                    "score": value,
                    "gate_set": gate_set_name(self.gate_plan[f"{task}/test/{sample.id}"]),
                }
                | score.of_sample(place, sample.metadata)
                for place, (sample, value) in enumerate(zip(samples, score.per_sample, strict=True))
            ),
        )

    def _write(self, trainer: ContinualTrainer, module: ContinualModule) -> None:
        """Write the matrices up to the current stage, the metrics and the routing counts."""
        folder, names = trainer.run_dir, list(trainer.data.task_names)
        rows = trainer.current_stage.index + 1
        write_matrix(folder / "evaluation_matrix.csv", self.matrix[:rows], names)
        write_matrix(folder / "oracle_matrix.csv", self.oracle[:rows], names)
        write_json(folder / "metrics.json", self.metrics(trainer, module))
        columns = ("stage", "true_task", "gate_set", "count")
        counts = [dict(zip(columns, row, strict=True)) for row in self.routing]
        write_csv(folder / "routing.csv", columns, counts)

    def metrics(self, trainer: ContinualTrainer, module: ContinualModule) -> dict[str, Any]:
        """Return the content of metrics.json for the stages evaluated so far."""
        rows = trainer.current_stage.index + 1
        names = list(trainer.data.training_task_names)  # the first columns
        index = {name: i for i, name in enumerate(names)}
        tasks_of = [[index[task] for task in stage.tasks] for stage in trainer.learned()]
        scope: Any = self.avg_scope
        learned, oracle = self.matrix[:rows, : len(names)], self.oracle[:rows, : len(names)]
        content = summarize(learned, names, scope, task_of_stage=tasks_of)
        content |= scoring_facts(self.scores)
        content["oracle"] = summarize(oracle, names, scope, task_of_stage=tasks_of)
        kept = list(trainer.data.task_names)[len(names) :]
        if kept:
            content["retention"] = retention(self.matrix[:rows, len(names) :], kept)
        if module.router.needs_embeddings:
            content["routing"] = self._rates(trainer, module)
        content["fingerprints"] = trainer.sequence_checkpoint.identity(trainer, module)
        return content

    def _rates(self, trainer: ContinualTrainer, module: ContinualModule) -> dict[str, float | None]:
        """Return how well the router keeps the tasks apart."""
        owner: dict[str, str] = {}
        learned_at: dict[str, int] = {}
        for stage in trainer.learned():
            owner |= dict.fromkeys(stage.tasks, stage.expert)
            learned_at |= {task: stage.index for task in stage.tasks if task not in learned_at}
        return routing_rates(self.routing, owner, learned_at, module.router.common)

    def on_sequence_end(self, trainer: ContinualTrainer, module: ContinualModule) -> None:
        """Remove the journals of the last passes."""
        if trainer.is_global_zero:
            for path in (trainer.run_dir / "checkpoints").glob("answers_*.jsonl"):
                path.unlink(missing_ok=True)

    # -- state -----------------------------------------------------------------------------

    def sequence_state_dict(self) -> dict[str, Any]:
        """Return matrices, counts and answers as plain lists."""
        return {
            "matrix": self.matrix.tolist(),
            "oracle": self.oracle.tolist(),
            "routing": [list(row) for row in self.routing],
            "answers": self.answers.state_dict(),
        }

    def load_sequence_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a saved state."""
        self.matrix = np.array(state["matrix"], dtype=np.float64)
        self.oracle = np.array(state["oracle"], dtype=np.float64)
        self.routing = [(s, t, g, c) for s, t, g, c in state["routing"]]
        self.answers.load_state_dict(state["answers"])


def _keys(trainer: ContinualTrainer, task: str) -> list[str]:
    """Return the names of a task's test samples, unique over tasks."""
    return [f"{task}/test/{sample.id}" for sample in trainer.data.test_samples(task)]
