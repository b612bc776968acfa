"""Digests of what a run folder holds: equal runs have equal ones."""

from __future__ import annotations

import hashlib
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from experiments.run_content import tensor_digest

ALL = {"scalars": 0, "images": 0, "histograms": 0, "tensors": 0}
"""Reads all events instead of a sample."""


def run_digests(run: Path) -> dict[str, str]:
    """Return a digest of all a run learned and found out, by file."""
    tensors = {
        str(path.relative_to(run)): tensor_digest(path) for path in run.rglob("*.safetensors")
    }
    texts = [*run.glob("*.csv"), run / "metrics.json", *run.rglob("predictions/*.jsonl")]
    return tensors | {
        str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in [*texts, run / "router" / "router.json", run / "experts" / "experts.json"]
    }


def logged_steps(run: Path) -> dict[str, list[int]]:
    """Return the steps of each tag, of any kind, in the one file of TensorBoard events of a run."""
    (file,) = run.glob("events.out.tfevents.*")
    events = EventAccumulator(str(file), size_guidance=ALL, purge_orphaned_data=False).Reload()
    kinds = ("scalars", "images", "histograms", "tensors")
    readers = (events.Scalars, events.Images, events.Histograms, events.Tensors)
    return {
        tag: [event.step for event in read(tag)]
        for kind, read in zip(kinds, readers, strict=True)
        for tag in events.Tags()[kind]
    }
