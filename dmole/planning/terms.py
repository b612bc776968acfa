"""Memory of the regularizers and gradient rules of a run."""

from __future__ import annotations

from dmole import regularizers
from dmole.planning.memory import FP32, ExpertSize
from dmole.planning.rules import rule_bytes
from dmole.planning.setup import Setup
from dmole.run.parts import PARTS


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


def kept_bytes(setup: Setup, size: ExpertSize) -> dict[str, float]:
    """Return the bytes that regularizers and gradient rules keep on a GPU in the last stage.

    Args:
        setup: Settings of the run.
        size: The expert in training.
    """
    kept: dict[str, float] = {"regularizers": term_bytes(setup, size.parameters)}
    if setup.rules:
        kept["gradient rules"] = rule_bytes(setup.rules, size, len(setup.stages))
    return kept


def term_bytes(setup: Setup, trained: int) -> int:
    """Return the bytes that the regularizers keep on a GPU in the last stage.

    Args:
        setup: Settings of the run.
        trained: Parameters in training.
    """
    total = 0
    for name, _ in setup.regularizers:
        if name == "ElasticWeights":  # one quadratic function of all past tasks
            total += 2 * FP32 * trained
        elif name == "Distillation":  # the teacher's values
            total += FP32 * trained
        elif name == "ReplayImportance":  # gradients of held-out samples and of one sample
            total += 2 * FP32 * trained
    return total
