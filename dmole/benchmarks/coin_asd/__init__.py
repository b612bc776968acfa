"""CoIN-ASD: CoIN whose training data have a share of questions in other answer styles."""

from __future__ import annotations

from dmole.benchmarks.benchmark import Benchmark, Guide, Size, Sizes
from dmole.benchmarks.coin_asd.miniature import write_coin_asd
from dmole.benchmarks.coin_asd.readers import asd_scienceqa_items
from dmole.benchmarks.coin_asd.rules import SCIENCEQA
from dmole.data.layout import Layout

_TASKS = (
    *("ScienceQA", "TextVQA", "ImageNet", "GQA"),
    *("VizWiz", "Grounding", "VQAv2", "OCRVQA"),
)

_GUIDE = Guide(
    title="CoIN-ASD (Chen et al., 2025, arXiv 2505.02486)",
    folders=(
        *(f"annotations/{task}" for task in _TASKS),
        *("ScienceQA", "TextVQA", "ImageNet", "GQA", "VizWiz", "COCO", "OCRVQA"),
    ),
    parts=(
        "Annotations: data set `jinpeng0528/CoIN-ASD` on the Hugging Face hub; `train_x20.json` "
        "and `test.json` of each task into `annotations/<task>/`.",
        "Images and side files: those of CoIN, see the README that `dmole data init coin` "
        "writes; each data set in a folder of its name, as its own site lays it out.",
        "ScienceQA's `problems.json` and `pid_splits.json`: `ScienceQA/`; "
        "`TextVQA_0.5.1_val.json`: `TextVQA/`; `testdev_balanced_questions.json`: `GQA/`.",
    ),
    notes=(
        "`train_xNN.json` has NN percent of its items in other answer styles (yes or no, options, "
        "a word, a detailed answer); the config reads `train_x20.json`. For another share, copy "
        "the config and replace `x20`.",
        "All test files are called `test.json`, also those that CoIN calls `val.json`.",
        "Image names inside the annotations are relative to the root, the folder that the "
        "authors call `playground/data/CoIN`.",
    ),
)

_SIZES: Sizes = {
    # the same official test splits as in CoIN; the repository states no counts
    "ScienceQA": {"test": Size(4241, "lupantech/ScienceQA, split test")},
    "TextVQA": {"test": Size(5000, "textvqa.org, version 0.5.1, split val")},
    "GQA": {"test": Size(12578, "GQA, testdev balanced")},
    "VizWiz": {"test": Size(4319, "vizwiz.org, split val")},
}

BENCHMARK = Benchmark(
    name="coin_asd",
    config="coin_asd.yaml",
    arxiv="2505.02486",
    guide=_GUIDE,
    sizes=_SIZES,
    formats={
        "coin_asd_scienceqa": Layout(
            items=asd_scienceqa_items,
            does="`scienceqa`; test questions end in a request for a letter",
            required=("problems",),
            optional=("splits",),
        ),
    },
    metrics={"coin_asd_scienceqa": SCIENCEQA},
    miniature=write_coin_asd,
)
