"""Before the first stage: find the segments of a stream without task boundaries."""

from __future__ import annotations

import copy
import logging
from typing import TYPE_CHECKING

from dmole.callbacks.base import ContinualCallback
from dmole.callbacks.embedding import embed_samples
from dmole.callbacks.router_fitting import RouterFitting
from dmole.distributed import broadcast
from dmole.routing.autoencoder_router import AutoencoderRouter
from dmole.run.run_files import RunFile
from dmole.storage.files import write_csv
from dmole.streams.auto import AutoStream
from dmole.streams.draws import Part
from dmole.streams.segments import segment_name

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from dmole.module import ContinualModule
    from dmole.run.state import SequenceState

log = logging.getLogger("dmole")

HEADER = ("stage", "expert", "start", "alarm", "true_task", "owner", "count")

AT_ONCE = 1024
"""Samples that are embedded at once; a fixed number, so that batches do not depend on the run."""

_EQUAL = ("epochs", "batch_size", "repeat")
"""Settings of tasks that a stream without labels of tasks cannot tell apart."""


class SegmentRecord(ContinualCallback):
    """Writes ``segments.csv``: where each segment of an ``AutoStream`` begins and what it holds.

    ``start`` is the position of its first sample in order of arrival, from 0; ``alarm`` is the
    position of the sample that revealed it. ``count`` samples of ``true_task`` arrived in the
    segment and belong to the expert ``owner``.
    """

    def on_evaluation_end(self, state: SequenceState, module: ContinualModule) -> None:
        """Write the file before training."""
        if not state.stage.index:
            state.put(*self.run_files(state, module))

    def run_files(self, state: SequenceState, module: ContinualModule) -> Iterator[RunFile]:
        """Return ``segments.csv`` if the stream has segments."""
        stream = state.stream
        if isinstance(stream, AutoStream) and stream.planned:
            rows = _rows(stream, state)
            yield RunFile("segments.csv", lambda run: write_csv(run / "segments.csv", HEADER, rows))


def check_segments(state: SequenceState, module: ContinualModule) -> None:
    """Refuse data and routers with which segments cannot be found.

    Args:
        state: Has stream and data.
        module: Has the router.

    Raises:
        ValueError: If the router rejects no sample, if a task has ``update``, or if tasks differ
            in a setting that a stream without labels cannot know.
    """
    _gatekeeper(module)
    for name in state.data.predecessors:
        raise ValueError(
            f"task {name!r} has update: true, but AutoStream finds its experts in the samples: it "
            "cannot continue the expert of a task"
        )
    tasks = [state.data.task(name) for name in state.data.training_task_names]
    for key in _EQUAL:
        for task in tasks[1:]:
            if getattr(task, key) != getattr(tasks[0], key):
                raise ValueError(
                    f"AutoStream does not know which task a sample is from, but {key} of tasks "
                    f"{tasks[0].name!r} and {task.name!r} differ"
                )


def find_segments(state: SequenceState, module: ContinualModule) -> None:
    """Find the segments of the stream of a run, the same on every rank.

    Args:
        state: Has stream and data; its stream receives the segments.
        module: Has base model and router, which stays without experts.

    Raises:
        Interrupted: If a signal requested the end of the run.
    """
    stream, data = state.stream, state.data
    assert isinstance(stream, AutoStream)  # the only stream that is not planned
    fitting = state.callback_of(RouterFitting)
    router = copy.deepcopy(_gatekeeper(module))
    segmenter = stream.segmenter(router, fitting.embedding_samples, fitting.seed)
    sizes = [len(data.train_samples(name)) for name in data.training_task_names]
    items = data.items([Part(name) for name in data.training_task_names])
    with state.timed("segment"):
        for start in range(0, len(items), AT_ONCE):
            rows = embed_samples(state, module, items[start : start + AT_ONCE], "train")
            # a stage reads them from disk or embeds its samples again, as it does in a resumed run
            module.embedder.cache.forget(*(f"{name}/train/" for name in data.training_task_names))
            if state.is_global_zero:
                segmenter.add(rows)
        found = broadcast(segmenter.finish() if state.is_global_zero else None)
    assert found is not None  # rank 0 has sent it
    stream.set_segments(found, sizes)
    begins = ", ".join(map(str, found.starts))
    log.info("segments: %d, from the samples %s on", len(found.starts), begins)


def _gatekeeper(module: ContinualModule) -> AutoencoderRouter:
    """Return the router that accepts or rejects samples."""
    router = getattr(module.router, "router", module.router)  # inside CommonExpertRouter
    if not isinstance(router, AutoencoderRouter):
        raise ValueError(
            "AutoStream needs a router that rejects samples, AutoencoderRouter, not "
            f"{type(router).__name__}"
        )
    return router


def _rows(stream: AutoStream, state: SequenceState) -> list[dict[str, Any]]:
    found, names = stream.segmentation, state.data.training_task_names
    return [
        {
            "stage": index + 1,
            "expert": segment_name(stream.prefix, index),
            "start": found.starts[index],
            "alarm": found.alarms[index - 1] if index else "",
            "true_task": task,
            "owner": segment_name(stream.prefix, owner),
            "count": count,
        }
        for index, counts in enumerate(stream.counts(names))
        for (task, owner), count in sorted(counts.items())
    ]
