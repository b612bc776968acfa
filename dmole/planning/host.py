"""Memory of a node and disk of a run folder."""

from __future__ import annotations

from dmole.planning.memory import FP32
from dmole.planning.reckoning import GIB, Reckoning

PROCESS_BYTES = 4 * GIB
"""Host memory of a process with torch, transformers and a CUDA context. An assumption."""
WORKER_BYTES = GIB // 2
"""Host memory that a loader worker does not share with its process. An assumption."""
INDEX_BYTES = 120
"""Host memory of a sample: its place in the task file and its id. An assumption."""
ANSWER_BYTES = 250
"""Bytes of an answer in the run folder. An assumption."""


def host_memory(run: Reckoning) -> dict[str, float]:
    """Return the bytes of host memory of a node, by what they are for.

    Args:
        run: The run.
    """
    setup = run.setup
    samples = sum(task.train + task.test for task in setup.tasks)
    image = 3 * FP32 * 336**2 * run.image.tiles * run.lengths.images
    batch = max(run.batch, setup.eval_batch_size)
    held = setup.past_experts_on_device is not None
    workers = setup.devices * setup.num_workers
    return {
        "processes": setup.devices * PROCESS_BYTES,
        # others are read straight into the memory of the GPU
        "weights while loading": setup.devices * run.whole_base * setup.sharded,
        "loader workers": workers * (WORKER_BYTES + 2 * batch * image),
        "index of the data": INDEX_BYTES * samples * setup.devices,
        "past experts": FP32 * run.experts.past * setup.devices * held,
    }


def disk(run: Reckoning) -> dict[str, float]:
    """Return the bytes of the run folder, by what they are for.

    Args:
        run: The run.
    """
    setup, experts = run.setup, run.experts
    width = run.shape.embedding_width
    tested = sum(task.test for task in setup.tasks)
    rows = {"all": len(setup.stages) + 1, "seen": (len(setup.stages) + 1) / 2, "last": 1}
    answers = tested * ANSWER_BYTES * rows[setup.evaluate]
    embedded = (
        sum(min(task.train, setup.embedding_samples) for task in setup.tasks) + tested
        if setup.router.needs_embeddings
        else 0
    )
    training = experts.size.parameters * FP32 * (1 + setup.moments)
    return {
        "experts": FP32 * experts.parameters,
        "checkpoint": FP32 * experts.past + training,
        "router": experts.count * run.autoencoder(FP32) if setup.router.needs_embeddings else 0,
        "embeddings": FP32 * width * embedded,
        "predictions": answers,
    }
