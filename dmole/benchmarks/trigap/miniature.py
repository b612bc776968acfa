"""Miniature of TriGap."""

from __future__ import annotations

from typing import Any

from dmole.benchmarks.shared.miniature import QUESTION, Miniature, color, question, talk

_FILES = {
    "PMCVQA": ("train_standard_4w", "test_standard_3k"),
    "DocVQA": ("train_converted_sub", "val_converted"),
    "ChartQA": ("train_standard_4w_sub", "test_standard_3k"),
    "IconQA": ("train_sub", "test_3000"),
    "InfographicVQA": (
        "infographicsVQA_train_converted_sub",
        "infographicsVQA_val_converted",
    ),
    "ArxivQA": ("train_4w_sub", "test_3000"),
    "Roadside": ("train_standard_4w", "test_standard_3k"),
    "ChemVQA": ("train_standard_4w", "test_standard_3k"),
    "FloodNetVQA": ("train_standard_4w_sub", "test_standard_3k"),
    "CLEVR": ("train_4w_sub", "test_3000"),
}
"""Names of the training and the test file of each task."""


def write_trigap(miniature: Miniature) -> None:
    """Write TriGap: instructions beside the images; two tasks accept several answers."""
    for task, names in _FILES.items():
        for split, name in zip(("train", "test"), names, strict=True):
            items = [_item(miniature, task, split, n) for n in miniature.numbers(split)]
            miniature.json(f"instructions/{task}/{name}.json", items)


def _item(miniature: Miniature, task: str, split: str, n: int) -> dict[str, Any]:
    image = miniature.picture("datasets", f"{task}/{split}/{n}.png", n)
    text = f"{QUESTION}\nAnswer in one word."
    if split == "train":
        return talk(n, image, text, color(n))
    several = task in ("DocVQA", "InfographicVQA")
    return question(n, image, text, answer=[color(n), color(n).upper()] if several else color(n))
