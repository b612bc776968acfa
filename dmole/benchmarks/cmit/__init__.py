"""The nine tasks of D-MoLE: captions, boxes, letters and words."""

from __future__ import annotations

from dmole.benchmarks.benchmark import Benchmark, Guide, Size, Sizes
from dmole.benchmarks.cmit.grounding import SKVG
from dmole.benchmarks.cmit.miniature import write_cmit
from dmole.benchmarks.cmit.readers import choice_items, skvg_items, vizwiz_items
from dmole.benchmarks.cmit.rules import EXACT, MULTICHOICE, VIZWIZ_SOFT, MultichoiceInBatches
from dmole.benchmarks.shared.captions import coco_caption_items
from dmole.data.layout import Layout

_GUIDE = Guide(
    title="The nine tasks of D-MoLE (Ge et al., ICML 2025, arXiv 2506.11672)",
    folders=(
        *("data/vizwiz-caption/images", "data/sk-vg", "data/textcaps/images", "data/iconqa"),
        *("data/ocrvqa", "data/flickr30k", "data/vizwiz", "data/kvqa", "data/pmcvqa"),
    ),
    parts=(
        "All of it: the archive that the README of repository gcd19/D-MoLE links to; `data/` "
        "of that archive is `data/` here.",
        "Or each from its authors: VizWiz and VizWiz-Captions (vizwiz.org), TextCaps "
        "(textvqa.org), IconQA (iconqa.github.io), OCR-VQA (ocr-vqa.github.io), Flickr30k with "
        "Karpathy's split, KVQA, PMC-VQA (hub data set `xmcmic/PMC-VQA`), SK-VG (repository "
        "zhjohnchan/SK-VG); train files as LLaVA conversations, one object per line.",
    ),
    notes=(
        "Users have asked for the processed files (D-MoLE issue 1); the link came after.",
        "Most image addresses in OCR-VQA's own list are dead.",
        "Image names are relative to the root, those of caption tests to the folder that "
        "`test_image_root` names.",
        "Meta files (`shell/dmole/*.json`) can be given as `train` of a task, too.",
    ),
)

_META = "gcd19/D-MoLE shell/dmole/*.json, length"
_IMAGES = "images of the file"

_SIZES: Sizes = {
    "VizWiz-Cap": {
        "train": Size(117155, _META),
        "test": Size(7750, "vizwiz.org, captions, split val", _IMAGES),
    },
    "SK-VG": {"train": Size(23404, _META)},
    "TextCaps": {
        "train": Size(109765, _META),
        "test": Size(3166, "textvqa.org, TextCaps, split val", _IMAGES),
    },
    "IconQA": {"train": Size(18946, f"{_META}; repeated 5 times in an epoch")},
    "OCR-VQA": {"train": Size(166043, _META)},
    "Flickr30k": {
        "train": Size(145000, _META),
        "test": Size(1000, "Karpathy's split of Flickr30k, test", _IMAGES),
    },
    "VizWiz": {
        "train": Size(20523, _META),
        "test": Size(4319, "vizwiz.org, split val"),
    },
    "KVQA": {"train": Size(146408, _META)},
    "PMC-VQA": {
        "train": Size(176948, _META),
        "test": Size(2000, "xmcmic/PMC-VQA, test_clean"),
    },
}

BENCHMARK = Benchmark(
    name="cmit",
    config="cmit.yaml",
    arxiv="2506.11672",
    guide=_GUIDE,
    sizes=_SIZES,
    formats={
        "choices": Layout(
            items=choice_items,
            does="questions with choices and the index of the right one",
            prompt="{question}\n{options}",
        ),
        "coco_captions": Layout(
            items=coco_caption_items,
            does="images and annotations of a COCO caption file",
            needs_prompt=True,
        ),
        "skvg": Layout(
            items=skvg_items, does="phrases with knowledge and a box in pixels", needs_prompt=True
        ),
        "vizwiz": Layout(
            items=vizwiz_items, does="questions with ten answers each", required=("annotations",)
        ),
    },
    metrics={
        "dmole_exact": EXACT,
        "dmole_grounding": SKVG,
        "dmole_multichoice": MULTICHOICE,
        "dmole_multichoice_batch": MultichoiceInBatches,
        "dmole_vizwiz": VIZWIZ_SOFT,
    },
    miniature=write_cmit,
)
