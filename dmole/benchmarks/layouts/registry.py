"""The layouts a task can name, and what each of them needs."""

from __future__ import annotations

from dmole.benchmarks.layouts.captions import coco_caption_items
from dmole.benchmarks.layouts.dmole_eval import choice_items, skvg_items
from dmole.benchmarks.layouts.questions import (
    coin_items,
    gqa_items,
    scienceqa_items,
    textvqa_items,
    vizwiz_items,
)
from dmole.benchmarks.layouts.retention import mme_items, mmmu_items, pope_items
from dmole.data.items import Source
from dmole.data.layout import Layout

LAYOUTS: dict[str, Layout] = {
    "auto": Layout(
        items=Source.items,
        does="conversations or questions with their answers; ids must differ",
        published=False,
    ),
    "choices": Layout(
        items=choice_items,
        does="questions with choices and the index of the right one",
        prompt="{question}\n{options}",
    ),
    "coco_captions": Layout(
        items=coco_caption_items,
        does="images and annotations of a COCO caption file",
        wants_prompt=True,
    ),
    "coin": Layout(
        items=coin_items,
        does="train.json and test.json of CoIN, UCIT and MLLM-DCL",
        optional=("captions",),
    ),
    "gqa": Layout(
        items=gqa_items, does="questions with GQA's own file of answers", required=("questions",)
    ),
    "mme": Layout(items=mme_items, does="a folder with a text file a sub-task"),
    "mmmu": Layout(items=mmmu_items, does="MMMU exported to JSON", prompt="{question}\n{form}"),
    "pope": Layout(items=pope_items, does="yes/no questions, an object a line"),
    "scienceqa": Layout(
        items=scienceqa_items,
        does="questions with ScienceQA's problems and splits",
        required=("problems",),
        optional=("splits",),
    ),
    "skvg": Layout(
        items=skvg_items, does="phrases with knowledge and a box in pixels", wants_prompt=True
    ),
    "textvqa": Layout(
        items=textvqa_items, does="questions with ten answers each", required=("annotations",)
    ),
    "vizwiz": Layout(
        items=vizwiz_items, does="questions with ten answers each", required=("annotations",)
    ),
}
"""Layouts by the name that a task's ``format`` gives."""
