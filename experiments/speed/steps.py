"""Training steps: against PEFT with as many parameters, by tasks learned, with partners."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from dmole.data import Batch
from dmole.module import ContinualModule
from experiments.gpu.routed import training_step
from experiments.speed.page import Row, cost_rows
from experiments.speed.subjects import Subject, forced, fresh, share
from experiments.speed.timing import Work, take_turns

BARS: Mapping[str, Mapping[str, float]] = {
    "half of the blocks, T = 1": {"tiny": 0.80, "medium": 0.86, "wide": 0.91},
    "T = 8, embeddings new": dict.fromkeys(("tiny", "medium", "wide"), 0.95),
    "T = 32, embeddings new": dict.fromkeys(("tiny", "medium", "wide"), 0.95),
}

REFERENCES = ("PEFT, all blocks", "bare forward", "floor")
"""Works that the cost model is fitted to."""


def steps(subject: Subject, rounds: int, sizes: tuple[int, ...] = (8, 32)) -> Iterator[Row]:
    """Yield the ratios of training steps.

    Args:
        subject: The model.
        rounds: Rounds of the clock.
        sizes: Numbers of experts beyond one; the last one also has partners.
    """
    first = subject.module(1)
    parameters = first.library.count(first.experts[0])
    adapted, rank = subject.peft(parameters)
    theirs = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    works: dict[str, Work] = {
        "PEFT, all blocks": _plain_step(adapted, subject.train),
        "bare forward": _forward(subject),
        "floor": _floor(subject, first),
        "half of the blocks, T = 1": training_step(first, subject.train),
    }
    numbers = itertools.count()
    for size in sizes:
        for name, new, partners in (
            ("embeddings known", False, 0),
            ("embeddings new", True, 0),
            ("a partner on half", False, 1),
            ("partners that differ", False, size - 1),
        ):
            key = f"T = {size}, {name}"
            works[key] = step(subject, size, numbers, new=new, partners=partners)
    times = take_turns(works, rounds)
    note = f"{parameters:,} parameters; PEFT's rank {rank}: {theirs:,}"
    for name in works:
        if not name.startswith("PEFT"):
            bar = BARS.get(name, {}).get(subject.name)
            ratio = times.ratio(name, "PEFT, all blocks")
            yield Row("training step / PEFT", name, subject.name, ratio, bar, note)
    for size in sizes:
        for name, other, bar in (
            ("a partner on half", f"T = {size}, embeddings known", 1.05),
            ("partners that differ", "half of the blocks, T = 1", 1.08),
            ("embeddings known", "half of the blocks, T = 1", None),
        ):
            what = f"T = {size}: {name} / {other}"
            ratio = times.ratio(f"T = {size}, {name}", other)
            yield Row("training steps compared", what, subject.name, ratio, bar)
    yield from cost_rows("step", subject.name, works, times, REFERENCES)


def step(
    subject: Subject, size: int, numbers: itertools.count[int], *, new: bool, partners: int
) -> Work:
    """Return a training step of the last of some experts.

    Args:
        subject: The model.
        size: Number of experts.
        numbers: Numbers for samples that no one has seen.
        new: Whether the samples need embeddings.
        partners: Number of past experts that samples have as partners: none, one of which half of
            the samples have, or several in turn. They are set after the router's own work.
    """
    module = subject.module(size)
    batch, current = subject.train, module.experts[-1]
    order: list[tuple[str, ...]] = [(current,)] * len(batch)
    for index in range(len(batch)) if partners else ():
        if partners > 1 or index % 2:
            order[index] = (current, module.experts[index % partners])
    forced(module, order)
    if not new:
        module.embed(batch, remember=True)
        return training_step(module, batch)
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-5)

    def work() -> None:
        module.training_step(fresh(batch, numbers), 0).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return work


def _plain_step(model: Any, batch: Batch) -> Work:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-5)
    model.train()

    def work() -> None:
        model(**batch.inputs, labels=batch.labels, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return work


def _forward(subject: Subject) -> Work:
    model = subject.base.model

    def work() -> None:
        with torch.no_grad():
            model(**subject.train.inputs, labels=subject.train.labels, use_cache=False)

    return work


def _floor(subject: Subject, module: ContinualModule) -> Work:
    """Return forward and backward pass of the bare model to the lowest block with an expert."""
    base = share(subject.base)
    held = {path for path, _ in module.library.experts(module.experts[0])}
    lowest = next(block for block in base.blocks if held & set(block.linears))

    def start(_: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        states = arguments[0] if arguments else options["hidden_states"]
        states = states.detach().requires_grad_()
        if arguments:
            return (states, *arguments[1:]), options
        return arguments, {**options, "hidden_states": states}

    model: Any = base.model
    model.get_submodule(lowest.path).register_forward_pre_hook(start, with_kwargs=True)

    def work() -> None:
        model(**subject.train.inputs, labels=subject.train.labels, use_cache=False).loss.backward()

    return work
