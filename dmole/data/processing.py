"""Applies an image-text processor to samples, with or without a cache of processed images."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dmole.data.image_cache import CachedImageProcessor, Undecoded, UnreadableImageError
from dmole.data.image_store import ImageStore, MemoryStore
from dmole.data.rendering import ChatRenderer, Rendered
from dmole.data.sample import IMAGE_PLACEHOLDER, ArrayImage, ImageSource, Sample, Turn
from dmole.messages import one_line

_SIZES = ((40, 60), (160, 50), (130, 120), (40, 60))
_Images = tuple[tuple[int, ...], ...]
_ONE: _Images = ((0,), (2,), (3,))
_MANY: _Images = ((0,), (1, 2), ())
_FEW: _Images = ((1,), (), (0,))
"""Batches by which a cache is checked: the images of each sample, by their place in `_SIZES`.

The last one is for models that take one image a sample.
"""


class Processing:
    """Makes the tensors of a batch from rendered samples.

    With a cache, batches of images of several sizes and of samples without images are processed
    with and without it first.

    Args:
        processor: A processor of transformers.
        renderer: Renders the samples.
        images: Keeps processed images; None processes an image each time.

    Raises:
        ValueError: If a batch differs with the cache; names the image processor.
    """

    def __init__(self, processor: Any, renderer: ChatRenderer, images: ImageStore | None) -> None:
        self._renderer = renderer
        self._processor = processor
        self._open: Callable[[ImageSource], Image.Image] = _load
        if images is not None:
            by_sample = self._layout(processor)
            self._processor, self._open = _with_cache(processor, images, by_sample), Undecoded

    def __call__(
        self, samples: Sequence[Sample], rendered: Sequence[Rendered], *, generation: bool
    ) -> dict[str, Tensor]:
        """Return the output of the processor, with ``offset_mapping``.

        Args:
            samples: The samples.
            rendered: Their texts.
            generation: Whether texts are padded on the left.

        Raises:
            ValueError: If an image cannot be read, or the processor refuses the batch.
        """
        images = [[self._open(source) for source in sample.images] for sample in samples]
        texts = [conversation.text for conversation in rendered]
        try:
            output = self._processor(
                images=images if any(images) else None,
                text=texts,
                return_tensors="pt",
                padding=True,
                padding_side="left" if generation else "right",
                add_special_tokens=lacks_bos(self._processor.tokenizer, texts),
                return_offsets_mapping=True,
            )
        except UnreadableImageError:
            raise
        except Exception as error:  # each family raises its own types
            raise ValueError(f"the processor refuses it: {one_line(error)}") from error
        return dict(output)

    def _layout(self, processor: Any) -> bool:
        """Return whether image tensors have one row a sample; check that a cache is exact."""
        plain = {batch: self._checked(batch) for batch in (_ONE, _MANY)}
        if plain[_MANY] is None:
            plain[_FEW] = self._checked(_FEW)
        self._open, store = Undecoded, MemoryStore(2**33)
        for by_sample in (False, True) if plain[_ONE] is not None else ():
            self._processor = _with_cache(processor, store, by_sample)
            if all(_same(result, self._checked(batch)) for batch, result in plain.items()):
                return by_sample
        raise ValueError(
            f"data.cache_images must be off for {type(processor.image_processor).__name__}: "
            "a batch put together from single samples is not the one that it makes"
        )

    def _checked(self, batch: Sequence[Sequence[int]]) -> dict[str, Tensor] | None:
        """Return the result for a batch of the check, None if it is refused."""
        samples = [_sample(images) for images in batch]
        try:
            rendered = [self._renderer.render(sample, generation=True) for sample in samples]
            return self(samples, rendered, generation=True)
        except ValueError:  # a model may take no sample without an image
            return None


def lacks_bos(tokenizer: Any, texts: Sequence[str]) -> bool:
    """Return whether the tokenizer adds its special tokens to texts; never a second BOS."""
    bos = tokenizer.bos_token
    return not (bos and texts[0].startswith(bos))


def _load(source: ImageSource) -> Image.Image:
    return source.load()


def _sample(images: Sequence[int]) -> Sample:
    text = f"{IMAGE_PLACEHOLDER}\n" * len(images) + "what?"
    pictures = []
    for seed in images:
        noise = np.random.default_rng(seed).integers(0, 256, (*_SIZES[seed], 3), dtype=np.uint8)
        pictures.append(ArrayImage(noise))
    return Sample("check", (Turn("user", text),), tuple(pictures))


def _with_cache(processor: Any, store: ImageStore, by_sample: bool) -> Any:
    changed = copy.copy(processor)
    images = CachedImageProcessor(processor.image_processor, store, by_sample=by_sample)
    changed.image_processor = images
    return changed


def _same(one: dict[str, Tensor] | None, other: dict[str, Tensor] | None) -> bool:
    if one is None or other is None:
        return one is other
    if list(one) != list(other):
        return False
    return all(
        value.dtype == other[key].dtype and torch.equal(value, other[key])
        for key, value in one.items()
    )
