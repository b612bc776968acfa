"""MME, POPE and MMMU: abilities of the base model, evaluated after each stage, never trained."""

from __future__ import annotations

from dmole.benchmarks.benchmark import Benchmark
from dmole.benchmarks.retention.metrics import MME, MMMU, POPE
from dmole.benchmarks.retention.miniature import write_retention
from dmole.benchmarks.retention.readers import mme_items, mmmu_items, pope_items
from dmole.data.layout import Layout

BENCHMARK = Benchmark(
    name="retention",
    config="retention.yaml",
    formats={
        "mme": Layout(items=mme_items, does="a folder with one text file per sub-task"),
        "mmmu": Layout(items=mmmu_items, does="MMMU exported to JSON", prompt="{question}\n{form}"),
        "pope": Layout(items=pope_items, does="yes/no questions, one object per line"),
    },
    metrics={"mme": MME, "mmmu": MMMU, "pope": POPE},
    miniature=write_retention,
)
