"""Tells whether stored images may have changed since they were last read."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable

from dmole.data.sample import FileImage, StoredImage


def image_state(images: Iterable[StoredImage]) -> str:
    """Return a SHA-256 of the times at which image files were last written.

    A picture without compression keeps its size when its pixels change. An image in a data URI
    enters with its content, one in another data file not at all.

    Args:
        images: The images, in a fixed order.
    """
    digest = hashlib.sha256()
    for image in images:
        digest.update(f"{_state(image)}\n".encode())
    return digest.hexdigest()


def _state(image: StoredImage) -> str:
    if not isinstance(image, FileImage):
        return image.name if image.name.startswith("data:") else ""
    try:
        return str(os.stat(image.path).st_mtime_ns)
    except OSError:  # whoever reads it reports it
        return "missing"
