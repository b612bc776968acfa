"""How published benchmarks lay out their files, each turned into one form of items."""

from dmole.data.layouts.paths import alternatives, find_path
from dmole.data.layouts.reading import TaskFile, layout_of, open_task, open_task_samples, read_task
from dmole.data.layouts.registry import LAYOUTS, Layout
from dmole.data.layouts.source import Source

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
