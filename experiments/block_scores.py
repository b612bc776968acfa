"""Scores that say which blocks need an expert, from one task's samples and the base model alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dmole.allocation import Unit, score_gradients
from dmole.allocation.condition import reciprocal_condition
from dmole.allocation.inputs import InputMoments
from dmole.allocation.proxy import sum_gradients
from dmole.experts import LoRAExpert
from dmole.experts.shape import ExpertShape
from dmole.module import ContinualModule
from dmole.storage.seeds import expert_seed

Scores = dict[str, float]
"""Score by unit; the larger, the more the unit needs an expert."""
PUBLISHED = "gradient"
"""Name of the score of the paper."""


def weight_scores(
    weight: Tensor, gradient: Tensor, inputs: Tensor, down: Tensor
) -> dict[str, float]:
    r"""Return the scores of one linear from its weight and the gradient of the summed loss.

    =============  =================================================================
    per_parameter  :math:`\|G\|_2^2`, of which a unit takes the root of the mean
    relative       :math:`\|G\|_2 / \|W\|_2`
    lora_b         :math:`\|G A^\top\|_2^2`, the gradient of an expert's own ``B`` at 0
    snip           :math:`\sum_{ij} |W_{ij} G_{ij}|`
    activation     :math:`\sum_{ij} |G_{ij}| \, \|x_j\|_2`
    =============  =================================================================

    Args:
        weight: ``(out, in)``.
        gradient: ``(out, in)``.
        inputs: Root of the summed squares of each input over the tokens, ``(in,)``.
        down: The expert's ``A``, ``(rank, in)``.
    """
    norm = float(torch.linalg.vector_norm(gradient))
    size = float(torch.linalg.vector_norm(weight))
    return {
        "per_parameter": norm**2,
        "relative": norm / size if size else 0.0,
        "lora_b": float((gradient @ down.T).square().sum()),
        "snip": float((weight * gradient).abs().sum()),
        "activation": float((gradient.abs() * inputs).sum()),
    }


def unit_score(name: str, values: Sequence[float], entries: int) -> float:
    """Return the score of a unit from those of its linears.

    Args:
        name: A score of :func:`weight_scores`.
        values: Score of each linear.
        entries: Number of entries of all weights.
    """
    total = sum(values)
    if name == "per_parameter":
        return math.sqrt(total / entries)
    return math.sqrt(total) if name == "lora_b" else total


def depth_scores(units: Sequence[Unit]) -> dict[str, Scores]:
    """Return the scores that prefer the last or the first blocks of each modality."""
    last: Scores = {}
    first: Scores = {}
    for modality in dict.fromkeys(unit.modality for unit in units):
        names = [unit.name for unit in units if unit.modality == modality]
        for depth, name in enumerate(names):
            last[name] = (depth + 1) / len(names)
            first[name] = (len(names) - depth) / len(names)
    return {"last_blocks": last, "first_blocks": first}


def random_scores(units: Sequence[Unit], seed: int, draws: int) -> dict[str, Scores]:
    """Return random scores of several draws, named ``random_0`` and so on."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(draws, len(units), generator=generator).tolist()
    names = [unit.name for unit in units]
    return {f"random_{i}": dict(zip(names, row, strict=True)) for i, row in enumerate(values)}


def measured_scores(
    module: ContinualModule, units: Sequence[Unit], batches: Sequence[Any], rank: int
) -> dict[str, Scores]:
    """Return the scores of the units that come from samples or weights.

    Args:
        module: The base model without experts, in evaluation mode.
        units: The units.
        batches: Batches of the task on which they are scored.
        rank: Rank of an expert.
    """
    model, loss = module.backbone.model, module.base_loss
    paths = [path for unit in units for path in unit.linears]
    linears: dict[str, nn.Linear] = {path: model.get_submodule(path) for path in paths}  # type: ignore[misc]
    tensors = {
        unit.name: [s for path in unit.linears for s in module.backbone.gradient_sources(path)]
        for unit in units
    }
    found: dict[str, Scores] = {}
    reductions = {PUBLISHED: "sum", "batch_norm": "mean_batch_norm", "fisher": "fisher"}
    for name, reduction in reductions.items():
        scores = score_gradients(model, tensors, batches, loss, reduction=reduction)  # type: ignore[arg-type]
        found[name] = {unit: score or 0.0 for unit, score in scores.items()}
    inputs = _input_norms(linears, batches, loss)
    weights: dict[str, Any] = {path: linear.weight for path, linear in linears.items()}
    by_linear: dict[str, dict[str, float]] = {}
    for path, _, gradient in sum_gradients(model, weights, batches, loss):
        weight = weights[path].detach().float()
        down = _down(linears[path], module.seed, path, rank)
        assert gradient is not None  # one process, and every linear of a block is used
        by_linear[path] = weight_scores(weight, gradient, inputs[path], down)
    for unit in units:
        entries = sum(linears[path].weight.numel() for path in unit.linears)
        for name in by_linear[unit.linears[0]]:
            values = [by_linear[path][name] for path in unit.linears]
            found.setdefault(name, {})[unit.name] = unit_score(name, values, entries)
    found["kappa"] = {
        unit.name: sum(reciprocal_condition(weights[path].detach()) for path in unit.linears)
        / len(unit.linears)
        for unit in units
    }
    return found | depth_scores(units)


def _input_norms(
    linears: Mapping[str, nn.Module], batches: Iterable[Any], loss: Callable[[Any], Tensor]
) -> dict[str, Tensor]:
    """Return the root of the summed squares of each linear's inputs, without padding."""
    mask = torch.empty(0)

    def valid(path: str, x: Tensor) -> Tensor | None:
        text = x.shape[:2] == mask.shape  # else rows of images, which are whole
        return mask.flatten().nonzero().flatten() if text else None

    moments = InputMoments(linears, valid)
    with moments.attached(), torch.no_grad():
        for batch in batches:
            mask = batch.inputs["attention_mask"]
            loss(batch)
    sums = {path: total for path, total in moments.sums.items() if total is not None}
    return {path: total.diagonal()[:-1].sqrt() for path, total in sums.items()}


def _down(linear: nn.Linear, seed: int, path: str, rank: int) -> Tensor:
    """Return the ``A`` of a new expert on a linear, ``(rank, in)``."""
    generator = torch.Generator().manual_seed(expert_seed(seed, "score", path))
    expert = LoRAExpert(linear, ExpertShape(rank, 2.0 * rank), generator)
    return expert.lora_a.detach().float()
