"""Miniature of CoIN."""

from __future__ import annotations

from typing import Any

from dmole.benchmarks.shared.miniature import (
    COLORS,
    LETTERS,
    QUESTION,
    SIDE,
    Miniature,
    color,
    question,
    talk,
)


def write_coin(miniature: Miniature) -> None:
    """Write CoIN: eight tasks, images in ``cl_dataset``, side files of three tasks."""
    folders = {
        "ScienceQA": "ScienceQA/images",
        "TextVQA": "TextVQA/train_images",
        "ImageNet": "ImageNet/train",
        "GQA": "GQA/images",
        "VizWiz": "VizWiz/train",
        "Grounding": "COCO2014/train2014",
        "VQAv2": "COCO2014/train2014",
        "OCRVQA": "OCR-VQA/images",
    }
    for task, folder in folders.items():
        test_name = "val" if task in ("TextVQA", "VizWiz", "VQAv2") else "test"
        for split in ("train", "test"):
            items = [
                coin_item(miniature, task, f"./{folder}", split, n)
                for n in miniature.numbers(split)
            ]
            name = "train" if split == "train" else test_name
            miniature.json(f"playground/Instructions_Original/{task}/{name}.json", items)
    coin_side_files(miniature, "cl_dataset")


def coin_item(
    miniature: Miniature, task: str, folder: str, split: str, n: int, root: str = "cl_dataset"
) -> dict[str, Any]:
    """Write the picture of an item of CoIN and return the item.

    Args:
        miniature: The data folder.
        task: Name of the task, as in `write_coin`.
        folder: Folder of the picture below the image root.
        split: The split.
        n: Number of the item.
        root: The image root.
    """
    image: str | None = f"{folder}/{task}_{split}_{n}.jpg"
    if task == "ScienceQA" and n % 4 == 1:
        image = None  # half of ScienceQA is text alone
    else:
        miniature.picture(root, str(image), n)
    if task == "Grounding":
        box = [0.1, 0.2, 0.6, 0.8]
        text = "Give the box of the color."
        if split == "train":
            return talk(n, image, text, str(box))
        return question(n, image, text, answer_bbox=str(box), size=[SIDE, SIDE])
    if task == "ScienceQA":
        text = f"{QUESTION}\n" + "\n".join(f"{LETTERS[i]}. {c}" for i, c in enumerate(COLORS))
        answer = LETTERS[n % 4]
    else:
        text, answer = f"{QUESTION}\nAnswer in one word.", color(n)
    if split == "train":
        return talk(n, image, text, answer)
    return question(str(n), image, text, answer=answer)


def coin_side_files(miniature: Miniature, root: str) -> None:
    """Write the side files of ScienceQA, TextVQA and GQA below a folder."""
    tests = miniature.numbers("test")
    problems = {
        str(n): {"question": QUESTION, "choices": list(COLORS), "answer": n % 4, "split": "test"}
        for n in tests
    }
    miniature.json(f"{root}/ScienceQA/problems.json", problems)
    splits = {"train": [], "val": [], "test": [str(n) for n in tests]}
    miniature.json(f"{root}/ScienceQA/pid_splits.json", splits)
    answers = [
        {"question_id": n, "question": QUESTION, "answers": [color(n)] * 8 + ["gray", ""]}
        for n in tests
    ]
    miniature.json(f"{root}/TextVQA/TextVQA_0.5.1_val.json", {"data": answers})
    balanced = {str(n): {"answer": color(n), "isBalanced": True} for n in tests}
    miniature.json(f"{root}/GQA/testdev_balanced_questions.json", balanced)
