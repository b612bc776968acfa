"""The figures of a finished run under other routing rules, with the same experts.

    python -m experiments.routing_rules RUN... --both_orders --output FILE.csv

An expert that was trained without a partner does not depend on the router. One training therefore
serves all rules for the test: the router of each rule is fitted to the embeddings of the training
samples again, and every answer is generated once for each gate set that any rule needs.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import yaml

from dmole.benchmarks.registry import build_metric
from dmole.datamodule import ContinualDataModule
from dmole.metrics import summarize
from dmole.module import ContinualModule
from dmole.routing import AutoencoderRouter, RouteQuery
from dmole.run.context import EvaluationPass
from dmole.run.learned import load_experts_and_router
from dmole.run.loading import build_data, build_module
from dmole.run.model_file import read_run_settings
from dmole.storage.files import write_csv

GateSet = tuple[str, ...]
HEADER = ("rule", "run", "Last", "BWT", "Learned", "own_first", "rejected", "second_expert")


@dataclass
class Study:
    """A run with its data: embeddings and answers are computed once and kept.

    Args:
        module: Has the experts of the run.
        data: The tasks of the run; each stage learns one task.
        tasks: The tasks in order of learning. Another order than that of the run may be set, since
            an expert without a partner depends on the order by the shuffling of its samples only.
    """

    module: ContinualModule
    data: ContinualDataModule
    tasks: list[str] = field(default_factory=list)

    @classmethod
    def load(cls, run: Path) -> Study:
        """Return the study of a run folder."""
        settings = read_run_settings(run)
        module, data = build_module(settings), build_data(settings)
        base = module.backbone
        data.attach_processor(base.processor, base.context_length, base.prompts)
        load_experts_and_router(module, run)
        module.eval()
        return cls(module, data)

    def __post_init__(self) -> None:
        self._scores: dict[tuple[str, GateSet], npt.NDArray[np.float64]] = {}
        self.tasks = self.tasks or self.data.training_task_names

    @functools.cached_property
    def embeddings(self) -> dict[tuple[str, str], torch.Tensor]:
        """Embeddings ``(N, D)`` by task and split."""
        found = {}
        for task in self.tasks:
            for split in ("train", "test"):
                test = split == "test"
                samples = self.data.test_samples(task) if test else self.data.train_samples(task)
                loader = self.data.embedding_loader([(s, task) for s in samples], generation=test)
                with torch.no_grad():
                    rows = [self.module.embed(batch, remember=False) for batch in loader]
                found[task, split] = torch.cat(rows)
        return found

    def orders(self, rule: Mapping[str, Any]) -> Iterator[dict[str, list[GateSet]]]:
        """Yield the experts of each test sample by task, after every stage of a rule's router."""
        router = AutoencoderRouter(**rule)
        size = self.data.eval_batch_size
        for stage, task in enumerate(self.tasks):
            router.fit(task, self.embeddings[task, "train"])
            experts = self.tasks[: stage + 1]
            order: dict[str, list[GateSet]] = {}
            for name in self.tasks:
                rows = self.embeddings[name, "test"]
                order[name] = []
                for part in torch.split(rows, size):  # the batch matters to a vote
                    query = RouteQuery(part, [name] * len(part), "test", None, experts)
                    order[name] += router.route(query).order
            yield order

    def score(self, task: str, order: Sequence[GateSet]) -> float:
        """Return the score of a task's test samples in percent, each with its gate set."""
        rows = {gates: self._all(task, gates) for gates in set(order)}
        return float(np.mean([rows[gates][i] for i, gates in enumerate(order)]))

    def _all(self, task: str, gates: GateSet) -> npt.NDArray[np.float64]:
        """Return the score of each test sample of a task under one gate set, in percent."""
        gates = tuple(sorted(gates))  # a sum does not depend on the order
        if (task, gates) not in self._scores:
            samples = list(self.data.test_samples(task))
            keys = [f"{task}/test/{sample.id}" for sample in samples]
            length = self.data.task(task).max_new_tokens
            self.module.evaluation = EvaluationPass(
                gate_sets=dict.fromkeys(keys, gates), answer_lengths={task: length}
            )
            texts: list[str] = []
            loader = self.data.embedding_loader([(s, task) for s in samples], generation=True)
            with torch.no_grad():
                for batch in loader:
                    texts += self.module.answer(batch).texts
            metric = build_metric(self.data.task(task).metric)
            score = metric.score(texts, [s.references for s in samples])
            self._scores[task, gates] = np.array(score.per_sample, float)
        return self._scores[task, gates]

    def figures(self, rule: Mapping[str, Any]) -> dict[str, float]:
        """Return the figures of a rule, without row 0 of the matrix, which they do not use."""
        matrix = np.full((len(self.tasks) + 1, len(self.tasks)), np.nan)
        order: dict[str, list[GateSet]] = {}
        for stage, order in enumerate(self.orders(rule), start=1):
            for column, task in enumerate(self.tasks):
                matrix[stage, column] = self.score(task, order[task])
        figures = summarize(matrix, self.tasks)
        pairs = [(task, gates) for task, each in order.items() for gates in each]
        return {
            **{name: figures[name] for name in ("Last", "BWT", "Learned")},
            "own_first": 100 * float(np.mean([gates[:1] == (task,) for task, gates in pairs])),
            "rejected": 100 * float(np.mean([not gates for _, gates in pairs])),
            "second_expert": 100 * float(np.mean([len(gates) > 1 for _, gates in pairs])),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--plan", type=Path, default=Path(__file__).with_suffix(".yaml"))
    parser.add_argument("--both_orders", action="store_true", help="also the reversed order")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    rules: dict[str, dict[str, Any]] = yaml.safe_load(options.plan.read_text(encoding="utf-8"))
    rows = []
    for run in options.runs:
        study = Study.load(run)
        for tasks in (study.tasks, study.tasks[::-1])[: 1 + options.both_orders]:
            study.tasks = tasks
            for name, rule in rules.items():
                figures = {key: f"{value:.2f}" for key, value in study.figures(rule or {}).items()}
                rows.append({"rule": name, "run": f"{run.name} from {tasks[0]}", **figures})
                print(rows[-1], flush=True)
                write_csv(options.output, HEADER, rows)


if __name__ == "__main__":
    main()
