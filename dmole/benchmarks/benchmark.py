"""A benchmark: the layouts of its files, its scoring rules and its published sizes."""

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
        source: Reference for the number.
        of: The counted objects, if they are not the items of the file.
    """

    items: int
    source: str
    of: str = "items"


Sizes = Mapping[str, Mapping[Split, Size]]
"""Published sizes by task (as named in the config) and split.

Only numbers stated in a repository, in a file or by the authors of the data set. A number may
belong to one version of the data, so a difference is a warning, not an error.
"""


@dataclass(frozen=True)
class Guide:
    """Instructions to assemble the data of a benchmark.

    Args:
        title: Name and paper.
        folders: Folders below the root.
        parts: The parts of the data with their origin and target folder, one line each.
        notes: Known pitfalls.
    """

    title: str
    folders: tuple[str, ...]
    parts: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Everything specific to one benchmark.

    Names of formats and metrics are global: a config may use those of another benchmark, and no
    two benchmarks may define the same name.

    Args:
        name: Name for ``dmole data init``.
        config: The shipped config that runs it. Its tasks name their formats and metrics.
        miniature: Writes its files with a few tiny samples.
        arxiv: arXiv number of its paper. Benchmarks are listed in the order of these numbers,
            those without one last.
        guide: Instructions to assemble its data. None if its tasks are added after those of
            another benchmark; the miniature of every other benchmark then contains its files too.
        sizes: Published split sizes; tasks without a published size may be left out.
        formats: Layouts by name, the value of a task's ``format``.
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
        """Return the tasks of the config, as written there.

        Raises:
            FileNotFoundError: If the config does not exist.
        """
        path = shipped_config(self.config)
        if path is None:
            raise FileNotFoundError(f"benchmark {self.name!r}: no config {self.config} is shipped")
        data = yaml.safe_load(path.read_text(encoding="utf-8"))["data"]
        return [*data.get("tasks", ()), *data.get("tasks+", ())]
