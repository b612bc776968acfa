"""Photographs of a Debian package, and tasks with one wording about pictures made of them.

The package is ``tuxpaint-stamps-default`` (GPL-2). It is downloaded by ``apt-get`` when it is
needed; nothing of it comes with dmole.
"""

from __future__ import annotations

import functools
import random
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from dmole.data.formats import Split
from dmole.demo.real_tasks import Entry, Reader
from dmole.demo.world.questions import side_of
from dmole.demo.world.signs import (
    FORMS,
    OPPOSITE,
    TURNS,
    WORDING,
    compass,
    paste_sign,
    sign_and_squares,
)
from dmole.demo.world.world import CELL, Canvas, Thing
from dmole.messages import one_line
from dmole.storage.seeds import derive_seed

PACKAGE = "tuxpaint-stamps-default"
KINDS = {
    "mammal": "animals/mammals",
    "bird": "animals/birds",
    "insect": "animals/insects",
    "fruit": "food/fruit",
    "flower": "plants/flowers",
}
"""Kinds of photographs, and the folder of the package that holds them."""
LARGE, SMALL = 32, 20
"""Sides of the squares that hold the two photographs, in pixels."""
TESTED = 0.25
"""Share of the photographs of a kind that only test pictures show."""
_DRAWN = ("cartoon", "toys", "plastic")
"""Folders of pictures that are not photographs of what they show."""
_PER_SAMPLE = 2
"""Pictures that are thought of for each sample, so that answers can be balanced."""


