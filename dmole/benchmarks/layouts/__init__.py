"""How published benchmarks lay out their files, each turned into one form of items."""

from dmole.benchmarks.layouts.paths import alternatives, find_path
from dmole.benchmarks.layouts.reading import (
    TaskFile,
    layout_of,
    open_task,
    open_task_samples,
    read_task,
)
from dmole.benchmarks.layouts.registry import LAYOUTS, Layout
from dmole.benchmarks.layouts.source import Source

__all__ = [
    "LAYOUTS",
    "Layout",
    "Source",
    "TaskFile",
    "alternatives",
    "find_path",
    "layout_of",
    "open_task",
    "open_task_samples",
    "read_task",
]
