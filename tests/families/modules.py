"""A module on a tiny model of a family, and what it makes of samples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dmole.allocation import UniformAllocator
from dmole.data.batch import Batch
from dmole.data.collate import Collator
from dmole.data.sample import Sample
from dmole.models import PretrainedBackbone
from dmole.module import ContinualModule
from dmole.routing import OracleRouter
from dmole.routing.routers import route_by_name
from dmole.run.context import StageContext


def make_module(folder: Path, **options: Any) -> ContinualModule:
    backbone = PretrainedBackbone(str(folder))
    allocator = UniformAllocator(rank=2)
    return ContinualModule(
        backbone, allocator, OracleRouter(), dropout=0.0, projector_experts=True, **options
    )


def add_expert(module: ContinualModule, name: str) -> None:
    plan = module.allocator.allocate(name, module.units(), None, not module.library.names)
    module.add_expert(plan)
    module.begin_stage(StageContext(1, (name,), allocation=plan))


def batch_of(
    module: ContinualModule, samples: Sequence[Sample], tasks: Sequence[str] = ("a", "b", "a")
) -> Batch:
    """Collate samples, each of the task whose expert it shall use."""
    items = list(zip(samples, tasks, strict=False))
    generation = samples[0].turns[-1].role == "user"
    return Collator(module.backbone.processor)(items, generation=generation)


def logits(module: ContinualModule, batch: Batch) -> Tensor:
    order = [(task,) for task in batch.task_names]
    gates = module.make_gates(route_by_name(order, module.experts).gates, batch)
    with module.library.context.use(gates), torch.no_grad():
        return module.backbone.model(**batch.inputs, use_cache=False).logits
