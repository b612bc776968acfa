"""What the benchmarks' readers pass on is what their metrics read: right answers get full marks."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from benchmark_table import ADDED, LEARNED, Row

from dmole.benchmarks.init import init_benchmark
from dmole.benchmarks.registry import BENCHMARKS, build_metric
from dmole.data import Task
from dmole.data.sample import Sample
from dmole.store import SampleStore


def tasks_of(row: Row) -> list[Task]:
    # METEOR, a part of UCIT's rule, takes a minute; CIDEr, another part, reads the same references
    caption = {"metric": "cider"}
    return [
        Task(**task | (caption if "caption" in task["metric"] else {}))
        for task in BENCHMARKS[row.name].tasks()
    ]


def most_frequent_reference(sample: Sample) -> str:
    return Counter(sample.references).most_common(1)[0][0]


@pytest.mark.parametrize("row", LEARNED, ids=lambda row: row.name)
def test_right_answers_get_full_marks(tmp_path: Path, row: Row) -> None:
    init_benchmark(row.name, tmp_path / "data", miniature=True)
    tasks = [task for each in (row, *ADDED) for task in tasks_of(each)]
    rights = {name: answer for each in (row, *ADDED) for name, answer in each.right_answers.items()}
    store = SampleStore(tasks, tmp_path / "data")
    for task in tasks:
        samples = list(store.samples(task.name, "test"))
        right_answer = rights.get(task.name, most_frequent_reference)
        answers = [right_answer(sample) for sample in samples]
        references = [sample.references for sample in samples]
        facts = [sample.metadata for sample in samples]
        score = build_metric(task.metric).score(answers, references, facts)
        full = score.value > 100 if task.metric == "cider" else score.value == 100
        assert full, task.name
        wrong = build_metric(task.metric).score(["nothing"] * len(samples), references, facts)
        assert wrong.value < score.value, task.name
