"""Examines the images of a file: each is decoded once and identified by a hash of its pixels."""

from __future__ import annotations

import hashlib
import warnings
from array import array
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from dmole.data.leakage import question_turns, stable_hash
from dmole.data.sample import StoredImage
from dmole.doctor.findings import Findings
from dmole.doctor.source import CheckedSource, Tick, TolerantReader

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
    """Hashes of images, each decoded once.

    Args:
        decode: Whether to decode; otherwise an image is identified by its path.
    """

    def __init__(self, *, decode: bool) -> None:
        self._decode = decode
        # keyed by the hash of the path: a number instead of a text saves most of the memory
        self._hashes: dict[int, int] = {}
        self._problems: dict[int, Problem] = {}

    @property
    def paths(self) -> set[int]:
        """Hashes of the paths of the files."""
        return self._hashes.keys() | self._problems.keys()

    def look(self, image: StoredImage) -> tuple[int | None, Problem | None]:
        """Return the hash of an image, None if it cannot be decoded, and the problem if any."""
        key = stable_hash(image.name)
        if key not in self._hashes and key not in self._problems:
            value, problem = picture_hash(image) if self._decode else (key, None)
            if value is not None:
                self._hashes[key] = value
            if problem is not None:
                self._problems[key] = problem
        return self._hashes.get(key), self._problems.get(key)


def examine_images(
    source: CheckedSource,
    limit: int,
    part: tuple[int, int],
    decode: bool,
    *,
    tick: Tick | None = None,
) -> ImageReport:
    """Examine the images of a part of a file.

    Items that name the same images are in the same part.

    Args:
        source: The file.
        limit: Maximum number of findings stored per kind.
        part: Number of the part, from 0, and the number of parts.
        decode: Whether to decode the images; otherwise they are identified by their paths.
        tick: Progress callback.
    """
    report = ImageReport(source, Findings(limit))
    # a suffix follows each question of a training sample, but only the last of a test sample
    reader = TolerantReader(source.without_suffix())
    album = Album(decode=decode)
    number, parts = part
    for index, item in source.valid_items(tick):
        if stable_hash(repr(item.get("image") or item.get("images") or index)) % parts == number:
            _examine_item(report, reader, album, item, index)
    report.paths.extend(album.paths)
    return report


def _examine_item(
    report: ImageReport, reader: TolerantReader, album: Album, item: dict[str, Any], index: int
) -> None:
    source, pictures = report.source, list[int | None]()
    examined = reader.examine(item, index)
    for image in reader.images(examined.names):
        # a missing image has no hash; the pass over the texts reports it
        value, problem = (None, None) if isinstance(image, tuple) else album.look(image)
        pictures.append(value)
        if problem is not None:
            report.findings.add(source.finding(*problem, index, source.id_of(item, index)))
        if value is not None:
            report.owners.append(index)
            report.pictures.append(value)
    if None in pictures or examined.sample is None:
        return
    report.askers.append(index)
    report.questions.append(stable_hash(repr(pictures), *question_turns(examined.sample)))


def picture_hash(image: StoredImage) -> tuple[int | None, Problem | None]:
    """Decode an image as in training and return a hash of its pixels and the problem, if any.

    The hash is part of the SHA-256 of size and RGB pixels. The same picture has the same hash in
    another lossless format or with other metadata; a recompressed picture has a different hash.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's warnings about unusual files are not problems
        try:
            picture = image.load()
        except ValueError as error:
            bomb = isinstance(error.__cause__, _TOO_LARGE)
            return None, ("image_bomb" if bomb else "unreadable_image", str(error))
    digest = hashlib.sha256(f"{picture.width}x{picture.height}".encode())
    digest.update(picture.tobytes())
    return int.from_bytes(digest.digest()[:8], "little"), None


_TOO_LARGE = (Image.DecompressionBombError, Image.DecompressionBombWarning)
