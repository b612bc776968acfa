"""CVIT: six tasks, scored by their answers and by the form of the answers (MIF)."""

from __future__ import annotations

from dmole.benchmarks.benchmark import Benchmark, Guide, Size, Sizes
from dmole.benchmarks.cvit.captions import CVITCaption
from dmole.benchmarks.cvit.miniature import write_cvit
from dmole.benchmarks.cvit.rules import GQA, IMAGENET, SCIENCEQA, TEXTVQA, VQAV2

_TASKS = ("ScienceQA", "TextVQA", "Flickr30k", "ImageNet", "GQA", "VQAv2")

_GUIDE = Guide(
    title="CVIT (Wang et al., 2024, arXiv 2411.13949)",
    folders=(
        *(f"CVIT_benchmark/Instructions_Single/{task}" for task in _TASKS),
        *("dataset/ScienceQA", "dataset/TextVQA", "dataset/Flickr30k", "dataset/ImageNet"),
        *("dataset/GQA", "dataset/COCO2014"),
    ),
    parts=(
        "Instructions: data set `zackie29/SMoLoRA` on the Hugging Face hub; `train.json` and "
        "`test.json` (`val.json` for TextVQA, Flickr30k, VQAv2) of each task into "
        "`CVIT_benchmark/Instructions_Single/<task>/`.",
        "Images: from the site of each data set, into `dataset/`.",
        "ScienceQA's `problems.json` and `pid_splits.json`: `dataset/ScienceQA/`; "
        "`TextVQA_0.5.1_val.json`: `dataset/TextVQA/`; `testdev_balanced_questions.json`: "
        "`dataset/GQA/`.",
    ),
    notes=(
        "Image names inside the instructions are relative to `dataset`.",
        "The authors have four further data sets (VizWiz, TextCaps, OCR-VQA, Places365) for tests "
        "on unseen tasks; the config has the six that are learned.",
        "`Instructions_Single` has one wording a task. The names of folders with several wordings "
        "are not in the repository; adapt the paths in a copy of the config.",
    ),
)

_SIZES: Sizes = {
    # the repository states no counts; these are the official splits that its scripts name
    "ScienceQA": {"test": Size(4241, "lupantech/ScienceQA, split test")},
    "TextVQA": {"test": Size(5000, "textvqa.org, version 0.5.1, split val")},
    "GQA": {"test": Size(12578, "GQA, testdev balanced")},
}

BENCHMARK = Benchmark(
    name="cvit",
    config="cvit.yaml",
    arxiv="2411.13949",
    guide=_GUIDE,
    sizes=_SIZES,
    metrics={
        "cvit_caption": CVITCaption,
        "cvit_gqa": GQA,
        "cvit_imagenet": IMAGENET,
        "cvit_scienceqa": SCIENCEQA,
        "cvit_textvqa": TEXTVQA,
        "cvit_vqav2": VQAV2,
    },
    miniature=write_cvit,
)
