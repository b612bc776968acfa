"""Errors of samples: one line that names the origin, the id and the images of a sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from dmole.data.formats import sample_id
from dmole.data.sample import Sample, StoredImage
from dmole.messages import one_line, shortened

Origin = Callable[[Sample, str], str]
"""Returns where a sample of a task comes from, for messages."""


class SampleError(ValueError):
    """An error of samples. Its message is one line, also after it has left a loader's worker."""

    def __init__(self, message: str) -> None:
        # torch wraps the message of a worker's error in the worker's traceback
        super().__init__(message.rpartition(f"{type(self).__name__}: ")[2].strip())


def task_origin(sample: Sample, task: str) -> str:
    """Return the origin of a sample of which only the task is known."""
    return f"task {task!r}"


def sample_error(sample: Sample, task: str, error: Exception, origin: Origin) -> SampleError:
    """Return the error of one sample.

    Args:
        sample: The sample.
        task: Name of its task.
        error: The reason.
        origin: Returns where the sample comes from.
    """
    text, name = one_line(error), f"sample {sample.id!r}"
    text = text if name in text else f"{name}: {text}"
    images = [image.name for image in sample.images if isinstance(image, StoredImage)]
    if images and not any(image in text for image in images):
        text += f" ({'image' if len(images) == 1 else 'images'} {shortened(', '.join(images))})"
    return SampleError(f"{origin(sample, task)}: {text}")


def item_error(address: str, index: int, item: Mapping[str, Any], error: Exception) -> Exception:
    """Return an error that names the source and the item."""
    kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
    return kind(f"{address}: item {index} (id {sample_id(item, index)!r}): {error}")
