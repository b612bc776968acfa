"""What a step runs of this package does not grow with the experts of earlier tasks."""

from __future__ import annotations

import sys
from collections import Counter
from types import FrameType, SimpleNamespace
from typing import Any

import torch
from families import make_backbone, make_batch, make_samples

import dmole
from dmole.allocation import UniformAllocator
from dmole.module import ContinualModule
from dmole.routing import OracleRouter
from dmole.run.context import StageContext

ROOT = dmole.__path__[0]


def calls_of_a_step(experts: int) -> Counter[str]:
    """Return the Python functions, generators and comprehensions that a step enters."""
    module = ContinualModule(
        make_backbone("llava"),
        UniformAllocator(rank=2, budget_fraction=1.0),
        OracleRouter(),
        dropout=0.0,
    )
    for number in range(experts):
        name = f"task{number}"
        module.add_expert(module.allocator.allocate(name, module.units(), None, number == 0))
    module._trainer = SimpleNamespace(global_step=0)
    module.log = lambda *_, **__: None
    module.begin_stage(StageContext(1, (name,)))
    module.train()
    batch = make_batch(module.backbone, make_samples((1, 0, 2)), name)
    parameters = module.trained_parameters()
    optimizer = torch.optim.SGD(list(parameters.values()))
    entered: Counter[str] = Counter()

    def note(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(ROOT):
            entered[f"{frame.f_code.co_filename}:{frame.f_code.co_name}"] += 1

    sys.setprofile(note)
    try:
        module.training_step(batch, 0).backward()
        module.on_after_backward()
        module.guard.admits(module.trained_parameters(), optimizer, module.position())
        optimizer.step()
        module.guard.check_result(module.trained_parameters(), optimizer, module.position())
    finally:
        sys.setprofile(None)
    return entered


def test_a_step_enters_as_many_functions_with_twelve_experts_as_with_three() -> None:
    calls_of_a_step(1)  # the first step imports parts of transformers
    few, many = calls_of_a_step(3), calls_of_a_step(12)
    assert few.total() > 100
    assert few == many
