"""Writes a benchmark's files in miniature: a few tiny pictures a task, in the very same layout.

Every file that a benchmark's config names is there, so that a config can be tried, and an own
reader be written against it, before a terabyte is downloaded. The content is nonsense.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from PIL import Image

COLORS = ("red", "green", "blue", "white")
_SIDE = 32  # height and width of every picture, in pixels
_QUESTION = "What color is the picture?"


class Writer:
    """Writes the files of a miniature.

    Args:
        root: The folder of all data.
        train_size: Training items of a task.
        test_size: Test items of a task.
    """

    def __init__(self, root: Path, train_size: int = 8, test_size: int = 4) -> None:
        self.root = root
        self.sizes = {"train": train_size, "test": test_size}

    def numbers(self, split: str) -> range:
        """Return a number an item."""
        return range(self.sizes[split])

    def picture(self, folder: str, name: str, number: int) -> str:
        """Write a picture and return its name; the color follows from the number."""
        path = self.root / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (_SIDE, _SIDE), color(number)).save(path)
        return name

    def json(self, path: str, content: Any) -> None:
        """Write a JSON file."""
        self.text(path, json.dumps(content, indent=1) + "\n")

    def lines(self, path: str, rows: Iterable[Any]) -> None:
        """Write an object a line."""
        self.text(path, "".join(json.dumps(row) + "\n" for row in rows))

    def text(self, path: str, content: str) -> None:
        """Write a text file."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content, encoding="utf-8")


def color(number: int) -> str:
    """Return the color of a picture."""
    return COLORS[number % len(COLORS)]


def talk(name: Any, image: str | None, question: str, answer: str) -> dict[str, Any]:
    """Return a conversation of one question; without an image it has no placeholder."""
    turns = [
        {"from": "human", "value": f"<image>\n{question}" if image else question},
        {"from": "gpt", "value": answer},
    ]
    return {"id": name, **({"image": image} if image else {}), "conversations": turns}


def question(name: Any, image: str | None, text: str, **answer: Any) -> dict[str, Any]:
    """Return a question of a CoIN test file."""
    placed = {"image": image, "text": f"<image>\n{text}"} if image else {"text": text}
    return {"question_id": name, **placed, **answer}


def write_coin(writer: Writer) -> None:
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
            items = [_coin_item(writer, task, folder, split, n) for n in writer.numbers(split)]
            name = "train" if split == "train" else test_name
            writer.json(f"playground/Instructions_Original/{task}/{name}.json", items)
    _coin_side_files(writer)


def _coin_item(writer: Writer, task: str, folder: str, split: str, n: int) -> dict[str, Any]:
    image: str | None = f"./{folder}/{task}_{split}_{n}.jpg"
    if task == "ScienceQA" and n % 4 == 1:
        image = None  # half of ScienceQA is text alone
    else:
        writer.picture("cl_dataset", str(image), n)
    if task == "Grounding":
        box = [0.1, 0.2, 0.6, 0.8]
        text = "Give the box of the color."
        if split == "train":
            return talk(n, image, text, str(box))
        return question(n, image, text, answer_bbox=str(box), size=[_SIDE, _SIDE])
    if task == "ScienceQA":
        text = f"{_QUESTION}\n" + "\n".join(f"{'ABCD'[i]}. {c}" for i, c in enumerate(COLORS))
        answer = "ABCD"[n % 4]
    else:
        text, answer = f"{_QUESTION}\nAnswer in one word.", color(n)
    if split == "train":
        return talk(n, image, text, answer)
    return question(str(n), image, text, answer=answer)


def _coin_side_files(writer: Writer) -> None:
    tests = writer.numbers("test")
    problems = {
        str(n): {"question": _QUESTION, "choices": list(COLORS), "answer": n % 4, "split": "test"}
        for n in tests
    }
    writer.json("cl_dataset/ScienceQA/problems.json", problems)
    splits = {"train": [], "val": [], "test": [str(n) for n in tests]}
    writer.json("cl_dataset/ScienceQA/pid_splits.json", splits)
    answers = [
        {"question_id": n, "question": _QUESTION, "answers": [color(n)] * 8 + ["gray", ""]}
        for n in tests
    ]
    writer.json("cl_dataset/TextVQA/TextVQA_0.5.1_val.json", {"data": answers})
    balanced = {str(n): {"answer": color(n), "isBalanced": True} for n in tests}
    writer.json("cl_dataset/GQA/testdev_balanced_questions.json", balanced)


def write_ucit(writer: Writer) -> None:
    """Write UCIT under the names of MCITlib; captions have two references an image."""
    names = {
        "ImageNet-R": ("train", "ImageNet-R"),
        "ArxivQA": ("train_4w", "ArxivQA/images"),
        "VizWiz-caption": ("train", "VizWiz"),
        "IconQA": ("train", "IconQA/iconqa_data/iconqa"),
        "CLEVR-Math": ("train_4w", "CLEVR/images"),
        "Flickr30k-cap": ("train_brief_4w", "Flickr30k"),
    }
    for task, (train_name, folder) in names.items():
        captions = task in ("VizWiz-caption", "Flickr30k-cap")
        for split in ("train", "test"):
            items = []
            for n in writer.numbers(split):
                image = f"datasets/{folder}/{split}/{task}_{n}.jpg"
                writer.picture(".", image, n)
                text = "Describe the picture." if captions else f"{_QUESTION}\nOne word."
                answer = f"a {color(n)} picture" if captions else color(n)
                made = talk if split == "train" else question
                given = (answer,) if split == "train" else ()
                more = {} if split == "train" else {"answer": answer}
                items.append(made(n, image, text, *given, **more))
            writer.json(f"{task}/{train_name if split == 'train' else 'test_3000'}.json", items)
        if captions:
            writer.json(
                f"{task}/val_coco_type_3000.json", coco_captions(writer, f"{task}_{{}}.jpg")
            )


def coco_captions(writer: Writer, pattern: str, key: str = "file_name") -> dict[str, Any]:
    """Return a COCO caption file of the test pictures, two captions each."""
    numbers = writer.numbers("test")
    return {
        "images": [{"id": n + 1, key: pattern.format(n)} for n in numbers],
        "annotations": [
            {"image_id": n + 1, "id": 2 * n + i, "caption": text}
            for n in numbers
            for i, text in enumerate((f"a {color(n)} picture", f"it is {color(n)}"))
        ],
    }


def write_mllm_dcl(writer: Writer) -> None:
    """Write MLLM-DCL: five domains, each with its own images."""
    for task in ("RS", "Med", "AD", "Sci", "Fin"):
        for split in ("train", "test"):
            items = []
            for n in writer.numbers(split):
                source = ("AI2D", "TQA", "VQA", "map")[n % 4] if task == "Sci" else task
                image = writer.picture(f"Domain_data/{task}", f"images/{source}_{split}_{n}.png", n)
                if split == "train":
                    items.append(talk(n, image, _QUESTION, color(n)))
                else:
                    items.append(question(n, image, _QUESTION, answer=color(n)))
            writer.json(f"Domain_data/{task}/{split}.json", items)


def write_cmit(writer: Writer) -> None:
    """Write the nine tasks of D-MoLE: conversations for training, its own files for testing."""
    from dmole.benchmarks.layouts.miniature_cmit import TASKS

    for write in TASKS:
        write(writer)


MINIATURES: dict[str, Callable[[Writer], None]] = {
    "cmit": write_cmit,
    "coin": write_coin,
    "mllm_dcl": write_mllm_dcl,
    "ucit": write_ucit,
}
"""What writes each benchmark."""
