"""What a loaded model is asked and what it answers."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from PIL import Image

from dmole.data.decoding import AS_STORED, ImageOptions
from dmole.data.sample import IMAGE_PLACEHOLDER, EmbeddedImage, FileImage, ImageSource, Sample, Turn

if TYPE_CHECKING:
    from collections.abc import Mapping

ImageInput = str | Path | bytes | Image.Image
"""A path, the bytes of an image file, or an image of PIL."""

DEFAULT_TOKENS = 32
"""Maximum number of tokens of an answer, unless a request sets it."""

_STORABLE = ("1", "L", "LA", "I;16", "P", "RGB", "RGBA")
"""Modes of PIL that a PNG file keeps as they are."""


@dataclass(frozen=True)
class Request:
    """A conversation to continue.

    Args:
        turns: Alternating turns that end with the user's, optionally after a system turn; one
            placeholder ``<image>`` for each image.
        images: In the order of the placeholders.
        max_new_tokens: Maximum number of tokens of the answer.
        experts: Experts that answer, for instance ``("count",)``; none is the base model alone.
            None leaves the choice to the router.

    Raises:
        ValueError: If the turns or the number of tokens are not valid, or placeholders and images
            differ in number.
    """

    turns: tuple[Turn, ...]
    images: tuple[ImageSource, ...] = ()
    max_new_tokens: int = DEFAULT_TOKENS
    experts: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        """Refuse a conversation that no model can continue."""
        turns = [turn for turn in self.turns if turn.role != "system"]
        if any(turn.role == "system" for turn in self.turns[1:]):
            raise ValueError("a system turn must be the first turn")
        roles = ["user", "assistant"] * (len(turns) // 2) + ["user"]
        if [turn.role for turn in turns] != roles:
            raise ValueError("user and assistant must take turns, and the last turn is the user's")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")
        places = sum(turn.text.count(IMAGE_PLACEHOLDER) for turn in self.turns)
        if places != len(self.images):
            raise ValueError(
                f"{places} placeholders {IMAGE_PLACEHOLDER} for {len(self.images)} images"
            )

    def sample(self, name: str) -> Sample:
        """Return the request as a sample with an id."""
        return Sample(name, self.turns, self.images)


@dataclass(frozen=True)
class Answer:
    """The answer to a request.

    Args:
        text: The answer, stripped.
        experts: Experts that gave it, best first; none is the base model alone.
        losses: The router's loss of the request under each expert; empty if no loss decided.
        thresholds: The loss below which each of these experts accepts.
        prompt_tokens: Tokens of the prompt, image tokens included.
        new_tokens: Tokens of the answer, with the token that ends it.
        finish_reason: ``stop`` if the model ended the answer, ``length`` at the maximum number of
            tokens, ``cancelled`` if the caller did.
    """

    text: str
    experts: tuple[str, ...]
    losses: Mapping[str, float] = field(default_factory=dict)
    thresholds: Mapping[str, float] = field(default_factory=dict)
    prompt_tokens: int = 0
    new_tokens: int = 0
    finish_reason: Literal["stop", "length", "cancelled"] = "stop"


@dataclass(frozen=True)
class Route:
    """The router's choice for a request.

    Args:
        experts: Chosen experts, best first; none is the base model alone.
        losses: Loss of the request under each expert; empty if the router compares no losses.
        thresholds: The loss below which each of these experts accepts a request.
        weights: Weight of each chosen expert; empty if all are 1.
    """

    experts: tuple[str, ...]
    losses: Mapping[str, float] = field(default_factory=dict)
    thresholds: Mapping[str, float] = field(default_factory=dict)
    weights: tuple[float, ...] = ()


def with_common(experts: Sequence[str], common: str | None) -> tuple[str, ...]:
    """Return named experts with the one that all tasks share, beside which they were trained.

    Args:
        experts: Names; none is the base model alone, which stays alone.
        common: The expert that all tasks share, if there is one.

    Raises:
        ValueError: If it alone is named.

    Example:
        >>> with_common(["paint"], "common"), with_common([], "common"), with_common(["a"], None)
        (('paint', 'common'), (), ('a',))
    """
    if list(experts) == [common]:
        raise ValueError(f"expert {common!r} answers only together with the expert of a task")
    missing = bool(experts) and common is not None and common not in experts
    return (*experts, str(common)) if missing else tuple(experts)


def make_request(
    prompt: str,
    images: ImageInput | Sequence[ImageInput] | None = None,
    *,
    max_new_tokens: int = DEFAULT_TOKENS,
    experts: Sequence[str] | None = None,
    options: ImageOptions = AS_STORED,
) -> Request:
    r"""Return the request for a prompt about some images.

    Args:
        prompt: The question. Images without a placeholder ``<image>`` come before it.
        images: One image or several; see `ImageInput`.
        max_new_tokens: Maximum number of tokens of the answer.
        experts: See :class:`Request`.
        options: How the images become RGB pictures.

    Raises:
        ValueError: If the prompt has some placeholders, but not one for each image.

    Example:
        >>> make_request("how many?", "star.png").turns[0].text
        '<image>\nhow many?'
    """
    if images is None:
        images = ()
    elif isinstance(images, ImageInput):
        images = (images,)
    sources = tuple(image_source(image, options) for image in images)
    if IMAGE_PLACEHOLDER not in prompt:
        prompt = f"{IMAGE_PLACEHOLDER}\n" * len(sources) + prompt
    chosen = None if experts is None else tuple(experts)
    return Request((Turn("user", prompt),), sources, max_new_tokens, chosen)


def image_source(image: ImageInput, options: ImageOptions = AS_STORED) -> ImageSource:
    """Return an image that is decoded when it is needed.

    Raises:
        TypeError: If it is neither a path nor bytes nor an image of PIL.
    """
    if isinstance(image, (str, Path)):
        return FileImage(Path(image), options)
    if isinstance(image, Image.Image):
        buffer = io.BytesIO()
        (image if image.mode in _STORABLE else image.convert("RGB")).save(buffer, "PNG")
        image = buffer.getvalue()
    if not isinstance(image, bytes):
        raise TypeError(
            f"an image must be a path, bytes or a PIL image, got {type(image).__name__}"
        )
    content = image
    return EmbeddedImage("in memory", len(content), lambda: content, options)
