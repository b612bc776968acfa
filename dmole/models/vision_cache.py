"""Keeps the output of the vision encoder by image, where it depends on nothing else.

A batch is put together from kept images if all of them are known, and is computed whole otherwise.
A kept row was computed beside other images, so a batch that is put together equals the computed one
up to rounding.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from dmole.data.image_store import CacheNames, Entry, ImageCache, ImageStore
from dmole.experts.library import modules_without_experts
from dmole.models.vision_output import OutputLayout, UnsplitError
from dmole.storage.tensors import DigestCache, tensor_digest

_VERSIONS = (1, transformers.__version__, torch.__version__)
_GRID = "grid_thw"  # of packed patches: (images, 3)
_NAMES = CacheNames(
    *("model.cache_vision", "model.cache_vision_bytes", "model.cache_vision_folder"),
    *("vision", "no further outputs of the vision encoder are kept in"),
)


def vision_store(kind: str | bool, limit: int, folder: str | None) -> ImageStore | None:
    """Return where outputs of the vision encoder are kept; None if they are not.

    Args:
        kind: ``off``, which YAML reads as false, ``ram`` or ``disk``.
        limit: Number of bytes that are kept.
        folder: The folder for ``disk``; None takes ``vision`` in the cache folder.

    Raises:
        ValueError: If the kind is another one, the limit is not positive, or the folder cannot be
            made.
    """
    return ImageCache(kind, limit, folder, _NAMES).open()


class VisionCache:
    """Runs a vision encoder, or puts its output together from kept images.

    An entry depends on the rows of one image (an image, a tile, or its packed patches; for Mllama
    all images of a sample), the weights and the config of the encoder, its other arguments, and
    the precision. The first pass of each kind is always computed. The first one of several images
    is compared with that of its first image alone.

    Args:
        encoder: The vision encoder.
        config: The config of the whole model.
        store: Keeps the entries.
    """

    def __init__(self, encoder: nn.Module, config: Any, store: ImageStore) -> None:
        self._encoder = encoder
        self._store = store
        layers = getattr(config, "vision_feature_layer", None)
        self._layers = [layers] if isinstance(layers, int) else layers
        attention = str(getattr(config.vision_config, "_attn_implementation", None))
        self._config = [config.vision_config.to_dict(), attention]
        self._digests = DigestCache(tensor_digest)
        self._layouts: dict[tuple[str, torch.device], OutputLayout] = {}
        self._compared: set[tuple[str, torch.device]] = set()

    def __call__(
        self,
        compute: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        cast: torch.dtype | None,
    ) -> Any:
        """Return the output of the encoder.

        Args:
            compute: The encoder's own ``forward``; experts and dropout must have no effect on it.
            args: Its positional arguments.
            kwargs: Its named arguments.
            cast: Type of autocast; None without it.

        Raises:
            ValueError: If inputs or outputs cannot be split by image.
        """
        try:
            return self._found_or_computed(compute, _Images.of(args, kwargs), cast)
        except UnsplitError as error:
            name = type(self._encoder).__name__
            raise ValueError(f"model.cache_vision must be off for {name}: {error}") from error

    def _found_or_computed(
        self, compute: Callable[..., Any], images: _Images, cast: torch.dtype | None
    ) -> Any:
        text = self._kind(images, cast)
        kind = text, images.device
        keys = images.digests(text)
        entries = {key: self._store.get(key) for key in keys}
        layout = self._layouts.get(kind)
        several = len(keys) > 1
        if layout is not None and (kind in self._compared or not several):
            found = [entry for key in keys if layout.fits(entry := entries[key])]
            if len(found) == len(keys):
                return layout.join(found)
        output = compute(*images.args, **images.kwargs)
        layout, tensors = OutputLayout.of(output, self._layers)
        parts = layout.split(tensors, images.sizes)
        if several and kind not in self._compared:
            alone = images.first()
            _, other = OutputLayout.of(compute(*alone.args, **alone.kwargs), self._layers)
            layout.compare(parts[0], other, cast)
            self._compared.add(kind)
        self._layouts[kind] = layout
        self._keep({k: p for k, p in zip(keys, parts, strict=True) if entries[k] is None})
        return output

    def _keep(self, parts: Mapping[str, Entry]) -> None:
        with torch.inference_mode(mode=False):  # a later pass may need gradients
            for key, part in parts.items():
                copies = {n: t.detach().to("cpu", copy=True) for n, t in part.items()}
                self._store.put(key, copies)

    def _kind(self, images: _Images, cast: torch.dtype | None) -> str:
        """Return all that an entry depends on, except its image."""
        tensors: list[Tensor] = []
        for module in modules_without_experts(self._encoder):
            tensors += [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        weights = self._digests.of("", {str(i): tensor for i, tensor in enumerate(tensors)})
        precision = (str(cast), torch.get_float32_matmul_precision(), images.device.type)
        facts = (*_VERSIONS, weights, self._config, precision, images.options)
        return json.dumps(facts, sort_keys=True, default=str)


@dataclass(frozen=True)
class _Images:
    """The arguments of a pass.

    Args:
        values: All arguments, by position or name.
        tensors: How many rows of each tensor belong to each image.
        sizes: Rows of each image.
    """

    values: Mapping[int | str, Any]
    tensors: Mapping[int | str, Sequence[int]]
    sizes: Sequence[int]

    @classmethod
    def of(cls, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> _Images:
        """Find the rows of each image.

        Raises:
            UnsplitError: If a tensor has another number of rows.
        """
        values: dict[int | str, Any] = dict(enumerate(args))
        values.update(kwargs.items())
        tensors = {key: value for key, value in values.items() if isinstance(value, Tensor)}
        rows = next((len(value) for key, value in tensors.items() if key != _GRID), 0)
        grid = tensors.get(_GRID)
        sizes = [1] * rows if grid is None else grid.prod(-1).tolist()
        counts: dict[int | str, Sequence[int]] = {}
        for key, value in tensors.items():
            if len(value) != rows and (grid is None or len(value) != len(grid)):
                shape = tuple(value.shape)
                raise UnsplitError(f"its argument {key} {shape} has no entry for each image")
            counts[key] = sizes if len(value) == rows else [1] * len(value)
        if not rows or sum(sizes) != rows:
            raise UnsplitError(f"its {rows} rows of pixels cannot be assigned to images")
        return cls(values, counts, sizes)

    @property
    def args(self) -> list[Any]:
        """Positional arguments."""
        return [value for key, value in self.values.items() if isinstance(key, int)]

    @property
    def kwargs(self) -> dict[str, Any]:
        """Named arguments."""
        return {key: value for key, value in self.values.items() if isinstance(key, str)}

    @property
    def options(self) -> list[tuple[str, str]]:
        """The arguments that are no tensors, as texts; those that are None have no effect."""
        others = (item for item in self.values.items() if item[0] not in self.tensors)
        return sorted(
            (str(key), repr(value))
            for key, value in others
            if value is not None and key not in WITHOUT_EFFECT
        )

    @property
    def device(self) -> torch.device:
        """Device of the pixels."""
        device: torch.device = self.values[next(iter(self.tensors))].device
        return device

    def first(self) -> _Images:
        """Return the arguments of the first image alone."""
        counts = {key: numbers[:1] for key, numbers in self.tensors.items()}
        values: dict[int | str, Any] = dict(self.values)
        for key, (number,) in counts.items():
            values[key] = values[key][:number]
        return _Images(values, counts, self.sizes[:1])

    def digests(self, kind: str) -> list[str]:
        """Return a digest of the rows of each image, and of what else an entry depends on."""
        start = hashlib.blake2b(kind.encode(), digest_size=20)
        digests = [start.copy() for _ in self.sizes]
        for key, counts in self.tensors.items():
            parts = self.values[key].detach().cpu().split(list(counts))
            for digest, part in zip(digests, parts, strict=True):
                digest.update(f"\n{key} {part.dtype} {tuple(part.shape)}\n".encode())
                digest.update(part.contiguous().reshape(-1).view(torch.uint8).numpy())
        return [digest.hexdigest() for digest in digests]


WITHOUT_EFFECT = ("use_cache",)
"""Arguments that some families hand on to the vision encoder, which has no cache."""
