"""Examines the images of a file: each is decoded once and identified by a hash of its pixels.

The same pass runs the samples through the processor, so that no image is decoded for it again.
"""

from __future__ import annotations

import hashlib
import warnings
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from dmole.data.leakage import question_turns, stable_hash
from dmole.data.sample import StoredImage
from dmole.doctor.findings import Findings
from dmole.doctor.inputs import InputCheck, InputOptions, spread
from dmole.doctor.source import CheckedSource, Tick, TolerantReader
from dmole.doctor.tokens import TokenReport
from dmole.messages import shortened

Problem = tuple[str, str]
"""Kind of a finding and its message."""


@dataclass
class ImageReport:
    """Results for the images of a part of a file.

    Args:
        source: The file.
        findings: The findings.
        paths: A hash of the name of each examined image.
        owners: Position of the item of each image.
        pictures: Pixel hash of each image, aligned with `owners`.
        askers: Positions of the items whose images and texts can be read.
        questions: A hash of the images and of the texts before the last answer, aligned with
            `askers`.
    """

    source: CheckedSource
    findings: Findings
    paths: array[int] = field(default_factory=lambda: array("Q"))
    owners: array[int] = field(default_factory=lambda: array("Q"))
    pictures: array[int] = field(default_factory=lambda: array("Q"))
    askers: array[int] = field(default_factory=lambda: array("Q"))
    questions: array[int] = field(default_factory=lambda: array("Q"))

    @property
    def files(self) -> int:
        """Number of different files examined."""
        return len(np.unique(np.frombuffer(self.paths, np.uint64))) if self.paths else 0

    def merge(self, other: ImageReport) -> None:
        """Add another part of the same file."""
        self.findings.merge(other.findings)
        for name in ("paths", "owners", "pictures", "askers", "questions"):
            getattr(self, name).extend(getattr(other, name))


class Album:
    """Hashes of images and what is to be said about them; each is decoded once.

    Args:
        decode: Whether to decode; otherwise an image is identified by its path.
    """

    def __init__(self, *, decode: bool) -> None:
        self._decode = decode
        # keyed by the hash of the path: a number instead of a text saves most of the memory
        self._hashes: dict[int, int] = {}
        self._problems: dict[int, list[Problem]] = {}
        self._recent: dict[int, Image.Image] = {}

    @property
    def paths(self) -> set[int]:
        """Hashes of the paths of the files."""
        return self._hashes.keys() | self._problems.keys()

    def look(self, image: StoredImage) -> tuple[int | None, Sequence[Problem]]:
        """Return the hash of an image, None if it cannot be decoded, and its problems."""
        key = stable_hash(image.name)
        if key not in self._hashes and key not in self._problems:
            seen = look_at(image) if self._decode else Look(key)
            if seen.hash is not None:
                self._hashes[key] = seen.hash
            if seen.problems:
                self._problems[key] = seen.problems
            if seen.picture is not None:
                self._keep(key, seen.picture)
        return self._hashes.get(key), self._problems.get(key, ())

    def picture(self, image: StoredImage) -> Image.Image:
        """Return a decoded image; the last ones are kept."""
        key = stable_hash(image.name)
        if key not in self._recent:
            self._keep(key, image.load())
        return self._recent[key]

    def _keep(self, key: int, picture: Image.Image) -> None:
        self._recent[key] = picture
        while len(self._recent) > 1 and sum(map(_pixels, self._recent.values())) > _RECENT:
            del self._recent[next(iter(self._recent))]


def examine_images(
    source: CheckedSource,
    limit: int,
    part: tuple[int, int],
    decode: bool,
    inputs: InputOptions | None = None,
    *,
    tick: Tick | None = None,
) -> tuple[ImageReport, TokenReport | None]:
    """Examine the images of a part of a file, and run its samples through the processor.

    Items that name the same images are in the same part.

    Args:
        source: The file.
        limit: Maximum number of findings stored per kind.
        part: Number of the part, from 0, and the number of parts.
        decode: Whether to decode the images; otherwise they are identified by their paths.
        inputs: What the samples are run through; None runs none.
        tick: Progress callback.

    Returns:
        The results for images, and for the inputs of the model if samples are run.
    """
    report = ImageReport(source, Findings(limit))
    # a suffix follows each question of a training sample, but only the last of a test sample
    reader = TolerantReader(source.without_suffix())
    asking = TolerantReader(source) if source.task.prompt_suffix else reader
    album = Album(decode=decode)
    check = None if inputs is None else InputCheck(source, limit, inputs)
    most = None if inputs is None else inputs.most
    count = 0 if most is None else sum(1 for _ in source.valid_items())
    number, parts = part
    for position, (index, item) in enumerate(source.valid_items(tick)):
        if stable_hash(repr(item.get("image") or item.get("images") or index)) % parts == number:
            images = _examine_item(report, reader, album, item, index)
            if check is not None and images is not None and spread(position, count, most):
                sample = asking.examine(item, index).sample
                assert sample is not None  # the suffix does not change whether an item is valid
                check.run(sample, map(album.picture, images), index)
    report.paths.extend(album.paths)
    return report, None if check is None else check.report


def _examine_item(
    report: ImageReport, reader: TolerantReader, album: Album, item: dict[str, Any], index: int
) -> list[StoredImage] | None:
    """Return the images of an item; None if one cannot be decoded or the item is malformed."""
    source, pictures, images = report.source, list[int | None](), list[StoredImage]()
    examined = reader.examine(item, index)
    for image in reader.images(examined.names):
        if isinstance(image, tuple):  # a missing image; the pass over the texts reports it
            pictures.append(None)
            continue
        value, problems = album.look(image)
        images.append(image)
        pictures.append(value)
        for problem in problems:
            report.findings.add(source.finding(*problem, index, source.id_of(item, index)))
        if value is not None:
            report.owners.append(index)
            report.pictures.append(value)
    if None in pictures or examined.sample is None:
        return None
    report.askers.append(index)
    report.questions.append(stable_hash(repr(pictures), *question_turns(examined.sample)))
    return images


@dataclass
class Look:
    """What is seen of one image.

    Args:
        hash: A hash of its pixels, None if it cannot be decoded.
        problems: What is to be said about it.
        picture: The decoded image.
    """

    hash: int | None
    problems: list[Problem] = field(default_factory=list)
    picture: Image.Image | None = None


def look_at(image: StoredImage) -> Look:
    """Decode an image as in training.

    The hash is part of the SHA-256 of size and RGB pixels. The same picture has the same hash in
    another lossless format or with other metadata; a recompressed picture has a different hash.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's warnings about unusual files are not problems
        try:
            picture, notes = image.inspect()
        except ValueError as error:
            bomb = isinstance(error.__cause__, _TOO_LARGE)
            return Look(None, [("image_bomb" if bomb else "unreadable_image", str(error))])
    digest = hashlib.sha256(f"{picture.width}x{picture.height}".encode())
    digest.update(picture.tobytes())
    named = [(kind, f"image {shortened(image.name)} {text}") for kind, text in notes]
    return Look(int.from_bytes(digest.digest()[:8], "little"), named, picture)


def _pixels(picture: Image.Image) -> int:
    return picture.width * picture.height


_TOO_LARGE = (Image.DecompressionBombError, Image.DecompressionBombWarning)
_RECENT = 1 << 24  # pixels of the decoded images that are kept
