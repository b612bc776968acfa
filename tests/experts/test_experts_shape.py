"""The form of an expert in a layer: its numbers, and the tensors that come of it."""

from __future__ import annotations

import doctest
import json
from typing import Any

import pytest
import torch
from torch import nn

import dmole.experts.shape
from dmole.experts import ExpertShape, LoRAExpert

SHAPES = {
    "plain": ExpertShape(3, 6.0),
    "side by side": ExpertShape(6, 12.0, heads=3),
    "branches": ExpertShape(2, 4.0, branches=4),
    "router alone": ExpertShape(0, 4.0, branches=0, heads=4),
    "with a router over two": ExpertShape(3, 6.0, heads=2),
}
TENSORS = {
    "plain": {"lora_a": (3, 7), "lora_b": (5, 3)},
    "side by side": {"lora_a": (6, 7), "lora_b": (5, 6), "router": (3, 7)},
    "branches": {"lora_a": (2, 7)} | {f"lora_b_{index}": (5, 2) for index in range(4)},
    "router alone": {"router": (4, 7)},
    "with a router over two": {"lora_a": (3, 7), "lora_b": (5, 3), "router": (2, 7)},
}


def make(shape: ExpertShape, seed: int = 0) -> LoRAExpert:
    return LoRAExpert(nn.Linear(7, 5), shape, torch.Generator().manual_seed(seed))


@pytest.fixture(params=SHAPES)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def test_examples_in_the_docstrings_hold() -> None:
    result = doctest.testmod(dmole.experts.shape)
    assert result.attempted
    assert result.failed == 0


def test_an_expert_has_the_tensors_of_its_shape_and_as_many_numbers_as_are_counted(
    kind: str,
) -> None:
    expert = make(SHAPES[kind])
    assert {name: tuple(p.shape) for name, p in expert.named_parameters()} == TENSORS[kind]
    assert sum(p.numel() for p in expert.parameters()) == SHAPES[kind].count(7, 5)
    flags = {name: tuple(b.shape) for name, b in expert.named_buffers()}
    assert flags == ({"frozen": (4,), "trunk_frozen": (1,)} if kind == "branches" else {})


def test_up_projections_start_at_zero_and_the_rest_is_drawn(kind: str) -> None:
    for name, parameter in make(SHAPES[kind]).named_parameters():
        assert bool(parameter.any()) != name.startswith("lora_b")


def test_a_shape_survives_json(kind: str) -> None:
    numbers = json.loads(json.dumps(SHAPES[kind].to_list()))
    assert ExpertShape.from_list(numbers) == SHAPES[kind]
    assert len(numbers) == (2 if kind == "plain" else 4)  # plain LoRA reads as it always did


def test_parallel_experts_are_scaled_each_by_its_rank() -> None:
    assert make(ExpertShape(6, 12.0, heads=3)).scaling == make(ExpertShape(2, 4.0)).scaling


def test_what_is_frozen_of_branches_does_not_train() -> None:
    expert = make(SHAPES["branches"])
    assert len(list(expert.trainable())) == 5
    expert.frozen[1] = 1.0
    names = {id(p): name for name, p in expert.named_parameters()}
    assert {names[id(p)] for p in expert.trainable()} == {
        *("lora_a", "lora_b_0", "lora_b_2", "lora_b_3")
    }
    expert.trunk_frozen.fill_(1.0)
    assert {names[id(p)] for p in expert.trainable()} == {"lora_b_0", "lora_b_2", "lora_b_3"}


HIDDEN, INNER, DEPTH = 4096, 11008, 32
LAYERS = [(HIDDEN, HIDDEN)] * 4 + [(HIDDEN, INNER)] * 2 + [(INNER, HIDDEN)]
"""Linears of a block of the published 7B model."""
PROJECTOR = (1024 + 1) * HIDDEN + (HIDDEN + 1) * HIDDEN


@pytest.mark.parametrize(
    ("shapes", "millions"),
    [
        ([ExpertShape(128, 256.0, heads=8)], 349.9),  # MoELoRA: 8 experts of rank 16
        (
            [ExpertShape(16, 32.0, branches=8), ExpertShape(0, 1.0, branches=0, heads=8)],
            222.4,  # BranchLoRA: a trunk of rank 16, 8 branches, the router of one task
        ),
    ],
)
def test_counts_of_the_published_models_follow_from_their_widths(
    shapes: list[Any], millions: float
) -> None:
    block = sum(shape.count(*size) for size in LAYERS for shape in shapes)
    assert round((DEPTH * block + PROJECTOR) / 1e6, 1) == millions
