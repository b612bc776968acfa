"""TriGap: ten tasks on documents, charts, science and scenes, in Prism's files."""

from __future__ import annotations

from dmole.benchmarks.benchmark import Benchmark, Guide, Size
from dmole.benchmarks.trigap.miniature import write_trigap
from dmole.benchmarks.trigap.rules import TRIGAP_ANLS

_TRAINED = {
    "PMCVQA": 40000,
    "DocVQA": 30000,
    "ChartQA": 25000,
    "IconQA": 10000,
    "InfographicVQA": 20000,
    "ArxivQA": 10000,
    "Roadside": 40000,
    "ChemVQA": 40000,
    "FloodNetVQA": 10000,
    "CLEVR": 10000,
}

_GUIDE = Guide(
    title="TriGap (Xie et al., 2026, arXiv 2602.01990)",
    folders=("datasets", *(f"instructions/{task}" for task in _TRAINED)),
    parts=(
        "Instructions and images: data set `JuntaoTang/TriGap` on the Hugging Face hub; the "
        "instructions of each task into `instructions/<task>/`, the images into `datasets/`.",
    ),
    notes=(
        "Image names inside the instructions are relative to `datasets`.",
        "The training files whose names end in `_sub` are the published ones: parts of larger "
        "sets.",
        "DocVQA and InfographicVQA are tested on their validation splits.",
    ),
)

_PAGE = "JuntaoTang/TriGap, its page on the hub (second-hand)"

BENCHMARK = Benchmark(
    name="trigap",
    config="trigap.yaml",
    arxiv="2602.01990",
    guide=_GUIDE,
    sizes={
        task: {"train": Size(items, _PAGE), "test": Size(3000, _PAGE)}
        for task, items in _TRAINED.items()
    },
    metrics={"trigap_anls": TRIGAP_ANLS},
    miniature=write_trigap,
)