@dataclass(frozen=True)
class PhotoScene:
    """A picture with a large and a small photograph and a letter as sign.

    Args:
        large: The large photograph; ``label`` is the index of its kind.
        small: The small one.
        side: Side of the small photograph on which the large one is.
        sign: The sign.
        paths: Files of the large and the small photograph.
        seed: Seed of the ground.
    """

    large: Thing
    small: Thing
    side: str
    sign: Thing
    paths: tuple[Path, Path]
    seed: int

    def draw(self) -> Image.Image:
        """Return the picture, 64 pixels wide and high."""
        canvas = Canvas(random.Random(self.seed), dark=False)
        paste_sign(canvas, self.sign)
        image = Image.fromarray(canvas.image())
        for thing, path in zip((self.large, self.small), self.paths, strict=True):
            side = thing.width * CELL
            cut = cut_out(path, side)
            left = thing.left * CELL + (side - cut.width) // 2
            image.paste(cut, (left, thing.top * CELL + (side - cut.height) // 2), cut)
        return image


PHOTO_TASKS: dict[str, tuple[str, Callable[[PhotoScene], str]]] = {
    "kind_large": ("A", lambda scene: [*KINDS][scene.large.label]),
    "code": ("E", lambda scene: FORMS[scene.large.label]),
    "place_large": ("M", lambda scene: compass(scene.large)),
    "side": ("X", lambda scene: TURNS[scene.side]),
    "kind_small": ("H", lambda scene: [*KINDS][scene.small.label]),
    "code_turned": ("T", lambda scene: FORMS[(scene.large.label + 1) % len(FORMS)]),
    "place_small": ("R", lambda scene: compass(scene.small)),
    "side_turned": ("S", lambda scene: OPPOSITE[TURNS[scene.side]]),
}
"""Sign and answer of each task, in the order of `configs/benchmarks/one_wording_real.yaml`."""


def photo_tasks(folder: Path, sizes: Mapping[Split, int]) -> dict[str, Reader]:
    """Return eight tasks with one wording about photographs.

    Args:
        folder: The unpacked package, see `unpack`.
        sizes: Samples of a task by split; the tasks have twice as many entries.

    Raises:
        ValueError: If a kind has fewer than eight photographs.
    """
    photos = {split: photographs(folder, split) for split in sizes}

    def reader(name: str, sign: str, answer: Callable[[PhotoScene], str]) -> Reader:
        def read(split: Split) -> list[Entry]:
            count = _PER_SAMPLE * sizes[split]
            return [_entry(f"{name}_{split}", i, sign, answer, photos[split]) for i in range(count)]

        return read

    return {name: reader(name, *task) for name, task in PHOTO_TASKS.items()}


def _entry(
    name: str,
    index: int,
    sign: str,
    answer: Callable[[PhotoScene], str],
    photos: Mapping[str, Sequence[Path]],
) -> Entry:
    scene = photo_scene(random.Random(f"{name}-{index}"), sign, photos)
    return Entry(WORDING, answer(scene), f"{name}/{index}.png", scene.draw)


def is_photograph(path: Path, folder: Path) -> bool:
    """Return whether a picture of the package is a photograph of what it shows."""
    return not {*_DRAWN} & {*path.relative_to(folder).parts}


def photographs(folder: Path, split: Split) -> dict[str, list[Path]]:
    """Return the photographs of each kind; those of train and test differ.

    Raises:
        ValueError: If a kind has fewer than eight photographs.
    """
    found: dict[str, list[Path]] = {}
    for kind, below in KINDS.items():
        paths = sorted(p for p in (folder / below).rglob("*.png") if is_photograph(p, folder))
        if len(paths) < 8:
            raise ValueError(f"{folder / below}: has {len(paths)} photographs, at least 8 needed")
        random.Random(derive_seed("photographs", kind)).shuffle(paths)
        count = round(TESTED * len(paths))
        found[kind] = paths[:count] if split == "test" else paths[count:]
    return found


def photo_scene(rng: random.Random, sign: str, photos: Mapping[str, Sequence[Path]]) -> PhotoScene:
    """Return a random picture with a sign; all but the sign has one distribution.

    Args:
        rng: Source of randomness.
        sign: A capital letter.
        photos: Photographs by kind.
    """
    kinds = [*photos]
    while True:
        things = sign_and_squares(rng, sign, (LARGE, SMALL))
        if things is None or (side := side_of(*things[1:])) is None:
            continue
        letter, *squares = things
        large, small = (replace(square, label=rng.randrange(len(kinds))) for square in squares)
        paths = (rng.choice(photos[kinds[large.label]]), rng.choice(photos[kinds[small.label]]))
        return PhotoScene(large, small, side, letter, paths, rng.getrandbits(32))


@functools.cache
def cut_out(path: Path, side: int) -> Image.Image:
    """Return a photograph without its transparent rim, as large as a square allows."""
    with Image.open(path) as file:
        image: Image.Image = file.convert("RGBA")
    image = image.crop(image.getchannel("A").getbbox())
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return image


def unpack(target: Path, package: Path | None = None) -> Path:
    """Download the Debian package with ``apt-get`` and unpack it.

    Args:
        target: Folder for the files.
        package: The package as a ``.deb`` file, if it was downloaded before.

    Returns:
        The folder that holds the photographs.

    Raises:
        FileNotFoundError: If the package, ``apt-get`` or ``dpkg-deb`` is missing.
        OSError: If the package cannot be downloaded or unpacked.
    """
    if package is None:
        _run("apt-get", "download", PACKAGE, folder=target)
        package = next(iter(sorted(target.glob(f"{PACKAGE}_*.deb"))), None)
        if package is None:
            raise OSError(f"apt-get has downloaded no {PACKAGE}")
    if not package.is_file():
        raise FileNotFoundError(f"{package}: there is no such package")
    _run("dpkg-deb", "--extract", str(package.absolute()), "unpacked", folder=target)
    return target / "unpacked" / "usr" / "share" / "tuxpaint" / "stamps"


def _run(program: str, *arguments: str, folder: Path) -> None:
    if shutil.which(program) is None:
        raise FileNotFoundError(
            f"{program} is missing: download the Debian package {PACKAGE} elsewhere, name it "
            "with --package, and install dpkg"
        )
    done = subprocess.run(
        [program, *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise OSError(f"{program} {' '.join(arguments)}: {one_line(done.stderr)}")


def temporary_folder() -> tempfile.TemporaryDirectory[str]:
    """Return a folder for the package, which is deleted after use."""
    return tempfile.TemporaryDirectory(prefix="dmole-photographs-")
