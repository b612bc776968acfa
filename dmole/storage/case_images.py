"""Small images of chosen test samples in a run folder: ``case_images.jsonl``.

A report shows them beside the answers, without the data of the run. One line for each sample holds
its task, its id and its images as JPEG in base64, an empty list where it has none.
"""

from __future__ import annotations

import base64
import binascii
import heapq
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from PIL import Image

from dmole.messages import excerpt
from dmole.storage.records import read_records

FILE = "case_images.jsonl"
"""Name of the file in a run folder."""

LONGEST_SIDE = 160
"""Pixels of the longest side of an image."""

MOST_IMAGES = 4
"""Images of a sample that are kept, from the first on."""

_QUALITY = 80
_LIMIT = 64 << 20  # bytes of the file
_LARGEST = 64 << 10  # characters of an image; a picture of noise has about 25,000
_BEGIN, _END = b"\xff\xd8\xff", b"\xff\xd9"  # of a JPEG file


@dataclass(frozen=True)
class Case:
    """The images of a test sample.

    Args:
        task: Name of the task.
        id: Id of the sample, unique within the task.
        images: JPEG files in base64, in the order of the sample.
    """

    task: str
    id: str
    images: tuple[str, ...]

    def line(self) -> dict[str, Any]:
        """Return the line of the file, in plain values."""
        return {"task": self.task, "id": self.id, "images": list(self.images)}


def chosen(task: str, ids: Iterable[str], count: int) -> list[int]:
    """Return the positions of the samples of a task that are shown, in ascending order.

    The choice depends on task and ids alone: runs on the same data choose the same samples.

    Args:
        task: Name of the task.
        ids: Ids of its test samples.
        count: Maximum number of samples.

    Example:
        >>> chosen("count", ["a", "b", "c", "d"], 2) == chosen("count", ["a", "b", "c", "d"], 2)
        True
        >>> chosen("count", ["a", "b"], 24)
        [0, 1]
    """
    ranked = ((_rank(task, name), index) for index, name in enumerate(ids))
    return sorted(index for _, index in heapq.nsmallest(count, ranked))


def encode_image(picture: Image.Image) -> str:
    """Return an RGB image as a small JPEG in base64; equal pixels give equal texts."""
    small = picture.copy()
    small.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=_QUALITY)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def read_case_images(run: Path) -> dict[str, dict[str, Case]]:
    """Return the images in a run folder by task and id of the sample.

    Args:
        run: The run folder.

    Returns:
        Empty if the run has no such file.

    Raises:
        ValueError: If the file cannot be read, or a line is not that of a sample with small
            JPEG images; names file and line.
    """
    path = run / FILE
    if not path.exists():
        return {}
    found: dict[str, dict[str, Case]] = {}
    records = read_records(path, "case images", _LIMIT)
    for index, entry in enumerate(records.entries(lambda each: True) or []):
        case = _case(entry, records.where(index))
        found.setdefault(case.task, {})[case.id] = case
    return found


def _case(entry: Any, where: str) -> Case:
    if not isinstance(entry, Mapping):
        raise ValueError(f"{where} is not an object")
    task, name, images = (entry.get(key) for key in ("task", "id", "images"))
    if not isinstance(task, str) or not isinstance(name, str) or not isinstance(images, list):
        raise ValueError(f"{where}: expected a task, an id and a list of images")
    if len(images) > MOST_IMAGES:
        raise ValueError(f"{where}: a sample has at most {MOST_IMAGES} images")
    for image in images:
        if not _is_jpeg(image):
            raise ValueError(f"{where}: {excerpt(image, 30)} is not a small JPEG in base64")
    return Case(task, name, tuple(images))


def _is_jpeg(image: object) -> bool:
    if not isinstance(image, str) or len(image) > _LARGEST:
        return False
    try:
        content = base64.b64decode(image.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        return False
    return content.startswith(_BEGIN) and content.endswith(_END)


def _rank(task: str, name: str) -> bytes:
    text = f"{task}/{name}".encode("utf-8", "surrogatepass")
    return blake2b(text, digest_size=8).digest()
