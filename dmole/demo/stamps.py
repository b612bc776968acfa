"""Photographs with captions in two languages, and tasks about pictures made of them.

The photographs are those of the Debian package that `dmole.demo.photographs` downloads.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from dmole.data.formats import Split
from dmole.demo.photographs import TESTED, cut_out, is_photograph
from dmole.demo.real_tasks import Entry, Reader
from dmole.storage.seeds import derive_seed

SIDE = 192
"""Height and width of a picture in pixels."""
SIZES = (56, 88)
"""Smallest and largest square of a photograph in a picture of several, in pixels."""
ALONE = (104, 168)
"""The same for a photograph that is alone."""
CATEGORIES = {
    "mammal": "animals/mammals",
    "bird": "animals/birds",
    "fish": "animals/fish",
    "insect": "animals/insects",
    "fruit": "food/fruit",
    "vegetable": "food/vegetables",
    "flower": "plants/flowers",
    "tool": "household/tools",
    "instrument": "hobbies/music",
}
"""Categories of photographs, and the folder of the package that holds them."""
OTHER = ("vehicles", "clothes", "household/dishes", "sports", "plants/trees", "food/nuts")
"""Folders whose photographs are named, but belong to no category."""
NUMBERS = ("one", "two", "three", "four")
_ATTEMPTS = 100
_CAPTION = re.compile(r"(An?) ([a-z][a-z' -]{2,28})\.?", re.IGNORECASE)
_GERMAN = re.compile(r"Eine? [\w' -]{2,40}\.?")


@dataclass(frozen=True)
class Photo:
    """A photograph.

    Args:
        path: The file.
        name: What it shows in English, without article: ``lion``.
        caption: The same with its article: ``a lion``.
        german: The same in German: ``ein löwe``.
        category: A key of `CATEGORIES`; empty for none.
    """

    path: Path
    name: str
    caption: str
    german: str
    category: str


@dataclass(frozen=True)
class Placed:
    """A photograph in a picture.

    Args:
        photo: The photograph.
        left: Left edge of its square in pixels.
        top: Top edge of its square in pixels.
        side: Side of the square in pixels.
        mirrored: Whether left and right are exchanged.
    """

    photo: Photo
    left: int
    top: int
    side: int
    mirrored: bool

    @property
    def region(self) -> str:
        """The ninth of the picture that holds the center of the square: ``top left``."""
        row = 3 * (self.top + self.side // 2) // SIDE
        column = 3 * (self.left + self.side // 2) // SIDE
        return f"{('top', 'middle', 'bottom')[row]} {('left', 'center', 'right')[column]}"


@dataclass(frozen=True)
class Picture:
    """A picture of photographs on a ground.

    Args:
        placed: The photographs, from left to right.
        seed: Seed of the ground.
    """

    placed: tuple[Placed, ...]
    seed: int

    def draw(self) -> Image.Image:
        """Return the picture, `SIDE` pixels wide and high."""
        numbers = np.random.default_rng(self.seed)
        light = numbers.random() < 0.7
        ends = numbers.uniform(*((150, 250) if light else (10, 90)), size=(2, 3))
        ramp = np.linspace(0, 1, SIDE)[:, None, None]
        ground = ends[0] * ramp + ends[1] * (1 - ramp) + numbers.normal(0, 6, (SIDE, SIDE, 3))
        image = Image.fromarray(ground.clip(0, 255).astype(np.uint8))
        for one in self.placed:
            cut = cut_out(one.photo.path, one.side)
            if one.mirrored:
                cut = cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            left = one.left + (one.side - cut.width) // 2
            image.paste(cut, (left, one.top + (one.side - cut.height) // 2), cut)
        return image


def read_photos(folder: Path) -> list[Photo]:
    """Return the photographs with a short caption in both languages, one of each caption.

    Args:
        folder: The unpacked package, see `dmole.demo.photographs.unpack`.

    Raises:
        ValueError: If there are fewer than 50.
    """
    found: dict[str, Photo] = {}
    places = {**CATEGORIES, **{f"other {below}": below for below in OTHER}}
    for category, below in places.items():
        for path in sorted((folder / below).rglob("*.png")):
            captions = path.with_suffix(".txt")
            if not is_photograph(path, folder) or not captions.is_file():
                continue
            lines = captions.read_text(encoding="utf-8", errors="replace").splitlines()
            english = _CAPTION.fullmatch(lines[0].strip()) if lines else None
            german = next((line[8:].strip() for line in lines if line.startswith("de.utf8=")), "")
            if english is None or not _GERMAN.fullmatch(german):
                continue
            name = english[2].lower()
            caption = f"{english[1]} {name}".lower()
            german = german.rstrip(".").lower()
            own = "" if category.startswith("other ") else category
            found.setdefault(caption, Photo(path, name, caption, german, own))
    if len(found) < 50:
        raise ValueError(f"{folder}: {len(found)} photographs have captions, at least 50 needed")
    return list(found.values())


def place(rng: random.Random, photos: Sequence[Photo]) -> Picture:
    """Return a picture of photographs that do not overlap."""
    sizes = ALONE if len(photos) == 1 else SIZES
    while True:
        placed: list[Placed] = []
        for photo in photos:
            for _ in range(_ATTEMPTS):
                side = rng.randint(*sizes)
                left, top = rng.randint(0, SIDE - side), rng.randint(0, SIDE - side)
                if not any(_overlap(left, top, side, other) for other in placed):
                    placed.append(Placed(photo, left, top, side, rng.random() < 0.5))
                    break
        if len(placed) == len(photos):
            placed.sort(key=lambda one: one.left + one.side / 2)
            return Picture(tuple(placed), rng.getrandbits(32))


def _overlap(left: int, top: int, side: int, other: Placed) -> bool:
    apart = (
        left + side <= other.left
        or other.left + other.side <= left
        or top + side <= other.top
        or other.top + other.side <= top
    )
    return not apart


Ask = Callable[[random.Random, Sequence[Photo]], tuple[Picture, str, str]]
"""Returns picture, question and answer."""


def describe(rng: random.Random, photos: Sequence[Photo]) -> tuple[Picture, str, str]:
    """One or two photographs and their captions in English, from left to right."""
    picture = place(rng, rng.sample(photos, rng.choice((1, 1, 2))))
    question = rng.choice(("describe the picture", "what do you see?", "what is in the picture?"))
    return picture, question, " and ".join(one.photo.caption for one in picture.placed)


def _name(rng: random.Random, photos: Sequence[Photo]) -> tuple[Picture, str, str]:
    picture = place(rng, [rng.choice(photos)])
    return picture, "name it in one line", picture.placed[0].photo.name


def _count(rng: random.Random, photos: Sequence[Photo]) -> tuple[Picture, str, str]:
    number = rng.randint(1, len(NUMBERS))
    picture = place(rng, [rng.choice(photos)] * number)
    return picture, "how many are there?", NUMBERS[number - 1]


def _locate(rng: random.Random, photos: Sequence[Photo]) -> tuple[Picture, str, str]:
    picture = place(rng, rng.sample(photos, 2))
    one = rng.choice(picture.placed)
    return picture, f"where is the {one.photo.name}?", one.region


def _category(rng: random.Random, photos: Sequence[Photo]) -> tuple[Picture, str, str]:
    by_category: dict[str, list[Photo]] = defaultdict(list)
    for photo in photos:
        if photo.category:
            by_category[photo.category].append(photo)
    category = rng.choice(sorted(by_category))
    picture = place(rng, [rng.choice(by_category[category])])
    return picture, "what kind of thing is it?", category


def _german(rng: random.Random, photos: Sequence[Photo]) -> tuple[Picture, str, str]:
    picture = place(rng, rng.sample(photos, rng.choice((1, 1, 2))))
    answer = " und ".join(one.photo.german for one in picture.placed)
    return picture, "beschreibe das bild", answer


STAMP_TASKS: dict[str, Ask] = {
    "name": _name,
    "count": _count,
    "locate": _locate,
    "category": _category,
    "caption_de": _german,
    "caption": describe,
}
"""The tasks, in the order of `configs/photographs.yaml`; the last one is what the base can do."""
UNSEEN = ("category",)
"""Tasks whose test pictures show photographs that no training picture of the task shows."""


def stamp_tasks(folder: Path, sizes: Mapping[Split, int]) -> dict[str, Reader]:
    """Return tasks about pictures of photographs.

    Args:
        folder: The unpacked package.
        sizes: Samples of a task by split; the tasks have twice as many entries.

    Raises:
        ValueError: If there are too few photographs.
    """
    photos = read_photos(folder)
    apart = split_photos(photos)

    def reader(name: str, ask: Ask) -> Reader:
        def read(split: Split) -> list[Entry]:
            own = apart[split] if name in UNSEEN else photos
            return [_entry(f"{name}_{split}", i, ask, own) for i in range(2 * sizes[split])]

        return read

    return {name: reader(name, ask) for name, ask in STAMP_TASKS.items()}


def split_photos(photos: Sequence[Photo]) -> dict[Split, list[Photo]]:
    """Return the photographs of training and test; a quarter of each category is for the test."""
    found: dict[Split, list[Photo]] = {"train": [], "test": []}
    for category in (*CATEGORIES, ""):
        own = [photo for photo in photos if photo.category == category]
        random.Random(derive_seed("stamps", category)).shuffle(own)
        count = round(TESTED * len(own))
        found["test"] += own[:count]
        found["train"] += own[count:]
    return found


def _entry(name: str, index: int, ask: Ask, photos: Sequence[Photo]) -> Entry:
    picture, question, answer = ask(random.Random(f"{name}-{index}"), photos)
    return Entry(question, answer, f"{name}/{index}.png", picture.draw)
