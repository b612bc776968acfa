"""The tensors of a batch, and what the host keeps of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from dmole.data.labels import Targets, predicting_positions
from dmole.data.packing import Buffer, Slot, pack, unpack
from dmole.data.window import Window
from dmole.transfer import to_device


@dataclass
class Batch:
    """Tensors and names of ``B`` samples.

    A worker passes all tensors to the main process in one storage.

    Args:
        inputs: Arguments of the model: ``input_ids`` and ``attention_mask`` of shape ``(B, T)``,
            ``pixel_values`` and its companions in the layout of the model family (absent if
            the batch has no image).
        labels: Token ids of the answers, -100 elsewhere, ``(B, T)``; ``None`` for generation.
        question: Tokens of the first user turn without images and template, right padded:
            ``input_ids`` and ``attention_mask`` of shape ``(B, Q)``.
        image_counts: Number of images of each sample, ``(B,)``, long.
        sample_ids: Id of each sample.
        task_names: Task of each sample.
        window: Place of a training batch among those of an optimizer step; None if it is the only
            one.
        fillers: Number of samples at the end that only keep ranks in step, without labels; see
            `dmole.data.filler`.
    """

    inputs: dict[str, Tensor]
    labels: Tensor | None
    question: dict[str, Tensor]
    image_counts: Tensor
    sample_ids: list[str]
    task_names: list[str]
    window: Window | None = None
    fillers: int = 0
    _host: Batch | None = field(default=None, init=False, repr=False, compare=False)
    _positions: Tensor | None = field(default=None, init=False, repr=False, compare=False)

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.sample_ids)

    @property
    def real(self) -> int:
        """Number of samples that are no fillers; they come first."""
        return len(self) - self.fillers

    @property
    def host(self) -> Batch:
        """The batch it was moved from; itself if it was not moved.

        Counts and sizes are read from it, so that the host does not wait for the device.
        """
        return self if self._host is None else self._host

    @property
    def targets(self) -> Targets:
        """The answer tokens of a training batch."""
        assert self.labels is not None  # a training batch
        return Targets.of(self.labels, self._positions)

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch on a device, without waiting for the copies; Lightning calls it."""
        device = torch.device(device)
        if self.image_counts.device == device:
            return self
        moved = replace(
            self,
            inputs={key: to_device(value, device) for key, value in self.inputs.items()},
            labels=None if self.labels is None else to_device(self.labels, device),
            question={key: to_device(value, device) for key, value in self.question.items()},
            image_counts=to_device(self.image_counts, device),
        )
        if self.image_counts.device.type == "cpu":
            moved._host = self
            if self.labels is not None:
                moved._positions = to_device(predicting_positions(self.labels), device)
        return moved

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory; called by a loader with ``pin_memory``."""
        return replace(
            self,
            inputs={key: value.pin_memory() for key, value in self.inputs.items()},
            labels=None if self.labels is None else self.labels.pin_memory(),
            question={key: value.pin_memory() for key, value in self.question.items()},
            image_counts=self.image_counts.pin_memory(),
        )

    def __reduce__(self) -> tuple[Callable[..., Batch], tuple[Any, ...]]:
        """Return how the batch is made again, for pickle and copies."""
        tensors = [*self.inputs.values(), *self.question.values(), self.image_counts]
        if self.labels is not None:
            tensors.append(self.labels)
        names = (list(self.inputs), list(self.question))
        facts = (self.sample_ids, self.task_names, self.window, self.fillers)
        return _unpacked, (*pack(tensors), *names, *facts)


def _unpacked(
    buffer: Buffer,
    slots: Sequence[Slot],
    inputs: Sequence[str],
    question: Sequence[str],
    sample_ids: list[str],
    task_names: list[str],
    window: Window | None,
    fillers: int,
) -> Batch:
    tensors = iter(unpack(buffer, slots))
    return Batch(
        inputs={key: next(tensors) for key in inputs},
        question={key: next(tensors) for key in question},
        image_counts=next(tensors),
        labels=next(tensors, None),
        sample_ids=sample_ids,
        task_names=task_names,
        window=window,
        fillers=fillers,
    )
