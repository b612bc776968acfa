"""The unit of data: a conversation about images."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from PIL import Image

from dmole.data.decoding import (
    AS_STORED,
    ImageOptions,
    decode_bytes,
    decode_image,
    inspect_image,
)
from dmole.data.image_notes import Note

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

IMAGE_PLACEHOLDER = "<image>"
"""Marks the position of an image in a turn's text. A sample has one placeholder per image."""


class ImageSource(Protocol):
    """Loads an RGB image on demand."""

    def load(self) -> Image.Image:
        """Return the image in mode RGB."""
        ...


@dataclass(frozen=True)
class ArrayImage:
    """An image in memory.

    Args:
        array: Pixels of shape ``(height, width, 3)``, dtype uint8.
    """

    array: npt.NDArray[np.uint8]

    def load(self) -> Image.Image:
        """Return the image in mode RGB."""
        return Image.fromarray(self.array, mode=None)


@dataclass(frozen=True)
class FileImage:
    """An image read from disk each time it is needed.

    Args:
        path: Path of the image file.
        options: Treatment of transparency and orientation.
    """

    path: Path
    options: ImageOptions = AS_STORED

    def load(self) -> Image.Image:
        """Return the image in mode RGB; see :func:`~dmole.data.decoding.decode_image`.

        Raises:
            ValueError: If the file is missing, damaged, too large or not an image; the message
                names it.
        """
        return decode_image(self.path, self.options)

    def inspect(self) -> tuple[Image.Image, list[Note]]:
        """Return the image as `load` does, and what it does not show of the file.

        Raises:
            ValueError: As `load` does.
        """
        return inspect_image(self.path, str(self.path), self.options)

    @property
    def name(self) -> str:
        """The path, which identifies the image."""
        return str(self.path)

    @property
    def stored_size(self) -> int:
        """Bytes of the file."""
        return os.stat(self.path).st_size


@dataclass(frozen=True)
class EmbeddedImage:
    """An image whose encoded bytes are in a data file: a row, a member of a tar file, a data URI.

    Args:
        name: Identifies the image in messages and comparisons.
        stored_size: Number of encoded bytes.
        read: Returns the bytes; called each time the image is loaded.
        options: Treatment of transparency and orientation.
    """

    name: str
    stored_size: int
    read: Callable[[], bytes] = field(compare=False, repr=False)
    options: ImageOptions = AS_STORED

    def load(self) -> Image.Image:
        """Return the image in mode RGB; see :func:`~dmole.data.decoding.decode_bytes`.

        Raises:
            ValueError: If the bytes are damaged, too large or not an image; the message names the
                image.
        """
        return decode_bytes(self.read(), self.name, self.options)

    def inspect(self) -> tuple[Image.Image, list[Note]]:
        """Return the image as `load` does, and what it does not show of the bytes.

        Raises:
            ValueError: As `load` does.
        """
        return inspect_image(self.read(), self.name, self.options)


StoredImage = FileImage | EmbeddedImage
"""An image stored on disk, with a ``name`` and a ``stored_size`` in bytes."""


@dataclass(frozen=True)
class Turn:
    """One utterance of a conversation."""

    role: Literal["system", "user", "assistant"]
    text: str


@dataclass(frozen=True)
class Sample:
    """A conversation, its images and, for evaluation, the accepted answers.

    Args:
        id: Unique within the task and split.
        turns: Alternating turns, user first, optionally after a system turn. Training samples end
            with an assistant turn; test samples end with the user turn to be answered.
        images: In the order of the placeholders in the text.
        references: Accepted answers (test samples only).
        metadata: Further facts that a metric may need, such as the image size or the choices
            (test samples only). They do not take part in comparisons.
    """

    id: str
    turns: tuple[Turn, ...]
    images: tuple[ImageSource, ...] = ()
    references: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @property
    def prompt(self) -> str:
        """The text of the last user turn without image placeholders."""
        text = next(turn.text for turn in reversed(self.turns) if turn.role == "user")
        return text.replace(IMAGE_PLACEHOLDER, "").strip()
