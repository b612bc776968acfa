"""A sample with an image that keeps ranks in step; nothing is learned from it or kept of it.

Where the base model is split over the ranks, all of them must run the same parts of it. A batch
without images would leave the vision encoder out, and a rank without a batch would run nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dmole.data.sample import IMAGE_PLACEHOLDER, ArrayImage, Sample, Turn

if TYPE_CHECKING:
    from collections.abc import Sequence

FILLER_ID = "@filler"
"""Id of the sample; each task may have one."""

_IMAGE = ArrayImage(np.full((64, 64, 3), 128, dtype=np.uint8))
_QUESTION = Turn("user", f"{IMAGE_PLACEHOLDER}\nwhat is this?")
_PROMPT = Sample(FILLER_ID, (_QUESTION,), (_IMAGE,))
_EXAMPLE = Sample(FILLER_ID, (_QUESTION, Turn("assistant", "a picture")), (_IMAGE,))


def filler(task: str, *, generation: bool) -> tuple[Sample, str]:
    """Return the sample and the name of a task, as which it is processed.

    Args:
        task: The task.
        generation: Whether it is a prompt rather than a training sample.
    """
    return (_PROMPT if generation else _EXAMPLE), task


def with_filler(
    items: Sequence[tuple[Sample, str]], *, generation: bool
) -> Sequence[tuple[Sample, str]]:
    """Return the samples of a batch, and the filler after them if none of them has an image."""
    if any(sample.images for sample, _ in items):
        return items
    return [*items, filler(items[0][1], generation=generation)]


def count_fillers(samples: Sequence[Sample]) -> int:
    """Return the number of fillers among the samples of a batch, which come last."""
    return sum(sample.id == FILLER_ID for sample in samples)
