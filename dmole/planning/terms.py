"""Memory of the regularizers and gradient rules of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dmole import regularizers
from dmole.planning.memory import FP32, ExpertSize
from dmole.planning.rules import rule_bytes
from dmole.planning.setup import Setup
from dmole.planning.shape import ModelShape
from dmole.run.parts import PARTS

INT32 = 4


def check_terms(setup: Setup) -> None:
    """Refuse regularizers whose memory is not known.

    Raises:
        ValueError: If one is no class of this package; names it.
    """
    known = {path.rpartition(".")[2] for path in PARTS["Regularizer"]}
    for name, _ in setup.regularizers:
        if name not in known:
            raise ValueError(f"the memory of the regularizer {name} cannot be reckoned")


def has_own_passes(setup: Setup) -> bool:
    """Return whether a regularizer excludes a base model that is split over the GPUs."""
    return any(getattr(regularizers, name).passes == "own" for name, _ in setup.regularizers)


def losses_together(setup: Setup) -> int:
    """Return the number of losses of a step whose logits are in memory together."""
    return 1 + sum(name == "Distillation" for name, _ in setup.regularizers)


def kept_bytes(setup: Setup, size: ExpertSize, shape: ModelShape) -> dict[str, float]:
    """Return the bytes that regularizers and gradient rules keep on a GPU in the last stage.

    Args:
        setup: Settings of the run.
        size: The expert in training.
        shape: The base model.
    """
    kept: dict[str, float] = {"regularizers": term_bytes(setup, size.parameters, shape)}
    if setup.rules:
        kept["gradient rules"] = rule_bytes(setup.rules, size, len(setup.stages))
    return kept


def term_bytes(setup: Setup, trained: int, shape: ModelShape) -> int:
    """Return the bytes that the regularizers keep on a GPU in the last stage.

    Args:
        setup: Settings of the run.
        trained: Parameters in training.
        shape: The base model.
    """
    total = 0
    for name, arguments in setup.regularizers:
        if name == "ElasticWeights":  # one quadratic function of all past tasks
            total += 2 * FP32 * trained
        elif name == "Distillation":  # the teacher's values
            total += FP32 * trained
        elif name == "ReplayImportance":  # gradients of held-out samples and of one sample
            total += 2 * FP32 * trained
        elif name == "KeyElements":
            total += _key_element_bytes(setup, arguments, shape)
    return total


def _key_element_bytes(setup: Setup, arguments: Mapping[str, Any], shape: ModelShape) -> int:
    """Return the bytes of the key elements of all past tasks, and of the largest update."""
    weights = [inputs * outputs for inputs, outputs in shape.sizes.values()]
    share = min(1.0, arguments.get("fraction", 0.02) * (len(setup.stages) - 1))
    positions = INT32 + FP32 * (arguments.get("counting") == "each")
    # the sizes of the chosen elements are kept for the backward pass, an update has a gradient
    kept = int(share * sum(weights)) * (positions + FP32)
    return kept + 2 * FP32 * max(weights) if share > 0 else 0
