"""The allocation room against figures recorded from the official code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from recorded import Tensors, below, load_cases, naming, read_cases
from torch import Tensor, nn

from dmole.allocation import SensitivityAllocator, Unit, score_gradients


def allocate(case: dict[str, Any], fraction: float) -> set[str]:
    # the official output drops the prefix of a wrapped model
    names = [name.removeprefix("base_model.model.") for name in case["layers"]]
    units = [
        Unit(name, "vision" if name.startswith("vision") else "language", (name,), 1)
        for name in sorted(names)
    ]
    scores = dict(zip(names, case["scores"], strict=True))
    allocator = SensitivityAllocator(unit="linear", budget_fraction=fraction, vision_floor=0.25)
    plan = allocator.allocate("t", units, scores, True)
    assert len(plan.experts) == sum(plan.budget.values())
    return {entry.unit for entry in plan.experts}


def test_selection_equals_the_official_one(fixtures_dir: Path) -> None:
    compared = 0
    for case in read_cases(fixtures_dir / "algo" / "arch_selection.json"):
        chosen = allocate(case, case["budget_portion"])
        official = case["official"]
        if "raises" in official:  # the official code crashes; ours still spends the whole budget
            budget = int(len(case["layers"]) * case["budget_portion"] + 0.5)
            assert len(chosen) == max(1, budget), case["id"]
            continue
        compared += 1
        if not case.get("random_choice_used"):
            assert chosen == set(official["selected_in_order"]), case["id"]
            continue
        for tower, prefix in (("language_model", "language"), ("vision_model", "vision")):
            tie = case["ties"][tower]
            selected = {name for name in chosen if name.startswith(prefix)}
            assert set(tie["must_include"]) <= selected, case["id"]
            rest = selected - set(tie["must_include"])
            assert rest <= set(tie["tie_group"]), case["id"]
            assert len(rest) == tie["n_from_tie"], case["id"]
    assert compared


def test_cumulative_allocation_equals_the_official_one(fixtures_dir: Path) -> None:
    found: dict[str, list[int]] = {}
    for case in read_cases(fixtures_dir / "algo" / "arch_cumulative.json"):
        chosen = allocate(case, 0.5)
        for layer in case["layers"]:
            found.setdefault(layer, [])
        for layer in chosen:
            found[layer].append(case["step"])
        assert found == case["official_arch_after"], case["task"]


def toy_loss(weights: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
    """Residual blocks: h += out(tanh(in(h))), then h += tanh(ffn(h)); mean squared error."""

    def apply(name: str, h: Tensor) -> Tensor:
        return nn.functional.linear(h, weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    h, target = batch
    for tower, parts in (
        ("vision_model", ("attn.qkv", "attn.proj")),
        ("language_model", ("attention.wqkv", "attention.wo")),
    ):
        for layer in range(2):
            block = f"{tower}.layers.{layer}"
            h = h + apply(f"{block}.{parts[1]}", torch.tanh(apply(f"{block}.{parts[0]}", h)))
            h = h + torch.tanh(apply(f"{block}.ffn", h))
    return (apply("head", h) - target).square().mean()


def scores_of(case: dict[str, Any], own: Tensors) -> dict[str, float | None]:
    """Return our proxy scores of the modules that train in a recorded case."""
    named = below(own, "param.")
    model = nn.Module()
    weights = {name: nn.Parameter(value) for name, value in named.items()}
    for i, parameter in enumerate(weights.values()):
        model.register_parameter(f"p{i}", parameter)
    batches = [(own[f"batch{i}.x"], own[f"batch{i}.y"]) for i in range(case["batches_used"])]
    # frozen modules have no score in the official run; they are not offered as units here
    units = {
        unit: [p for name, p in weights.items() if name.rpartition(".")[0] == unit]
        for unit in case["scores"]
        if not (case["vision_frozen"] and unit.startswith("vision_model"))
    }
    return score_gradients(model, units, batches, lambda batch: toy_loss(weights, batch))


def test_proxy_scores_equal_the_official_ones(fixtures_dir: Path) -> None:
    for case, own in load_cases(fixtures_dir / "algo" / "zero_cost_score.json"):
        with naming(case):
            scores = scores_of(case, own)
            assert scores.keys() == {unit for unit, score in case["scores"].items() if score}
            for unit, score in scores.items():
                assert score == pytest.approx(case["scores"][unit], rel=1e-5), unit
