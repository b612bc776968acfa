"""Miniature of CoIN-ASD."""

from __future__ import annotations

from typing import Any

from dmole.benchmarks.coin.miniature import coin_item, coin_side_files
from dmole.benchmarks.shared.miniature import COLORS, LETTERS, Miniature, color, talk

_FOLDERS = {
    "ScienceQA": "ScienceQA/images",
    "TextVQA": "TextVQA/train_images",
    "ImageNet": "ImageNet/train",
    "GQA": "GQA/images",
    "VizWiz": "VizWiz/train",
    "Grounding": "COCO/train2014",
    "VQAv2": "COCO/train2014",
    "OCRVQA": "OCRVQA/images",
}


def write_coin_asd(miniature: Miniature) -> None:
    """Write CoIN-ASD: annotations of eight tasks; every fifth training item is reworded."""
    for task, folder in _FOLDERS.items():
        for split, name in (("train", "train_x20"), ("test", "test")):
            items = [
                coin_item(miniature, task, folder, split, n, root=".")
                for n in miniature.numbers(split)
            ]
            if split == "train" and task not in ("ScienceQA", "Grounding"):
                items[::5] = [_reworded(item) for item in items[::5]]
            miniature.json(f"annotations/{task}/{name}.json", items)
    coin_side_files(miniature, ".")


def _reworded(item: dict[str, Any]) -> dict[str, Any]:
    """Return an item as a question with options or as one for yes or no."""
    n = int(item["id"])
    if n % 2:
        text = f"Is the picture {color(n)}?\nAnswer the question with yes or no."
        return talk(n, item["image"], text, "Yes")
    options = "\n".join(f"{LETTERS[i]}. {name}" for i, name in enumerate(COLORS))
    text = f"What color is the picture?\n{options}\nAnswer with the option's letter."
    return talk(n, item["image"], text, LETTERS[n % len(COLORS)])
