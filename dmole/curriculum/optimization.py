"""Parameter groups by modality and the shape of the learning rate over a stage."""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.optim.lr_scheduler import LambdaLR

from dmole.modality import MODALITIES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from lightning.pytorch import Trainer
    from torch import nn

Schedule = Literal["cosine", "linear", "constant"]
"""Shape of the learning rate after the warm-up."""


def parameter_groups(named: Iterable[tuple[str, nn.Parameter]]) -> list[dict[str, Any]]:
    """Return one optimizer group for each modality that has parameters, named after it.

    Args:
        named: Pairs of modality and parameter.
    """
    groups: dict[str, list[nn.Parameter]] = {modality: [] for modality in MODALITIES}
    for modality, parameter in named:
        groups[modality].append(parameter)
    return [
        {"name": modality, "params": parameters}
        for modality, parameters in groups.items()
        if parameters
    ]


def learning_rate_factor(step: int, steps: int, warmup: float, schedule: Schedule) -> float:
    """Return the factor on the peak learning rate before an optimizer step.

    Args:
        step: 0-based step within the stage.
        steps: Steps of the stage.
        warmup: Share of the steps in which the factor rises linearly to 1.
        schedule: Shape after the warm-up: a half cosine or a line to 0, or constant 1.

    Example:
        >>> [round(learning_rate_factor(s, 10, 0.2, "cosine"), 2) for s in (0, 1, 2, 6, 9)]
        [0.5, 1.0, 1.0, 0.5, 0.04]
    """
    rising = math.ceil(warmup * steps)
    if step < rising:
        return (step + 1) / rising
    if schedule == "constant":
        return 1.0
    progress = min(1.0, (step - rising) / max(1, steps - rising))
    return 1.0 - progress if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))


def scheduled(optimizer: Any, steps: int, warmup: float, schedule: Schedule) -> LambdaLR:
    """Return the schedule of an optimizer's learning rates, see :func:`learning_rate_factor`."""
    return LambdaLR(optimizer, lambda step: learning_rate_factor(step, steps, warmup, schedule))


def clip_gradients(trainer: Trainer, parameters: Sequence[nn.Parameter]) -> float:
    """Clip gradients outside of a fit as the trainer would in it; return their norm before that.

    Args:
        trainer: Has ``gradient_clip_val``, None or 0 for no limit, and ``gradient_clip_algorithm``.
        parameters: The parameters; those without a gradient have no part.
    """
    limit, by_value = trainer.gradient_clip_val, trainer.gradient_clip_algorithm == "value"
    most = float(limit) if limit and not by_value else math.inf
    norm = clip_grad_norm_(parameters, most)
    if limit and by_value:
        clip_grad_value_(parameters, float(limit))
    return float(norm)


@contextmanager
def scaled_learning_rates(optimizer: Any, scale: Mapping[str, float]) -> Iterator[None]:
    """Multiply the learning rate of named groups for one step, then restore it.

    Scaled gradients would have no effect with Adam, whose step does not depend on their size.
    """
    groups = optimizer.param_groups
    rates = [group["lr"] for group in groups]
    for group in groups:
        group["lr"] = group["lr"] * scale.get(group.get("name", ""), 1.0)
    try:
        yield
    finally:
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate
