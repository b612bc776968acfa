"""Miniature of CVIT."""

from __future__ import annotations

from typing import Any

from dmole.benchmarks.coin.miniature import coin_item, coin_side_files
from dmole.benchmarks.shared.miniature import Miniature, color, question, talk

_FOLDERS = {
    "ScienceQA": ("ScienceQA/images", "test"),
    "TextVQA": ("TextVQA/train_images", "val"),
    "Flickr30k": ("Flickr30k", "val"),
    "ImageNet": ("ImageNet/train", "test"),
    "GQA": ("GQA/images", "test"),
    "VQAv2": ("COCO2014/train2014", "val"),
}
"""Folder of the pictures, and name of the test file, of each task."""


def write_cvit(miniature: Miniature) -> None:
    """Write CVIT: six tasks, images in ``dataset``; captions have five references each."""
    for task, (folder, test_name) in _FOLDERS.items():
        for split, name in (("train", "train"), ("test", test_name)):
            items = [_item(miniature, task, folder, split, n) for n in miniature.numbers(split)]
            miniature.json(f"CVIT_benchmark/Instructions_Single/{task}/{name}.json", items)
    coin_side_files(miniature, "dataset")


def _item(miniature: Miniature, task: str, folder: str, split: str, n: int) -> dict[str, Any]:
    if task != "Flickr30k":
        return coin_item(miniature, task, folder, split, n, root="dataset")
    image = miniature.picture("dataset", f"{folder}/{split}_{n}.jpg", n)
    text, first = "Describe the picture in a sentence.", f"A picture that is {color(n)}."
    if split == "train":
        return talk(n, image, text, first)
    starts = ("This is", "It shows", "One sees", "There is")
    return question(n, image, text, answer=[first, *(f"{s} only {color(n)}." for s in starts)])
