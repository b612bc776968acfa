"""Splits the output of a vision encoder by image, and joins it again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor

from dmole.data.image_store import Entry
from dmole.transfer import to_device

_TOLERANCE = 0.01  # relative; rounding of another batch composition stays far below it


class UnsplitError(ValueError):
    """A pass of the vision encoder that cannot be split by image."""


@dataclass(frozen=True)
class OutputLayout:
    """The form of an output, with a number in place of each tensor.

    Args:
        build: Makes an output from its tensors.
        names: Place of each tensor in the output, for messages.
        devices: Device of each tensor.
        orders: Axes of each tensor from the slowest to the fastest in memory, on which the kernels
            that read it depend.
    """

    build: Callable[[Sequence[Tensor]], Any]
    names: Sequence[str]
    devices: Sequence[torch.device]
    orders: Sequence[tuple[int, ...]]

    @classmethod
    def of(cls, output: Any, layers: Sequence[int] | None) -> tuple[OutputLayout, list[Tensor]]:
        """Return the layout of an output, and its tensors.

        Args:
            output: Tensors, in tuples, lists and outputs of transformers.
            layers: Indices of the only hidden states that the model reads; None keeps all. The
                others are None in an output that is built.

        Raises:
            UnsplitError: If it holds something else.
        """
        found: dict[str, Tensor] = {}
        build = _builder(output, "output", found, layers)
        tensors = list(found.values())
        devices = [tensor.device for tensor in tensors]
        return cls(build, list(found), devices, [_order(tensor) for tensor in tensors]), tensors

    def split(self, tensors: Sequence[Tensor], sizes: Sequence[int]) -> list[dict[str, Tensor]]:
        """Return the tensors of each image by number, as views.

        Args:
            tensors: The tensors of an output.
            sizes: Rows of pixels of each image.

        Raises:
            UnsplitError: If the first axis of a tensor is not that of the rows, nor of equal
                groups of rows.
        """
        rows = sum(sizes)
        parts: list[dict[str, Tensor]] = [{} for _ in sizes]
        for number, (name, tensor) in enumerate(zip(self.names, tensors, strict=True)):
            length = len(tensor) if tensor.ndim else 0
            if not length or any(size * length % rows for size in sizes):
                shape = tuple(tensor.shape)
                raise UnsplitError(f"its {name} {shape} cannot be split by image")
            pieces = torch.split(tensor, [size * length // rows for size in sizes])
            for part, piece in zip(parts, pieces, strict=True):
                part[str(number)] = piece
        return parts

    def fits(self, entry: Entry | None) -> TypeGuard[Entry]:
        """Return whether an entry has the tensors of this layout."""
        return entry is not None and set(entry) == set(map(str, range(len(self.names))))

    def join(self, entries: Sequence[Entry]) -> Any:
        """Return the output for images from their entries, in new tensors."""
        joined = []
        places = zip(self.devices, self.orders, strict=True)
        for number, (device, order) in enumerate(places):
            whole = to_device(torch.cat([entry[str(number)] for entry in entries]), device)
            inverse = [order.index(axis) for axis in range(len(order))]
            joined.append(whole.permute(order).contiguous().permute(inverse))
        return self.build(joined)

    def compare(
        self, part: Mapping[str, Tensor], alone: Sequence[Tensor], cast: torch.dtype | None
    ) -> None:
        """Check that an image has the same output alone as beside others.

        Args:
            part: Its part of the output of a batch.
            alone: The tensors of its own output.
            cast: Type of autocast; None without it.

        Raises:
            UnsplitError: If they differ by more than rounding.
        """
        for name, one, other in zip(self.names, part.values(), alone, strict=True):
            kind = cast or one.dtype
            rounding = torch.finfo(kind).eps ** 0.5 if kind.is_floating_point else 0.0
            same = one.shape == other.shape
            if not same or _difference(one, other) > max(_TOLERANCE, rounding):
                raise UnsplitError(f"its {name} for an image depends on the other images")


def _order(tensor: Tensor) -> tuple[int, ...]:
    """Return the axes of a tensor from the slowest to the fastest in memory."""
    strides = tensor.stride()
    return tuple(sorted(range(tensor.ndim), key=lambda axis: -strides[axis]))


def _difference(one: Tensor, other: Tensor) -> float:
    """Return the relative difference of two tensors; NaN if they are not finite."""
    first, second = one.float(), other.float()
    return float((first - second).norm() / second.norm().clamp_min(1e-30))


def _builder(
    value: Any, name: str, found: dict[str, Tensor], layers: Sequence[int] | None
) -> Callable[[Sequence[Tensor]], Any]:
    """Add the tensors of a value to those found; return what makes the value of others.

    Raises:
        UnsplitError: If it holds anything but tensors and None.
    """
    if value is None:
        return lambda tensors: None
    if isinstance(value, Tensor):
        number = len(found)
        found[name] = value
        return lambda tensors: tensors[number]
    kind = type(value)
    if isinstance(value, Mapping):
        fields = {
            key: _builder(_read(key, each, layers), f"{name}.{key}", found, None)
            for key, each in value.items()
        }
        return lambda tensors: kind(**{key: build(tensors) for key, build in fields.items()})
    if kind in (tuple, list):
        items = [_builder(each, f"{name}.{i}", found, None) for i, each in enumerate(value)]
        return lambda tensors: kind(build(tensors) for build in items)
    raise UnsplitError(f"its {name} is of type {kind.__name__}")


def _read(key: str, value: Any, layers: Sequence[int] | None) -> Any:
    """Return a field of an output, without the hidden states that no one reads."""
    if key != "hidden_states" or layers is None or not isinstance(value, tuple):
        return value
    kept = {layer % len(value) for layer in layers}
    return tuple(each if i in kept else None for i, each in enumerate(value))
