"""Writes a miniature of a benchmark: a few tiny images per task, in the original layout.

A miniature contains every file that the benchmark's config names. It serves to try a config or to
develop a reader before a terabyte is downloaded. The content is meaningless.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image

COLORS = ("red", "green", "blue", "white")
LETTERS = "ABCD"
"""The letters of the colors as options."""
SIDE = 32
"""Height and width of every picture, in pixels."""
QUESTION = "What color is the picture?"


class Miniature:
    """A data folder to be filled with a few tiny samples.

    Args:
        root: The folder of all data.
        train_size: Number of training items per task.
        test_size: Number of test items per task.
    """

    def __init__(self, root: Path, train_size: int = 8, test_size: int = 4) -> None:
        self.root = root
        self.sizes = {"train": train_size, "test": test_size}

    def numbers(self, split: str) -> range:
        """Return the numbers of the items of a split."""
        return range(self.sizes[split])

    def picture(self, folder: str, name: str, number: int) -> str:
        """Write a picture and return its name; the number determines the color."""
        path = self.root / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (SIDE, SIDE), color(number)).save(path)
        return name

    def json(self, path: str, content: Any) -> None:
        """Write a JSON file."""
        self.text(path, json.dumps(content, indent=1) + "\n")

    def lines(self, path: str, rows: Iterable[Any]) -> None:
        """Write JSON lines, one object per line."""
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
    """Return a conversation with one question; without an image it has no placeholder."""
    turns = [
        {"from": "human", "value": f"<image>\n{question}" if image else question},
        {"from": "gpt", "value": answer},
    ]
    return {"id": name, **({"image": image} if image else {}), "conversations": turns}


def question(name: Any, image: str | None, text: str, **answer: Any) -> dict[str, Any]:
    """Return a question of a CoIN test file."""
    placed = {"image": image, "text": f"<image>\n{text}"} if image else {"text": text}
    return {"question_id": name, **placed, **answer}


def coco_captions(miniature: Miniature, pattern: str, key: str = "file_name") -> dict[str, Any]:
    """Return a COCO caption file of the test pictures, two captions each."""
    numbers = miniature.numbers("test")
    return {
        "images": [{"id": n + 1, key: pattern.format(n)} for n in numbers],
        "annotations": [
            {"image_id": n + 1, "id": 2 * n + i, "caption": text}
            for n in numbers
            for i, text in enumerate((f"a {color(n)} picture", f"it is {color(n)}"))
        ],
    }
