"""Limits of later phases, checked before anything is trained."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from dmole.data.collate import Collator
from dmole.experts.shape import ExpertShape
from dmole.routing.generative import GenerativeRouter
from dmole.routing.mixture_routers import expert_shapes
from dmole.routing.routers import too_few

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dmole.datamodule import ContinualDataModule
    from dmole.experts.soft_prompts import Shape
    from dmole.module import ContinualModule
    from dmole.routing import Router
    from dmole.run.state import SequenceState
    from dmole.streams.stream import Stage


def check_limits(state: SequenceState, module: ContinualModule) -> None:
    """Refuse data and settings that a phase of a later stage would refuse.

    Args:
        state: Has the plan and the data.
        module: Has allocator, router and base model; stays unchanged.

    Raises:
        ValueError: If a stage has too few samples for its router or its share of batches, if an
            expert cannot be placed on the model, if the longest sample of a task does not fit, or
            if the router has no place for a new version of an expert; names task or expert.
    """
    for stage in state.plan[state.inherited.stages :]:
        _check_update(state, module.router, stage)
        _check_samples(state, module.router, stage)
        _check_longest(state.data, module.backbone.processor, stage)
    _check_experts(state, module)
    _check_exemplars(state, module.router)
    optimizer = module.make_optimizer([torch.nn.Parameter(torch.zeros(1))])
    for name, value in optimizer.defaults.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"model.optimizer: {name} must be finite, got {value}")


def _check_update(state: SequenceState, router: Router, stage: Stage) -> None:
    """Refuse a new version of an expert that the router could not put in its place."""
    past = state.updated_expert(stage)
    if past is not None and not router.selects_experts:
        raise ValueError(
            f"task {stage.tasks[0]!r} has update: true, which needs a router that selects the "
            f"expert of a task: {type(router).__name__} does not"
        )


def _check_exemplars(state: SequenceState, router: Router) -> None:
    """Refuse a router that trains on samples of earlier tasks whose files are gone."""
    gone = [task for task, split in state.data.missing if split == "train"]
    if isinstance(router, GenerativeRouter) and gone:
        raise ValueError(
            "GenerativeRouter trains on stored samples of all tasks, but training files are gone: "
            f"{', '.join(gone)}"
        )


def _check_samples(state: SequenceState, router: Router, stage: Stage) -> None:
    """Refuse a stage with too few samples for the router, or without a training batch."""
    where = f"stage {stage.index} ({', '.join(stage.tasks)})"
    count = len(state.data.arriving_items(stage))
    if message := too_few(count, type(router).__name__, router.least_samples):
        raise ValueError(f"{where} {message}")
    limit, size = state.trainer.limit_train_batches, state.data.stage_batch_size(stage.tasks)
    batches = -(-len(state.data.stage_items(stage)) // (size * state.world_size))  # rounded up
    if state.data.max_tokens_per_batch is not None and not isinstance(limit, int):
        return  # batches by tokens are not counted yet
    if (limit if isinstance(limit, int) else int(limit * batches)) < 1:
        raise ValueError(f"trainer.limit_train_batches {limit} leaves none of {batches} in {where}")


def _check_experts(state: SequenceState, module: ContinualModule) -> None:
    """Refuse experts that do not fit on the linears that they may be placed on."""
    units, seen = module.units(), set(module.library.names)
    for stage in state.plan:
        for name in reversed(stage.experts):
            if name not in seen:
                plan = module.allocator.largest(name, units, first=not seen)
                shapes = expert_shapes(plan, module.router, module.alpha)
                module.library.check_shapes(name, shapes)
                _check_scored(module, shapes)
                seen.add(name)


def _check_scored(module: ContinualModule, shapes: Mapping[str, Shape]) -> None:
    """Refuse scores of a short training for experts whose update is no single product."""
    allocator = module.allocator
    plain = all(isinstance(shape, ExpertShape) and shape.plain for shape in shapes.values())
    if allocator.needs_scores and allocator.scored_by == "training" and not plain:
        raise ValueError(
            f"{type(allocator).__name__} with score 'delta' scores plain experts, and "
            f"{type(module.router).__name__} mixes several in a linear"
        )


def _check_longest(data: ContinualDataModule, processor: Any, stage: Stage) -> None:
    """Refuse a stage whose longest sample, by characters and images, exceeds the limit."""
    items = data.stage_items(stage)
    sample, name = items[int(items.lengths().argmax())]
    collator = Collator(processor, data.collator.max_length, data.on_too_long)
    try:
        tokens = collator([(sample, name)], generation=False).inputs["input_ids"].shape[1]
    except ValueError as error:
        raise ValueError(f"task {name!r}: {error}") from error
    if (most := data.max_tokens_per_batch) is not None and tokens > most:
        raise ValueError(
            f"task {name!r}: sample {sample.id!r} has {tokens} tokens, more than "
            f"data.max_tokens_per_batch {most}"
        )
