"""Writes a small real data set from the images and questions of two Python packages.

easy-vqa contains images of colored shapes with questions, scikit-learn handwritten digits. Both are
installed by ``pip install dmole[examples]``; no other download is needed.
"""

from __future__ import annotations

import json
import random
import shutil
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from dmole.data.formats import Split
from dmole.data.sample import IMAGE_PLACEHOLDER
from dmole.data.task import Task

_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_SHAPES = ("circle", "rectangle", "triangle")
_DIGITS_FOR_TRAINING = 1297  # of 1797; the last 500 are for testing
_CANVAS = 64  # height and width of every image, in pixels


@dataclass(frozen=True)
class _Entry:
    """A question of the data set: ``draw`` creates the image, ``image`` is the file name."""

    question: str
    answer: str
    image: str
    draw: Callable[[], Image.Image]


def make_example(
    output: Path, *, train_size: int = 1500, test_size: int = 250, seed: int = 0
) -> list[Task]:
    """Write five tasks as LLaVA conversations with PNG images.

    ``yes_no``, ``color`` and ``shape`` ask about easy-vqa images, ``digit`` asks for the name of a
    handwritten digit, ``larger`` for the larger of two digits. Train and test follow the splits of
    the packages. The answers of a task are equally frequent as far as the source allows.

    Args:
        output: New or empty folder; it appears only when all files are written.
        train_size: Maximum number of training samples of a task. ``digit`` has at most 1297.
        test_size: Maximum number of test samples of a task.
        seed: Seed of the choice of samples.

    Returns:
        The tasks, with paths relative to ``output``.

    Raises:
        FileExistsError: If ``output`` is a file or a folder that is not empty.
        ModuleNotFoundError: If the packages are not installed.
        ValueError: If a size is below one.
    """
    if train_size < 1 or test_size < 1:
        raise ValueError(f"train_size {train_size} and test_size {test_size} must be at least 1")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"{output} exists already and is not an empty folder")
    sources = _sources()
    output.parent.mkdir(parents=True, exist_ok=True)
    draft = output.parent / f".{output.name}.{uuid.uuid4().hex}"
    try:
        for name, read in sources.items():
            _write_split(draft, name, "train", _balanced(read("train"), train_size, seed))
            _write_split(draft, name, "test", _balanced(read("test"), test_size, seed))
        draft.rename(output)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return [
        Task(name, train=f"{name}_train.json", test=f"{name}_test.json", max_new_tokens=8)
        for name in sources
    ]


def _sources() -> dict[str, Callable[[Split], list[_Entry]]]:
    """Return, for each task, a function that reads the questions of a split."""
    try:
        import easy_vqa
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"the example data need the package {error.name}: pip install dmole[examples]"
        ) from error
    digits = load_digits()
    return {
        "yes_no": lambda split: _easy_vqa(easy_vqa, split, lambda answer: answer in ("yes", "no")),
        "color": lambda split: _easy_vqa(
            easy_vqa, split, lambda answer: answer not in ("yes", "no", *_SHAPES)
        ),
        "shape": lambda split: _easy_vqa(easy_vqa, split, lambda answer: answer in _SHAPES),
        "digit": lambda split: _read_digits(digits, split),
        "larger": lambda split: _compare_digits(digits, split),
    }


def _easy_vqa(package: Any, split: Split, keep: Callable[[str], bool]) -> list[_Entry]:
    texts, answers, images = getattr(package, f"get_{split}_questions")()
    paths = getattr(package, f"get_{split}_image_paths")()
    return [
        _Entry(text, answer, f"easy_vqa_{split}/{image}.png", partial(_open, paths[image]))
        for text, answer, image in zip(texts, answers, images, strict=True)
        if keep(answer)
    ]


def _read_digits(digits: Any, split: Split) -> list[_Entry]:
    return [
        _Entry(
            "which digit is this?",
            _WORDS[digits.target[index]],
            f"digit_{split}/{index}.png",
            partial(_draw, digits, [index], _CANVAS),
        )
        for index in _digit_range(split)
    ]


def _compare_digits(digits: Any, split: Split) -> list[_Entry]:
    """Pair each digit of a split with up to five others, never with one of equal value."""
    indices = _digit_range(split)
    pairs = [
        (left, indices[(position + step) % len(indices)])
        for step in (1, 3, 17, 101, 203)
        for position, left in enumerate(indices)
    ]
    return [
        _Entry(
            "which digit is larger, left or right?",
            "left" if digits.target[left] > digits.target[right] else "right",
            f"larger_{split}/{left}_{right}.png",
            partial(_draw, digits, [left, right], _CANVAS // 2),
        )
        for left, right in pairs
        if digits.target[left] != digits.target[right]
    ]


def _digit_range(split: Split) -> range:
    return range(_DIGITS_FOR_TRAINING) if split == "train" else range(_DIGITS_FOR_TRAINING, 1797)


def _open(path: str) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def _draw(digits: Any, indices: Sequence[int], size: int) -> Image.Image:
    """Draw digits side by side on a black canvas; the source has 8x8 pixels of 0..16."""
    canvas = Image.new("RGB", (_CANVAS, _CANVAS))
    for position, index in enumerate(indices):
        pixels = (digits.images[index] / 16 * 255).astype("uint8")
        digit = Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC)
        canvas.paste(digit, (position * size, (_CANVAS - size) // 2))
    return canvas


def _balanced(entries: list[_Entry], size: int, seed: int) -> list[_Entry]:
    """Choose randomly, alternating between the answers; exhausted answers are skipped."""
    rng = random.Random(seed)
    by_answer: dict[str, list[_Entry]] = defaultdict(list)
    for entry in rng.sample(entries, len(entries)):
        by_answer[entry.answer].append(entry)
    chosen = list(_in_turn([by_answer[answer] for answer in sorted(by_answer)]))[:size]
    return rng.sample(chosen, len(chosen))


def _in_turn(groups: list[list[_Entry]]) -> Iterator[_Entry]:
    for position in range(max(map(len, groups))):
        for group in groups:
            if position < len(group):
                yield group[position]


def _write_split(folder: Path, name: str, split: Split, entries: list[_Entry]) -> None:
    items = []
    for index, entry in enumerate(entries):
        path = folder / "images" / entry.image
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():  # several questions may share an image
            entry.draw().save(path)
        turns = [
            {"from": "human", "value": f"{IMAGE_PLACEHOLDER}\n{entry.question}"},
            {"from": "gpt", "value": entry.answer.lower()},
        ]
        item = {"id": f"{name}_{split}_{index}", "image": f"images/{entry.image}"}
        items.append(item | {"conversations": turns})
    text = json.dumps(items, indent=1)
    (folder / f"{name}_{split}.json").write_text(text + "\n", encoding="utf-8")
