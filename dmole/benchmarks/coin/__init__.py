"""CoIN: eight tasks, most of them in the training data of the usual base model."""

from __future__ import annotations

from dmole.benchmarks.benchmark import Benchmark, Guide, Size, Sizes
from dmole.benchmarks.coin.grounding import COIN_GROUNDING, COIN_GROUNDING_REGEX
from dmole.benchmarks.coin.miniature import write_coin
from dmole.benchmarks.coin.readers import coin_items, gqa_items, scienceqa_items, textvqa_items
from dmole.benchmarks.coin.rules import GQA, IMAGENET, OCRVQA, SCIENCEQA, TEXTVQA, VIZWIZ, VQAV2
from dmole.data.layout import Layout

_GUIDE = Guide(
    title="CoIN (Chen et al., 2024, arXiv 2403.08350)",
    folders=(
        *(
            f"playground/Instructions_Original/{task}"
            for task in (
                *("ScienceQA", "TextVQA", "ImageNet", "GQA"),
                *("VizWiz", "Grounding", "VQAv2", "OCRVQA"),
            )
        ),
        *("cl_dataset/COCO2014/train2014", "cl_dataset/COCO2014/val2014"),
        *("cl_dataset/GQA/images", "cl_dataset/OCR-VQA/images", "cl_dataset/ImageNet"),
        *("cl_dataset/TextVQA/train_images", "cl_dataset/TextVQA/test_images"),
        *("cl_dataset/ScienceQA", "cl_dataset/VizWiz"),
    ),
    parts=(
        "Instructions: data set `Zacks-Chen/CoIN` on the Hugging Face hub; `train.json` and "
        "`test.json` (`val.json` for TextVQA, VizWiz, VQAv2) of each task into "
        "`playground/Instructions_Original/<task>/`.",
        "COCO 2014 train and val images (cocodataset.org): Grounding and VQAv2.",
        "GQA images and `testdev_balanced_questions.json` (Stanford, GQA download page): "
        "`cl_dataset/GQA/`.",
        "TextVQA images and `TextVQA_0.5.1_val.json` (textvqa.org): `cl_dataset/TextVQA/`.",
        "ScienceQA images, `problems.json`, `pid_splits.json` (repository "
        "lupantech/ScienceQA): `cl_dataset/ScienceQA/`.",
        "VizWiz images (vizwiz.org, VQA challenge): `cl_dataset/VizWiz/`.",
        "ImageNet ILSVRC (image-net.org, needs an account): `cl_dataset/ImageNet/`.",
        "OCR-VQA images (ocr-vqa.github.io): `cl_dataset/OCR-VQA/images/`.",
    ),
    notes=(
        "Most image addresses in OCR-VQA's own list are dead (CoIN issue 31, LLaVA pull "
        "request 1458): take the archive that CoIN's README links to instead.",
        "`Instruction_Original` and `Instruction_Type1`, and instructions without "
        "`playground/`, are accepted too.",
        "Image names inside the instructions are relative to `cl_dataset`.",
    ),
)

_SIZES: Sizes = {
    # CoIN states no counts in its repository, and users count otherwise (HiDe-LLaVA issue 1):
    # these are the official splits that its test files are made of
    "ScienceQA": {"test": Size(4241, "lupantech/ScienceQA, split test")},
    "TextVQA": {"test": Size(5000, "textvqa.org, version 0.5.1, split val")},
    "GQA": {"test": Size(12578, "GQA, testdev balanced")},
    "VizWiz": {"test": Size(4319, "vizwiz.org, split val")},
}

BENCHMARK = Benchmark(
    name="coin",
    config="coin.yaml",
    arxiv="2403.08350",
    guide=_GUIDE,
    sizes=_SIZES,
    formats={
        "coin": Layout(
            items=coin_items,
            does="train.json and test.json of CoIN, UCIT and MLLM-DCL",
            optional=("captions",),
        ),
        "gqa": Layout(
            items=gqa_items,
            does="questions with GQA's file of answers",
            required=("questions",),
        ),
        "scienceqa": Layout(
            items=scienceqa_items,
            does="questions with ScienceQA's problems and splits",
            required=("problems",),
            optional=("splits",),
        ),
        "textvqa": Layout(
            items=textvqa_items, does="questions with ten answers each", required=("annotations",)
        ),
    },
    metrics={
        "coin_gqa": GQA,
        "coin_grounding": COIN_GROUNDING,
        "coin_grounding_regex": COIN_GROUNDING_REGEX,
        "coin_imagenet": IMAGENET,
        "coin_ocrvqa": OCRVQA,
        "coin_scienceqa": SCIENCEQA,
        "coin_textvqa": TEXTVQA,
        "coin_vizwiz": VIZWIZ,
        "coin_vqav2": VQAV2,
    },
    miniature=write_coin,
)
