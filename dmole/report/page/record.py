"""A run of any age or state as the page reads it: each file when it is needed, none required."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from dmole.messages import one_line
from dmole.metrics.matrix_file import read_matrix
from dmole.report.history import History
from dmole.report.page.samples import Rerouted, history_of, reroute
from dmole.report.page.tables_of_run import (
    AllocatedUnit,
    ModalityFactor,
    read_allocation,
    read_curriculum,
)
from dmole.report.run_files import check_name, read_config, read_metrics, read_timing
from dmole.report.runs import Run, assemble_run
from dmole.storage.digests import Digests, read_digests, verify_file
from dmole.storage.predictions import Lines, predicted_stages, read_stage
from dmole.storage.routing_table import read_test_counts

Array = npt.NDArray[np.float64]
Content = TypeVar("Content")

READ = (
    "evaluation_matrix.csv",
    "oracle_matrix.csv",
    "metrics.json",
    "allocation.csv",
    "curriculum.csv",
    "routing.csv",
)
"""Tables that every page reads."""

READ_WHOLE = ("predictions/", "router/", "case_images.jsonl")
"""How the paths of the further files begin that a complete page reads."""

_MOST_ALTERED = 20  # files that are named


class RunRecord:
    """The files of one run folder, each read when it is first used.

    A property is None if its file is missing: the run is older than the file, still running, or
    of a method that does not write it. A damaged file raises when the property is read.

    Args:
        folder: The run folder.
        depth: Parts of its path that name it on the page.

    Raises:
        FileNotFoundError: If there is no such folder.
    """

    def __init__(self, folder: str | Path, depth: int = 2) -> None:
        self.folder = Path(folder)
        self._depth = depth
        if not self.folder.is_dir():
            raise FileNotFoundError(f"no run folder {folder}")

    @cached_property
    def name(self) -> str:
        """Name of the run on the page: the last parts of its path."""
        *parents, name = self.folder.resolve().parts[-self._depth :]
        name = re.sub(r"^\.(.+)\.unfinished$", r"\1", name)  # an evaluation in progress
        return one_line("/".join([*parents, name]))  # not cut, which could make names equal

    def has(self, name: str) -> bool:
        """Return whether the folder has an entry of a name."""
        return os.path.lexists(self.folder / name)

    def read(self, name: str, reader: Callable[[Path], Content]) -> Content | None:
        """Return what a reader returns for a file of the run; None if the file is missing.

        Args:
            name: Path of the file below the run folder.
            reader: Reads and checks the file.

        Raises:
            ValueError: If the reader refuses the file.
        """
        return reader(self.folder / name) if self.has(name) else None

    @cached_property
    def config(self) -> dict[str, Any] | None:
        """Content of ``config.yaml``."""
        return self.read("config.yaml", read_config)

    @cached_property
    def metrics(self) -> dict[str, Any] | None:
        """Content of ``metrics.json``."""
        return self.read("metrics.json", read_metrics)

    @cached_property
    def timing(self) -> dict[str, Any] | None:
        """Content of ``timing.json``."""
        return self.read("timing.json", read_timing)

    @cached_property
    def digests(self) -> Digests | None:
        """Content of ``digests.json``."""
        return read_digests(self.folder)

    @cached_property
    def scores(self) -> tuple[Array, list[str]] | None:
        """Evaluation matrix, ``(stages + 1, tasks)`` in percent, and the names of its columns."""
        content = self.read("evaluation_matrix.csv", read_matrix)
        for name in content[1] if content else ():
            check_name(self.folder / "evaluation_matrix.csv", name, "the name of a task")
        return content

    @cached_property
    def oracle(self) -> Array | None:
        """Evaluation matrix with the experts of the true task, of the same shape as `scores`."""
        content = self.read("oracle_matrix.csv", read_matrix)
        if content is None or self.scores is None:
            return None
        if content[0].shape != self.scores[0].shape:
            file = self.folder / "oracle_matrix.csv"
            shapes = f"shape {content[0].shape}, evaluation matrix {self.scores[0].shape}"
            raise ValueError(f"{file}: {shapes}")
        return content[0]

    @cached_property
    def run(self) -> Run | None:
        """Scores, figures and costs together, as `compare` uses them; None without scores."""
        if self.scores is None:
            return None
        matrix, names = self.scores
        return assemble_run(
            self.folder,
            names,
            matrix,
            oracle=self.oracle,
            metrics=self.metrics or {},
            timing=self.timing or {},
            config=self.config or {},
            digests=self.digests,
        )

    @cached_property
    def tasks(self) -> list[str]:
        """Tasks in the order of the evaluation matrix; empty without one."""
        return self.scores[1] if self.scores else []

    @cached_property
    def tasks_of_stage(self) -> list[list[str]]:
        """Tasks that each stage learned, from stage 1 on, as far as the folder records it."""
        if self.digests is not None and self.digests.stages:
            lists = [stage.get("tasks") for stage in self.digests.stages]
            return [[str(task) for task in names] for names in lists if isinstance(names, list)]
        if self.scores is None or self.run is None:
            return []
        learned = self.run.task_of_stage
        if learned is None:
            return [[name] for name in self.tasks[: len(self.scores[0]) - 1]]
        return [[self.tasks[index] for index in stage] for stage in learned]

    @cached_property
    def learned_at(self) -> dict[str, int]:
        """The first stage that learns each task, 1 for the first; tasks not learned are absent."""
        found: dict[str, int] = {}
        for stage, tasks in enumerate(self.tasks_of_stage, start=1):
            for task in tasks:
                found.setdefault(task, stage)
        return found

    @cached_property
    def tasks_of_expert(self) -> dict[str, list[str]]:
        """Tasks that each expert learned, as far as the folder records it."""
        found: dict[str, list[str]] = {}
        for stage in self.digests.stages if self.digests is not None else ():
            tasks = stage.get("tasks")
            if isinstance(tasks, list):
                found.setdefault(str(stage.get("expert")), []).extend(map(str, tasks))
        return found

    @cached_property
    def common_expert(self) -> str | None:
        """The expert that all stages share; None if there is none."""
        stages = self.digests.stages if self.digests is not None else ()
        common = stages[-1].get("common") if stages else None
        return common if isinstance(common, str) else None

    def task_of_expert(self, expert: str) -> str | None:
        """Return the only task of an expert; None if it has several or none is known."""
        tasks = dict.fromkeys(self.tasks_of_expert.get(expert, [expert]))
        return next(iter(tasks)) if len(tasks) == 1 else None

    def style_of(self, task: str | None) -> int:
        """Return the number of a task's color, the same in all sections; 0 if it has no column."""
        return self.tasks.index(task) if task in self.tasks else 0

    @cached_property
    def allocation(self) -> list[AllocatedUnit] | None:
        """Rows of ``allocation.csv``."""
        return self.read("allocation.csv", read_allocation)

    @cached_property
    def curriculum(self) -> list[ModalityFactor] | None:
        """Rows of ``curriculum.csv``."""
        return self.read("curriculum.csv", read_curriculum)

    @cached_property
    def routing(self) -> list[tuple[int, str, str, int]] | None:
        """Test samples by stage, true task and gate set, from ``routing.csv``."""
        return self.read("routing.csv", lambda path: list(read_test_counts(path)))

    @cached_property
    def predicted_stages(self) -> list[int]:
        """Stages whose answers are in ``predictions``, in order."""
        return predicted_stages(self.folder)

    def predictions(self, stage: int) -> dict[str, Lines]:
        """Return the answers at a stage by task; they are not kept in memory.

        Raises:
            ValueError: If the file of the stage cannot be read; names it.
        """
        return read_stage(self.folder, stage)

    @cached_property
    def history(self) -> History | None:
        """Answers to the samples of the last stage after every stage; None without predictions."""
        return history_of(self)

    @cached_property
    def rerouted(self) -> Rerouted | None:
        """The last stage's samples, routed again; None if the router compares no losses."""
        return reroute(self)

    def altered(self, *, complete: bool) -> list[str]:
        """Return one line for each file that is not as the run has written it, at most 20.

        Args:
            complete: Whether to check the files of `READ_WHOLE`, too.
        """
        digests = self.digests
        lines: list[str] = []
        begins = READ + READ_WHOLE if complete else READ
        for name, expected in {} if digests is None else digests.files.items():
            if name.startswith(begins) and self.has(name) and len(lines) < _MOST_ALTERED:
                try:
                    verify_file(self.folder, name, expected)
                except (ValueError, OSError) as error:
                    lines.append(str(error).replace(f"{self.folder}{os.sep}", ""))
        return lines
