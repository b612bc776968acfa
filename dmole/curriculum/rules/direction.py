"""Adds the direction away from the parameters after earlier tasks to the gradient."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from dmole.curriculum.rules.base import GradientRule, Training
from dmole.storage.seeds import derive_seed
from dmole.transfer import to_device


class PastDirection(GradientRule):
    r"""Adds :math:`\theta - \theta_{old}`, which stands for the missing gradient of earlier tasks.

    .. math:: G \leftarrow G + b\, \min\left(1, \frac{\|G\|}{\|g\|}\right) g, \qquad
        g = \theta - \theta_{old}, \qquad b \sim \mathrm{Bernoulli}(\alpha)

    :math:`\theta_{old}` are the parameters after the last stage. The norms are over all parameters
    of the stage, and :math:`b` is drawn once in a step, alike on all ranks.

    Args:
        probability: The :math:`\alpha`; 0 disables the rule.

    Raises:
        ValueError: If the probability is not in [0, 1].

    Source:
        DGG, 2025, https://arxiv.org/abs/2511.15164.
    """

    def __init__(self, probability: float = 0.5) -> None:
        if not 0 <= probability <= 1:
            raise ValueError(f"probability must be in [0, 1], got {probability}")
        self.probability = probability
        self._old: dict[str, Tensor] = {}

    def before_stage(self, training: Training) -> None:
        """Place the old parameters beside the current ones.

        Raises:
            ValueError: If the stage trains other parameters than the last one.
        """
        if not self._old:
            return
        current = training.parameters()
        if self._old.keys() != current.keys():
            raise ValueError(
                "PastDirection needs one adapter that all stages train: give the stream "
                "a shared_expert"
            )
        self._old = {key: to_device(self._old[key], training.device) for key in current}

    def apply(self, training: Training) -> None:
        """Add the direction with the probability."""
        if not self._old or not self._drawn(training):
            return
        current = training.parameters()
        gradients = [p.grad for p in current.values() if p.grad is not None]
        away = [p - self._old[key] for key, p in current.items() if p.grad is not None]
        length, limit = _norm(away), _norm(gradients)
        factor = (limit / length.clamp_min(torch.finfo(torch.float32).tiny)).clamp(max=1.0)
        # a gradient that is not finite stays in its parameter, which the check of the step names
        factor = torch.where(torch.isfinite(factor), factor, torch.zeros_like(factor))
        for gradient, direction in zip(gradients, away, strict=True):
            gradient += factor.to(gradient.device) * direction

    def _drawn(self, training: Training) -> bool:
        seed = derive_seed(training.seed, "past direction", training.number)
        generator = torch.Generator().manual_seed(seed)
        return float(torch.rand((), generator=generator)) < self.probability

    def after_stage(self, training: Training) -> None:
        """Keep the parameters."""
        if self.probability:
            self._old = {k: p.detach().clone() for k, p in training.parameters().items()}

    def tensors(self) -> dict[str, Tensor]:
        """Return the old parameters."""
        return dict(self._old)

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the old parameters; their names are checked before a stage."""
        old = self._old
        self._old = {key: value.clone() for key, value in tensors.items()}
        for key in self._old.keys() & old.keys():
            if self._old[key].shape != old[key].shape:
                raise ValueError(f"the old parameter {key} has another shape")
            self._old[key] = to_device(self._old[key], old[key].device)


def _norm(tensors: list[Tensor]) -> Tensor:
    """Return the norm of all entries of some tensors, a scalar on the device of the first."""
    norms = [torch.linalg.vector_norm(tensor.float()) for tensor in tensors]
    joined = torch.stack([norm.to(norms[0].device) for norm in norms])
    total: Tensor = torch.linalg.vector_norm(joined)
    return total
