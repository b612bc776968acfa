"""What a benchmark is: how its files are read, how its answers are scored, what was published."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from dmole.benchmarks.shared.miniature import Miniature
from dmole.benchmarks.shared.rule import Rule
from dmole.data.formats import Split
from dmole.data.layout import Layout
from dmole.metrics.base import TaskMetric
from dmole.storage.shipped import shipped_config


@dataclass(frozen=True)
class Size:
    """A published number of items.

    Args:
        items: The number.
        source: Where it is stated.
        of: What is counted, where it is not the items of the file.
    """

    items: int
    source: str
    of: str = "items"


Sizes = Mapping[str, Mapping[Split, Size]]
"""Published sizes by task (as the config names it) and split.

Only what a repository, a file or the data set's own authors state. A number may be that of a
version: a difference is a question, not an error.
"""


@dataclass(frozen=True)
class Guide:
    """How the data of a benchmark are put together.

    Args:
        title: Name and paper.
        folders: Folders below the root.
        parts: What is obtained where, and the folder it is put into, one line each.
        notes: What to know beforehand.
    """

    title: str
    folders: tuple[str, ...]
    parts: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Everything that is particular to one benchmark.

    Names of formats and metrics are global: a config may use those of another benchmark, and no
    two benchmarks may give the same name.

    Args:
        name: The name that ``dmole data init`` takes.
        config: The shipped config that runs it. Its tasks name their formats and metrics.
        miniature: Writes its files with a few tiny samples.
        arxiv: Number of its paper. Benchmarks are listed in the order of these numbers, those
            without one last.
        guide: How its data are put together. None if its tasks are added after those of another
            benchmark: the miniature of every other benchmark then holds its files too.
        sizes: Published split sizes; tasks of which none is known may be left out.
        formats: Layouts by the name that a task's ``format`` gives.
        metrics: Rules, and classes of metrics that are not the mean of a rule, by name.
    """

    name: str
    config: str
    miniature: Callable[[Miniature], None]
    arxiv: str = ""
    guide: Guide | None = None
    sizes: Sizes = field(default_factory=dict)
    formats: Mapping[str, Layout] = field(default_factory=dict)
    metrics: Mapping[str, Rule | type[TaskMetric]] = field(default_factory=dict)

    def tasks(self) -> list[dict[str, Any]]:
        """Return the tasks of the config, as it writes them.

        Raises:
            FileNotFoundError: If there is no such config.
        """
        path = shipped_config(self.config)
        if path is None:
            raise FileNotFoundError(f"benchmark {self.name!r}: no config {self.config} is shipped")
        data = yaml.safe_load(path.read_text(encoding="utf-8"))["data"]
        return [*data.get("tasks", ()), *data.get("tasks+", ())]
