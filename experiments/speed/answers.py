"""Answers: routed generation against the bare model and PEFT's mixed batch, and its routing."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch

from dmole.module import ContinualModule
from dmole.run.context import EvaluationPass
from experiments.speed.page import Row, cost_rows
from experiments.speed.subjects import Subject, forced, fresh
from experiments.speed.timing import Times, Work, take_turns

MIXED = 8
"""Experts in a mixed batch."""
REFERENCES = ("bare", "bare, one token", "PEFT, mixed")
"""Works that the cost model is fitted to."""


def answers(subject: Subject, rounds: int, sizes: tuple[int, ...] = (1, 8, 64)) -> Iterator[Row]:
    """Yield the ratios of answers of a batch.

    Args:
        subject: The model.
        rounds: Rounds of the clock.
        sizes: Numbers of experts; the second one is also compared with PEFT.
    """
    numbers = itertools.count()
    works: dict[str, Work] = {
        "bare": _bare(subject, subject.tokens),
        "bare, one token": _bare(subject, 1),
    }
    for size in sizes:
        works[f"T = {size}, new"] = answer(subject, size, numbers, new=True)
        works[f"T = {size}, seen"] = answer(subject, size, numbers, new=False)
        works[f"T = {size}, routing"] = _routing(subject, size, numbers)
    works["PEFT, mixed"] = _peft(subject, min(MIXED, sizes[1]))
    times = take_turns(works, rounds)
    yield from _rows(subject.name, times, sizes)
    yield from cost_rows("answer", subject.name, works, times, REFERENCES)


def _rows(model: str, times: Times, sizes: tuple[int, ...]) -> Iterator[Row]:
    for size in sizes:
        for seen, bar in (("new", 1.15), ("seen", 1.08)):
            name = f"T = {size}, {seen}"
            note = f"{min(size, MIXED)} experts in the batch"
            yield Row("generate / bare", name, model, times.ratio(name, "bare"), bar, note)
        share = times.ratio(f"T = {size}, routing", f"T = {size}, new")
        yield Row("share of generate", f"T = {size}, embedding and routing", model, share, 0.06)
    yield Row("generate / bare", "PEFT, mixed", model, times.ratio("PEFT, mixed", "bare"), None)
    few, many = sizes[-2:]
    for seen in ("new", "seen"):
        ratio = times.ratio(f"T = {many}, {seen}", f"T = {few}, {seen}")
        yield Row("generate by tasks", f"T = {many} / T = {few}, {seen}", model, ratio, 1.02)


def answer(subject: Subject, size: int, numbers: itertools.count[int], *, new: bool) -> Work:
    """Return the routed answers of a batch, with up to eight experts in the batch.

    Args:
        subject: The model.
        size: Number of experts.
        numbers: Numbers for samples that no one has seen.
        new: Whether the samples need embeddings.
    """
    module = _evaluated(subject, size)
    if new:
        return lambda: module.answer(fresh(subject.prompts, numbers))
    module.embed(subject.prompts, remember=True)
    return lambda: module.answer(subject.prompts)


def _evaluated(subject: Subject, size: int) -> ContinualModule:
    module = subject.module(size)
    module.train(mode=False)
    live = min(size, MIXED)
    forced(module, [(module.experts[index % live],) for index in range(len(subject.prompts))])
    lengths = dict.fromkeys(subject.prompts.task_names, subject.tokens)
    module.evaluation = EvaluationPass(answer_lengths=lengths)
    return module


def _routing(subject: Subject, size: int, numbers: itertools.count[int]) -> Work:
    module = _evaluated(subject, size)
    return lambda: module.route(fresh(subject.prompts, numbers))


def _bare(subject: Subject, tokens: int) -> Work:
    return lambda: subject.base.generate(subject.prompts.inputs, tokens)


def _peft(subject: Subject, adapters: int) -> Work:
    module = subject.module(1)
    model: Any = subject.peft(module.library.count(module.experts[0]), adapters)[0]
    model.eval()
    names = [f"task{index % adapters}" for index in range(len(subject.prompts))]

    def work() -> None:
        with torch.no_grad():
            model.generate(
                **subject.prompts.inputs,
                max_new_tokens=subject.tokens,
                do_sample=False,
                adapter_names=names,
            )

    return work
