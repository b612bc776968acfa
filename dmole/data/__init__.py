"""Turns files into batches: tasks, samples, tensors and loaders."""

from typing import Any

from dmole._moved import moved_name
from dmole.data.batch import Batch
from dmole.data.collate import Collator, TaskSample
from dmole.data.loader import ResumableLoader
from dmole.data.sample import (
    IMAGE_PLACEHOLDER,
    ArrayImage,
    EmbeddedImage,
    FileImage,
    ImageSource,
    Sample,
    Turn,
)
from dmole.data.sampler import TrainBatchSampler
from dmole.data.sequences import Samples
from dmole.data.source import open_source
from dmole.data.streaming import stream_items
from dmole.data.task import Task, validate_tasks

__all__ = [
    "IMAGE_PLACEHOLDER",
    "ArrayImage",
    "Batch",
    "Collator",
    "EmbeddedImage",
    "FileImage",
    "ImageSource",
    "ResumableLoader",
    "Sample",
    "Samples",
    "Task",
    "TaskSample",
    "TrainBatchSampler",
    "Turn",
    "open_source",
    "stream_items",
    "validate_tasks",
]


def __getattr__(name: str) -> Any:
    return moved_name(__name__, name)
