"""UCIT: six tasks outside the training data of the usual base model."""

from __future__ import annotations

from dmole.benchmarks.benchmark import Benchmark, Guide, Size, Sizes
from dmole.benchmarks.shared.rule import Rule, any_reference
from dmole.benchmarks.shared.words import BLANK_FIX, same_tidy, same_upper
from dmole.benchmarks.ucit.captions import UCITCaption
from dmole.benchmarks.ucit.miniature import write_ucit

_GUIDE = Guide(
    title="UCIT (Guo et al., 2025, arXiv 2503.12941)",
    folders=(
        *("ImageNet-R", "ArxivQA", "VizWiz-caption", "IconQA", "CLEVR-Math", "Flickr30k-cap"),
        *("datasets/ArxivQA/images", "datasets/CLEVR/images", "datasets/Flickr30k"),
        *("datasets/IconQA/iconqa_data/iconqa", "datasets/ImageNet-R", "datasets/VizWiz"),
    ),
    parts=(
        "Instructions and images: named in the README of repository Ghy0501/HiDe-LLaVA.",
        "`train*.json` and `test_3000.json` of each task into its folder; for VizWiz-caption "
        "and Flickr30k-cap `val_coco_type_3000.json` too.",
        "Images as the archive has them, into `datasets/`.",
    ),
    notes=(
        "Folders `CLEVR`, `VizWiz`, `Flickr30k`, files `train.json` and `test.json`, and a "
        "folder `instructions` around them are accepted too.",
        "Image names inside the instructions are relative to the root.",
    ),
)

_README = "Ghy0501/HiDe-LLaVA README.md, file names"

_SIZES: Sizes = {
    "ImageNet-R": {"test": Size(3000, _README)},
    "ArxivQA": {"train": Size(40000, _README), "test": Size(3000, _README)},
    "VizWiz-Cap": {"test": Size(3000, _README)},
    "IconQA": {"test": Size(3000, _README)},
    "CLEVR-Math": {"train": Size(40000, _README), "test": Size(3000, _README)},
    "Flickr30k": {"train": Size(40000, _README), "test": Size(3000, _README)},
}

UCIT_EXACT = Rule(
    published=any_reference(same_upper),
    corrected=any_reference(same_tidy),
    does="equal in upper case, not trimmed",
    fixes=("margins, double spaces and a final period are ignored on both sides", BLANK_FIX),
    source="MCITlib, LoRA-FT/llava/eval/CoIN/eval_deepseek_r1.py",
)

BENCHMARK = Benchmark(
    name="ucit",
    config="ucit.yaml",
    arxiv="2503.12941",
    guide=_GUIDE,
    sizes=_SIZES,
    metrics={"ucit_caption": UCITCaption, "ucit_exact": UCIT_EXACT},
    miniature=write_ucit,
)
