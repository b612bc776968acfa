"""Hours of each phase of a sequence on a number of GPUs."""

from __future__ import annotations

from dmole.planning import work
from dmole.planning.experts import scored_by_gradients
from dmole.planning.hardware import GATHER_BYTES_PER_SECOND, HOST_SECONDS_PER_BLOCK, Gpu
from dmole.planning.reckoning import Reckoning
from dmole.planning.setup import Setup
from dmole.streams.generic import GenericMix
from dmole.streams.replay import Replay

TESTED = {"all": 3, "seen": 2, "last": 1}
"""How often a test sample is answered if experts are chosen by sample, by ``trainer.evaluate``.

Before training, after its task, and on average once more for changed routes.
"""


def hours(reckoning: Reckoning, gpu: Gpu, utilization: float) -> dict[str, float]:
    """Return the hours of each phase; loading of images, padding and waiting come on top.

    Args:
        reckoning: The run.
        gpu: The GPU.
        utilization: Fraction of its peak rate in all but decoding.

    Raises:
        ValueError: If the utilization is out of range.
    """
    flops = phase_flops(reckoning)
    found = {
        phase: work.gpu_hours(count, gpu.teraflops * 1e12, utilization) / reckoning.setup.ranks
        for phase, count in flops.items()
    }
    found["decode"] = _decoding(reckoning, gpu)
    if reckoning.setup.sharded and reckoning.setup.ranks > 1:
        found["gather"] = _gathering(reckoning)
    return found


def phase_flops(reckoning: Reckoning) -> dict[str, float]:
    """Return the operations of each phase, without decoding."""
    setup, shape = reckoning.setup, reckoning.shape
    one = reckoning.load(1)
    recompute = setup.activation_checkpointing
    step = work.pass_flops(shape, one, backward=True, recompute=recompute)
    step += work.expert_flops(shape, one, reckoning.experts.size)
    found: dict[str, float] = {"train": _trained(setup) * step}
    distinct = sum(task.train for task in setup.tasks)
    tested = sum(task.test for task in setup.tasks)
    share = _measured(reckoning)
    if share:
        scored = work.pass_flops(shape, one, backward=True, weights=True, recompute=recompute)
        found["proxy"] = share * distinct * scored
    if reckoning.experts.scored is not None:
        one_step = work.pass_flops(shape, one, backward=True, recompute=recompute)
        one_step += work.expert_flops(shape, one, reckoning.experts.scored)
        scored = _scored_batches(reckoning) * setup.batch_size * one_step
        found["proxy"] = found.get("proxy", 0.0) + scored
    if setup.router.needs_embeddings:
        # partners are chosen by the embeddings of all samples, else only a subset is embedded
        embedded = distinct if reckoning.experts.partners else _fitted(reckoning)
        embedding = work.embedding_flops(shape, one, reckoning.lengths.text)
        found["embed"] = (embedded + tested) * embedding
    prompt = work.pass_flops(shape, one, backward=False)
    found["prompts"] = tested * answers_per_sample(reckoning) * prompt
    return found


def _trained(setup: Setup) -> float:
    """Return the samples of all training steps, replayed and general ones included."""
    sizes, total = {task.name: task for task in setup.tasks}, 0.0
    for stage in setup.stages:
        tasks, draw = [sizes[name] for name in stage.tasks], stage.draw
        total += (new := sum(task.train * task.passes for task in tasks))
        if isinstance(draw, GenericMix):
            total += new * draw.share / (1 - draw.share)
        if not isinstance(draw, Replay) or not draw.past:
            continue
        if draw.share is not None:
            total += new * draw.share / (1 - draw.share)
        elif draw.buffer_size is not None:
            past = sum(sizes[name].train for name in draw.past)
            total += min(draw.buffer_size, past) * max(task.passes for task in tasks)
    return total


def _fitted(reckoning: Reckoning) -> int:
    limit = reckoning.setup.embedding_samples
    return sum(min(task.train, limit) for task in reckoning.setup.tasks)


def answers_per_sample(reckoning: Reckoning) -> float:
    """Return how often a test sample is answered in a sequence."""
    stages, which = len(reckoning.setup.stages), reckoning.setup.evaluate
    if not stages:
        return 1
    if reckoning.experts.by_sample:
        return min(TESTED[which], stages + 1)
    # each stage changes an expert that all samples use
    return {"all": stages + 1, "seen": (stages + 1) / 2, "last": 1}[which]


def _measured(reckoning: Reckoning) -> float:
    """Return how often gradients of the weights are computed for each training sample.

    A pass that reads inputs counts as a whole one, an upper bound.
    """
    setup = reckoning.setup
    allocator, starts = setup.allocator, setup.allocator.initializer
    share = 0.0
    if scored_by_gradients(allocator):
        share += allocator.proxy_fraction * reckoning.proxy_passes
    if starts is not None:
        measured = sum(source != "nothing" for source in (starts.source, starts.kept_source))
        share += starts.proxy_fraction * starts.proxy_passes * measured
    return share if setup.stages else 0.0


def _scored_batches(reckoning: Reckoning) -> int:
    """Return the batches of one GPU, over all ranks, in the trainings that score the units."""
    if reckoning.experts.scored is None:
        return 0
    setup, new = reckoning.setup, reckoning.experts.count
    return new * setup.allocator.score_steps * setup.ranks * setup.accumulate_grad_batches


def _gathering(reckoning: Reckoning) -> float:
    """Return the hours of gathers of a base model in shards, in training and in decoding."""
    setup = reckoning.setup
    seen = sum(task.train * task.passes for task in setup.tasks) if setup.stages else 0
    scored = _measured(reckoning) * sum(task.train for task in setup.tasks)
    # a forward and a backward pass, which gathers a block once, also where it is recomputed
    batches = seen / reckoning.batch + scored / setup.batch_size + _scored_batches(reckoning)
    gathers = 2 * batches
    if not setup.gathers:
        gathers += _tokens(reckoning)
    return gathers / setup.ranks * reckoning.whole_base / GATHER_BYTES_PER_SECOND / 3600


def _decoding(reckoning: Reckoning, gpu: Gpu) -> float:
    """Return the hours of decoding: the host launches each token, or the weights are read."""
    blocks = reckoning.shape.language.blocks
    launch = blocks * HOST_SECONDS_PER_BLOCK
    token = max(launch, reckoning.whole_base / (gpu.bandwidth * 1e12))
    return _tokens(reckoning) * token / reckoning.setup.ranks / 3600


def _tokens(reckoning: Reckoning) -> float:
    """Return how often a batch is decoded by one token."""
    tokens = 0.0
    for task in reckoning.setup.tasks:
        batches = task.test / reckoning.eval_batch(task.new_tokens)
        # the longest answer of a batch
        tokens += batches * min(task.new_tokens, 2 * reckoning.lengths.answer)
    return tokens * answers_per_sample(reckoning)
