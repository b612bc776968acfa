"""The questions and pictures of the example data: easy-vqa images and handwritten digits.

``mixed_tasks`` words every task differently; ``alike_tasks`` asks about the same sources in one
wording, so that the pictures tell the tasks apart. A task is a function that lists the entries of a
split. Its training and test entries follow the splits of the packages and share no source image.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

from PIL import Image

from dmole.data.formats import Split

Color = tuple[int, int, int]

_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_SHAPES = ("circle", "rectangle", "triangle")
_DIGITS_FOR_TRAINING = 1297  # of 1797; the last 500 are for testing
_CANVAS = 64  # height and width of every image, in pixels
_PAIR_STEPS = (1, 3, 17, 101, 203)  # distances of the digits that form a pair

_QUESTION = "what is shown?"
_COLOR_QUESTION = "what color is shown?"
_WHITE, _BLACK = (255, 255, 255), (0, 0, 0)
_INKS = ((30, 30, 40), (25, 35, 85), (60, 35, 25))  # black, blue and brown ink
_PAPER = (250, 238, 210)
_BRIGHT = ((255, 230, 90), (120, 235, 245), (255, 170, 205), (150, 245, 130))
_DEEP = ((150, 30, 40), (20, 95, 45), (30, 50, 150), (110, 40, 125), (135, 75, 10))


@dataclass(frozen=True)
class Entry:
    """A question of the data set: ``draw`` creates the image, ``image`` is the file name."""

    question: str
    answer: str
    image: str
    draw: Callable[[], Image.Image]


Reader = Callable[[Split], list[Entry]]


def mixed_tasks() -> dict[str, Reader]:
    """Return five tasks with questions of their own.

    Raises:
        ModuleNotFoundError: If the packages are not installed.
    """
    easy_vqa, digits = _packages()

    def easy(keep: Callable[[str], bool]) -> Reader:
        return lambda split: [entry for entry in _easy_vqa(easy_vqa, split) if keep(entry.answer)]

    return {
        "yes_no": easy(lambda answer: answer in ("yes", "no")),
        "color": easy(_is_color),
        "shape": easy(lambda answer: answer in _SHAPES),
        "digit": lambda split: _digits(digits, split, "digit", "which digit is this?"),
        "larger": lambda split: _larger(digits, split),
    }


def alike_tasks() -> dict[str, Reader]:
    """Return six tasks in one wording; ``color`` alone adds a word.

    Raises:
        ModuleNotFoundError: If the packages are not installed.
    """
    easy_vqa, digits = _packages()

    def easy(question: str, keep: Callable[[str], bool]) -> Reader:
        return lambda split: _one_an_image(_easy_vqa(easy_vqa, split), question, keep)

    return {
        "digit_white": lambda split: _digits(digits, split, "digit_white", _QUESTION),
        "shape": easy(_QUESTION, lambda answer: answer in _SHAPES),
        "digit_ink": lambda split: _digits(digits, split, "digit_ink", _QUESTION, _on_paper),
        "color": easy(_COLOR_QUESTION, _is_color),
        "digit_pair": lambda split: _pairs(digits, split),
        "digit_color": lambda split: _digits(
            digits, split, "digit_color", _QUESTION, _in_color, [str(value) for value in range(10)]
        ),
    }


def _packages() -> tuple[ModuleType, Any]:
    """Return the module easy_vqa and the digits of scikit-learn."""
    try:
        import easy_vqa
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"the example data need the package {error.name}: pip install dmole[examples]"
        ) from error
    return easy_vqa, load_digits()


def _is_color(answer: str) -> bool:
    return answer not in ("yes", "no", *_SHAPES)


def _easy_vqa(package: ModuleType, split: Split) -> list[Entry]:
    texts, answers, images = getattr(package, f"get_{split}_questions")()
    paths = getattr(package, f"get_{split}_image_paths")()
    return [
        Entry(text, answer, f"easy_vqa_{split}/{image}.png", partial(_open, paths[image]))
        for text, answer, image in zip(texts, answers, images, strict=True)
    ]


def _one_an_image(entries: list[Entry], question: str, keep: Callable[[str], bool]) -> list[Entry]:
    """Ask ``question`` once about each image that has an answer to keep.

    An image holds one shape of one color, so all answers that are shapes (or colors) are equal.
    """
    kept = {entry.image: entry for entry in entries if keep(entry.answer)}
    return [Entry(question, entry.answer, entry.image, entry.draw) for entry in kept.values()]


def _digits(
    digits: Any,
    split: Split,
    name: str,
    question: str,
    colors: Callable[[int], tuple[Color, Color]] | None = None,
    answers: Sequence[str] = _WORDS,
) -> list[Entry]:
    """Ask for the value of each digit; ``colors`` returns ink and ground of a digit."""
    return [
        Entry(
            question,
            answers[digits.target[index]],
            f"{name}_{split}/{index}.png",
            partial(_draw, digits, [index], _CANVAS, *(colors(index) if colors else ())),
        )
        for index in _digit_range(split)
    ]


def _larger(digits: Any, split: Split) -> list[Entry]:
    return [
        Entry(
            "which digit is larger, left or right?",
            "left" if digits.target[left] > digits.target[right] else "right",
            f"larger_{split}/{left}_{right}.png",
            partial(_draw, digits, [left, right], _CANVAS // 2),
        )
        for left, right in _pair_indices(split)
        if digits.target[left] != digits.target[right]
    ]


def _pairs(digits: Any, split: Split) -> list[Entry]:
    """Ask for both digits of a pair, which are drawn as high as the image, from left to right."""
    return [
        Entry(
            _QUESTION,
            f"{_WORDS[digits.target[left]]} {_WORDS[digits.target[right]]}",
            f"digit_pair_{split}/{left}_{right}.png",
            partial(_draw, digits, [left, right], _CANVAS),
        )
        for left, right in _pair_indices(split)
    ]


def _pair_indices(split: Split) -> Iterator[tuple[int, int]]:
    """Pair each digit of a split with five others."""
    indices = _digit_range(split)
    for step in _PAIR_STEPS:
        for position, left in enumerate(indices):
            yield left, indices[(position + step) % len(indices)]


def _digit_range(split: Split) -> range:
    return range(_DIGITS_FOR_TRAINING) if split == "train" else range(_DIGITS_FOR_TRAINING, 1797)


def _on_paper(index: int) -> tuple[Color, Color]:
    """Return an ink and a paper whose tint varies a little."""
    rng = random.Random(index)
    red, green, blue = (channel - rng.randrange(16) for channel in _PAPER)
    return rng.choice(_INKS), (red, green, blue)


def _in_color(index: int) -> tuple[Color, Color]:
    """Return a bright color and a deep ground."""
    rng = random.Random(index)
    return rng.choice(_BRIGHT), rng.choice(_DEEP)


def _open(path: str) -> Image.Image:
    with Image.open(path) as file:
        image: Image.Image = file.convert("RGB")
    return image


def _draw(
    digits: Any,
    indices: Sequence[int],
    height: int,
    ink: Color = _WHITE,
    ground: Color = _BLACK,
) -> Image.Image:
    """Draw digits of equal width side by side in ``ink``; the source has 8x8 pixels of 0..16."""
    canvas = Image.new("RGB", (_CANVAS, _CANVAS), ground)
    width, top = _CANVAS // len(indices), (_CANVAS - height) // 2
    for position, index in enumerate(indices):
        pixels = (digits.images[index] / 16 * 255).astype("uint8")
        mask = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
        left = position * width
        canvas.paste(ink, (left, top, left + width, top + height), mask)
    return canvas
