"""At the first evaluation: keep small images of some test samples in the run folder."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from dmole.callbacks.base import ContinualCallback
from dmole.messages import one_line
from dmole.run.run_files import RunFile
from dmole.storage.case_images import (
    FILE,
    MOST_IMAGES,
    Case,
    chosen,
    encode_image,
    read_case_images,
)
from dmole.storage.digests import file_digest, read_digests
from dmole.storage.files import write_lines

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from dmole.data import Sample
    from dmole.module import ContinualModule
    from dmole.run.state import SequenceState

log = logging.getLogger("dmole")


class CaseImages(ContinualCallback):
    """Writes ``case_images.jsonl``: small images of some test samples of each task, for reports.

    The samples are the same in all runs on the same data. An image that cannot be decoded is left
    out with a warning. An evaluation of a finished run writes no such file.

    Args:
        samples: Maximum number of samples of a task; 0 writes no file.

    Raises:
        ValueError: If the number is negative.
    """

    def __init__(self, samples: int = 24) -> None:
        if samples < 0:
            raise ValueError(f"case_images must be at least 0, got {samples}")
        self.samples = samples
        self._written: set[str] = set()

    def on_evaluation_end(self, state: SequenceState, module: ContinualModule) -> None:
        """Write the images of tasks that were evaluated for the first time."""
        tested = set(state.data.tested_task_names)
        if self._keeps(state) and not tested <= self._written:
            state.put(_file(state, self.samples))
            self._written = tested

    def run_files(self, state: SequenceState, module: ContinualModule) -> Iterator[RunFile]:
        """Return ``case_images.jsonl`` from the first evaluation on."""
        if self._keeps(state) and state.done:
            yield _file(state, self.samples)

    def _keeps(self, state: SequenceState) -> bool:
        return self.samples > 0 and "train" in state.splits


def _file(state: SequenceState, samples: int) -> RunFile:
    def write(run: Path) -> None:
        images = _Images()
        write_lines(run / FILE, (case.line() for case in images.of_tasks(state, run, samples)))
        images.warn()

    return RunFile(FILE, write)


class _Images:
    """Makes the lines of the file, and counts the images that cannot be decoded."""

    def __init__(self) -> None:
        self._failures: list[str] = []

    def of_tasks(self, state: SequenceState, run: Path, samples: int) -> Iterator[Case]:
        """Yield the samples of all tasks; those in the file stay, also if their data are gone."""
        kept, tested = _kept(run), set(state.data.tested_task_names)
        for task in state.data.column_names:
            if task in kept:
                yield from kept[task].values()
            elif task in tested:
                tests = state.data.test_samples(task)
                for index in chosen(task, (sample.id for sample in tests), samples):
                    yield self._of_sample(task, tests[index])

    def _of_sample(self, task: str, sample: Sample) -> Case:
        encoded = []
        for image in sample.images[:MOST_IMAGES]:
            try:
                encoded.append(encode_image(image.load()))
            except (ValueError, OSError) as error:
                self._failures.append(one_line(error))
        return Case(task, sample.id, tuple(encoded))

    def warn(self) -> None:
        """Log one line if images were left out."""
        if self._failures:
            count, first = len(self._failures), self._failures[0]
            log.warning("%s lacks images that cannot be decoded: %d (%s)", FILE, count, first)


def _kept(run: Path) -> dict[str, dict[str, Case]]:
    """Return what the file holds, if it is as the run has written it."""
    try:
        digests = read_digests(run)
        if digests is not None and digests.files.get(FILE) == file_digest(run / FILE):
            return read_case_images(run)
    except ValueError:
        pass  # it is lost or damaged: made again
    return {}
