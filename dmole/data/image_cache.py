"""Keeps what the image processor makes of the images of a sample.

An entry depends on the bytes of the images, the image options, the settings of the image processor
and the versions of the packages, not on the other samples of a batch. The entries of a batch are
put together as the image processor does it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import PIL
import torch
import transformers
from PIL import Image
from torch import Tensor

from dmole.data.decoding import decode_bytes, read_image
from dmole.data.image_store import Entry, ImageStore
from dmole.data.sample import EmbeddedImage, FileImage, ImageSource

_VERSIONS = (1, transformers.__version__, PIL.__version__, torch.__version__)


class UnreadableImageError(ValueError):
    """An image that cannot be read."""


class Undecoded(Image.Image):
    """Stands for an image that is decoded only if no entry of it is kept.

    Args:
        source: The image.
    """

    def __init__(self, source: ImageSource) -> None:
        super().__init__()
        self.source = source


class CachedImageProcessor:
    """An image processor that processes the images of a sample once.

    Args:
        processor: The image processor of transformers.
        store: Keeps the entries.
        by_sample: Whether the tensors have one row a sample, padded to the most images or tiles,
            instead of one an image, tile or patch.
    """

    def __init__(self, processor: Any, store: ImageStore, *, by_sample: bool) -> None:
        self._processor = processor
        self._store = store
        self._by_sample = by_sample
        kind = type(processor)
        settings = (f"{kind.__module__}.{kind.__qualname__}", processor.to_dict(), *_VERSIONS)
        self._settings = json.dumps(settings, sort_keys=True, default=str)

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the image processor."""
        if name.startswith("__") or "_processor" not in self.__dict__:  # while it is copied
            raise AttributeError(name)
        return getattr(self._processor, name)

    def __call__(self, images: Sequence[Sequence[Image.Image]], **options: Any) -> Any:
        """Return what the image processor returns for the images of a batch.

        Args:
            images: `Undecoded` images of each sample.
            options: Arguments of the image processor.

        Raises:
            UnreadableImageError: If an image cannot be read.
        """
        entries = [self._entry(sample, options) if sample else None for sample in images]
        return transformers.BatchFeature(combine(entries, by_sample=self._by_sample))

    def _entry(self, images: Sequence[Any], options: dict[str, Any]) -> Entry:
        digest = hashlib.blake2b(self._settings.encode(), digest_size=20)
        digest.update(json.dumps(options, sort_keys=True, default=str).encode())
        try:
            decoders = [_read(image.source, digest) for image in images]
            key = digest.hexdigest()
            entry = self._store.get(key)
            pictures = [] if entry is not None else [decode() for decode in decoders]
        except ValueError as error:
            raise UnreadableImageError(str(error)) from error
        if entry is None:
            entry = dict(self._processor([pictures], **options))
            self._store.put(key, entry)
        return entry


def _read(source: ImageSource, digest: Any) -> Callable[[], Image.Image]:
    """Add the content of an image to a digest; return what decodes that content."""
    if isinstance(source, FileImage | EmbeddedImage):
        content = read_image(source.path) if isinstance(source, FileImage) else source.read()
        digest.update(f"\n{len(content)} {json.dumps(asdict(source.options))}\n".encode())
        digest.update(content)
        return partial(decode_bytes, content, source.name, source.options)
    picture = source.load()
    digest.update(f"\n{picture.mode} {picture.size}\n".encode())
    digest.update(picture.tobytes())
    return lambda: picture


def combine(entries: Sequence[Entry | None], *, by_sample: bool) -> dict[str, Any]:
    """Return the entries of the samples of a batch as one.

    Args:
        entries: Entry of each sample; None for one without images.
        by_sample: See `CachedImageProcessor`.
    """
    first = next(entry for entry in entries if entry is not None)
    joined = {}
    for key in first:
        parts = [None if entry is None else entry[key] for entry in entries]
        joined[key] = _joined(key, parts, by_sample)
    return joined


def _joined(key: str, parts: Sequence[Any], by_sample: bool) -> Any:
    present = [part for part in parts if part is not None]
    if not isinstance(present[0], Tensor):  # one element a sample or an image
        blank: list[Any] = [[]] if by_sample else []
        return [element for part in parts for element in (blank if part is None else part)]
    # tiles of an image are padded: (images, tiles, channels, height, width)
    if not by_sample and present[0].ndim < 5:
        return torch.cat(present)
    rows = [int(by_sample) if part is None else len(part) for part in parts]
    sizes = [max(sizes) for sizes in zip(*(part.shape[1:] for part in present), strict=True)]
    joined = present[0].new_zeros(sum(rows), *sizes)
    if key == "aspect_ratio_mask":
        joined[..., 0] = 1  # an image of padding has one tile in Mllama
    start = 0
    for part, count in zip(parts, rows, strict=True):
        if part is not None:
            place = (slice(start, start + count), *map(slice, part.shape[1:]))
            joined[place] = part
        start += count
    return joined
