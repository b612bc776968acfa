"""Settings that make a phase fit into the memory of a GPU, the cheapest first."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from dmole.planning.reckoning import Reckoning
from dmole.planning.setup import Setup
from dmole.planning.terms import has_own_passes

Change = tuple[str, Setup]
"""What to write into the config, and the setup with it."""
Knob = Callable[[Setup], Iterator[Change]]
"""Yields ever stronger changes of one setting."""

MOST_PASSES = 16


@dataclass(frozen=True)
class Advice:
    """A change for a phase that does not fit.

    Args:
        phase: Name of the phase.
        change: Keys and values for the config.
        before: Bytes without the change.
        after: Bytes with it.
        fits: Whether the phase fits with it.
    """

    phase: str
    change: str
    before: float
    after: float
    fits: bool


def advise(reckoning: Reckoning, limit: float) -> list[Advice]:
    """Return changes for each phase that needs more than a GPU has.

    Single changes come first, those that suffice before others. If none suffices, the last one
    joins several.

    Args:
        reckoning: The run.
        limit: Bytes of a GPU that may be used.
    """
    found = []
    for phase in reckoning.phases():
        if phase.total > limit:
            found += _for_phase(reckoning, phase.name, limit)
    return found


def _for_phase(reckoning: Reckoning, phase: str, limit: float) -> list[Advice]:
    before = _bytes(reckoning, reckoning.setup, phase)
    single = [
        Advice(phase, change, before, after, after <= limit)
        for knob in _KNOBS[phase]
        for change, changed in _strongest(reckoning, knob, reckoning.setup, phase, limit)
        if (after := _bytes(reckoning, changed, phase)) < before
    ]
    single.sort(key=lambda advice: (not advice.fits, 0 if advice.fits else advice.after))
    if single and single[0].fits:
        return [advice for advice in single if advice.fits]
    return [*single, *_joined(reckoning, phase, limit, before)]


def _strongest(
    reckoning: Reckoning, knob: Knob, setup: Setup, phase: str, limit: float
) -> list[Change]:
    """Return the weakest change of a knob that suffices, else the one that saves most, if any."""
    best: list[tuple[float, Change]] = []
    for change in knob(setup):
        after = _bytes(reckoning, change[1], phase)
        if not best or after < best[0][0]:
            best = [(after, change)]
        if after <= limit:
            break
    return [change for _, change in best]


def _joined(reckoning: Reckoning, phase: str, limit: float, before: float) -> list[Advice]:
    """Return one advice that adds change after change until the phase fits, none without need."""
    texts, knobs, after = _stacked(reckoning, _KNOBS[phase], phase, limit)
    for knob in knobs if after <= limit else ():
        rest = [other for other in knobs if other is not knob]
        fewer = _stacked(reckoning, rest, phase, limit)
        if fewer[2] <= limit:
            texts, knobs, after = fewer
    if len(texts) < 2:
        return []
    return [Advice(phase, ", ".join(texts), before, after, after <= limit)]


def _stacked(
    reckoning: Reckoning, knobs: Sequence[Knob], phase: str, limit: float
) -> tuple[list[str], list[Knob], float]:
    """Return changes that are made one after the other, their knobs, and the bytes with them."""
    setup, texts, used = reckoning.setup, [], []
    after = _bytes(reckoning, setup, phase)
    for knob in knobs:
        for change, changed in _strongest(reckoning, knob, setup, phase, limit):
            now = _bytes(reckoning, changed, phase)
            if now < after:
                setup, after = changed, now
                texts.append(change)
                used.append(knob)
        if after <= limit:
            break
    return texts, used, after


def _bytes(reckoning: Reckoning, setup: Setup, phase: str) -> float:
    changed = Reckoning(reckoning.shape, setup, reckoning.lengths, reckoning.image)
    return next(found.total for found in changed.phases() if found.name == phase)


def _checkpointing(setup: Setup) -> Iterator[Change]:
    if not setup.activation_checkpointing:
        yield "model.activation_checkpointing true", replace(setup, activation_checkpointing=True)


def _past_experts(setup: Setup) -> Iterator[Change]:
    if setup.past_experts_on_device != 0:
        yield "model.past_experts_on_device 0", replace(setup, past_experts_on_device=0)


def _passes(setup: Setup) -> Iterator[Change]:
    count = setup.allocator.proxy_passes
    while (count := 2 * count) <= MOST_PASSES:
        allocator = copy.copy(setup.allocator)
        allocator.proxy_passes = count
        text = f"model.allocator.init_args.proxy_passes {count}"
        yield text, replace(setup, allocator=allocator)
    starts = setup.allocator.initializer
    count = MOST_PASSES if starts is None else starts.proxy_passes
    while starts is not None and (count := 2 * count) <= MOST_PASSES:
        allocator, starts = copy.copy(setup.allocator), copy.copy(starts)
        starts.proxy_passes = count
        allocator.initializer = starts
        text = f"model.allocator.init_args.initializer.init_args.proxy_passes {count}"
        yield text, replace(setup, allocator=allocator)


def _batch(setup: Setup) -> Iterator[Change]:
    size, steps = setup.batch_size, setup.accumulate_grad_batches
    while size > 1:
        factor = next(number for number in range(2, size + 1) if size % number == 0)
        size, steps = size // factor, factor * steps
        of_tasks = f", {size} at most in each task," if setup.tasks_set_batches else ""
        text = f"data.batch_size {size}{of_tasks} and trainer.accumulate_grad_batches {steps}"
        yield text, replace(setup, batch_size=size, accumulate_grad_batches=steps)


def _tokens(setup: Setup) -> Iterator[Change]:
    tokens, steps = setup.max_tokens_per_batch, setup.accumulate_grad_batches
    while tokens is not None and tokens > 1024:
        tokens, steps = tokens // 2, 2 * steps
        text = f"data.max_tokens_per_batch {tokens} and trainer.accumulate_grad_batches {steps}"
        yield text, replace(setup, max_tokens_per_batch=tokens, accumulate_grad_batches=steps)


def _eval_batch(setup: Setup) -> Iterator[Change]:
    size = setup.eval_batch_size
    while setup.eval_tokens_per_batch is None and size > 1:
        size = (size + 1) // 2
        yield f"data.eval_batch_size {size}", replace(setup, eval_batch_size=size)


def _eval_tokens(setup: Setup) -> Iterator[Change]:
    tokens = setup.eval_tokens_per_batch
    while tokens is not None and tokens > 1024:
        tokens //= 2
        yield f"data.eval_tokens_per_batch {tokens}", replace(setup, eval_tokens_per_batch=tokens)


def _sharding(setup: Setup) -> Iterator[Change]:
    if setup.ranks == 1 or setup.quantization or has_own_passes(setup):
        return
    if not setup.sharded:
        yield "trainer.strategy sharded_base", replace(setup, sharded=True)
    if not setup.sharded or setup.gathers:
        text = "trainer.strategy sharded_base with gather_for_evaluation false"
        yield text, replace(setup, sharded=True, gathers=False)


def _quantization(setup: Setup) -> Iterator[Change]:
    if setup.quantization is None and not setup.sharded:
        text = "model.backbone.init_args.quantization 4bit"
        yield text, replace(setup, quantization="4bit")


_ALWAYS: Sequence[Knob] = (_sharding, _quantization)
_KNOBS: dict[str, Sequence[Knob]] = {
    "proxy pass": (_checkpointing, _past_experts, _passes, _batch, *_ALWAYS),
    "scoring step": (_checkpointing, _past_experts, _batch, *_ALWAYS),
    "training step": (_checkpointing, _past_experts, _batch, _tokens, *_ALWAYS),
    "evaluation": (_past_experts, _eval_batch, _eval_tokens, *_ALWAYS),
    "embedding": (_past_experts, _eval_batch, *_ALWAYS),
    "router fit": (_past_experts, *_ALWAYS),
}
