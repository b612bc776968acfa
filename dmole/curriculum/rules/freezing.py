"""Freezes the parallel experts of little use for the task."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from dmole.curriculum.rules.base import GradientRule, Training
from dmole.experts import LoRAExpert

_AVERAGES = "utilization", "importance"


class UtilityFreezing(GradientRule):
    r"""Freezes, step by step, the parallel experts of a linear whose utility is low.

    With the mean probability :math:`u_i` of expert :math:`i` over the tokens of a step and its mean
    :math:`m_i` weighted by the tokens' squared inputs, both as moving averages, expert :math:`i`
    does not train while

    .. math:: \mathrm{minmax}(u)_i - \mathrm{minmax}(m)_i < \tau, \qquad
        u_i = \overline{p_i}, \quad m_i = \overline{p_i \|x\|^2}.

    Expert ``t`` always trains in stage ``t``, and the last one in all later stages. Routers
    train, and frozen experts stay in use.

    Args:
        threshold: The :math:`\tau`; None freezes nothing.
        momentum: Momentum of the moving averages.

    Raises:
        ValueError: If the momentum is not in [0, 1), or the threshold not finite.

    Source:
        SAME, 2026, https://arxiv.org/abs/2602.01990, after its code in Prism, which also takes
        frozen experts out of the mixture while it trains.
    """

    def __init__(self, threshold: float | None = 0.1, momentum: float = 0.95) -> None:
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), got {momentum}")
        if threshold is not None and not math.isfinite(threshold):
            raise ValueError(f"threshold must be a finite number or null, got {threshold}")
        self.threshold = threshold
        self.momentum = momentum
        self._averages: dict[str, dict[str, Tensor]] = {}
        self._sums: dict[str, Tensor] = {}  # (2 N + 1,): probabilities, weighted ones, tokens
        self._before: list[tuple[Tensor, Tensor, Tensor]] = []

    @property
    def observes(self) -> bool:
        """Whether experts may be frozen."""
        return self.threshold is not None

    def before_stage(self, training: Training) -> None:
        """Begin with equal utilization; the importance continues.

        Raises:
            ValueError: If no linear has parallel experts.
        """
        if not self.observes:
            return
        mixtures = _mixtures(training)
        if not mixtures:
            raise ValueError(
                "UtilityFreezing: no linear has parallel experts; it needs a TokenRouter and an "
                "allocator that gives several experts"
            )
        self._sums, old, self._averages = {}, self._averages, {}
        for path, update in mixtures.items():
            heads, device = update.shape.heads, training.device
            equal = torch.full((heads,), 1.0 / heads, device=device)
            importance = old.get(path, {}).get("importance", equal).to(device)
            self._averages[path] = {"utilization": equal.clone(), "importance": importance.clone()}
            self._sums[path] = torch.zeros(2 * heads + 1, device=device)

    def observe(self, path: str, inputs: Tensor, probabilities: Tensor | None) -> None:
        """Add probabilities to the sums of the step."""
        if probabilities is None or path not in self._sums:
            return
        probabilities = probabilities.float()  # (M, N)
        energy = inputs.square().sum(dim=1, keepdim=True)  # (M, 1)
        tokens = energy.new_full((1,), float(len(inputs)))
        parts = (probabilities.sum(dim=0), (probabilities * energy).sum(dim=0), tokens)
        self._sums[path] += torch.cat(parts)

    def pending(self) -> list[Tensor]:
        """Return the sums of the step."""
        return list(self._sums.values())

    def apply(self, training: Training) -> None:
        """Stop the gradients of the frozen experts."""
        self._before = []
        if not self.observes:
            return
        for path, update in _mixtures(training).items():
            trains = self.trains(path, training.stage).float()  # (N,)
            rank = update.shape.rank // update.shape.heads
            channels = trains.repeat_interleave(rank)  # (N r,)
            low, up = update.get_parameter("lora_a"), update.get_parameter("lora_b")
            for parameter, mask in ((low, channels[:, None]), (up, channels)):
                if parameter.grad is not None:
                    parameter.grad *= mask  # a product keeps what is not finite
                    self._before.append((parameter, parameter.detach().clone(), mask))

    def trains(self, path: str, stage: int) -> Tensor:
        """Return which experts of a linear train, ``(N,)`` bool.

        Args:
            path: Full path of the linear.
            stage: 1-based number of the stage.
        """
        averages = self._averages[path]
        score = _min_max(averages["utilization"]) - _min_max(averages["importance"])
        trains = score >= (-1.0 if self.threshold is None else self.threshold)
        trains[min(stage, len(trains)) - 1] = True
        return trains

    def after_step(self, training: Training) -> None:
        """Undo momentum and weight decay of frozen experts, and update the averages."""
        for parameter, before, mask in self._before:
            parameter.copy_(torch.where(mask > 0, parameter, before))
        for path, sums in self._sums.items():
            heads = len(sums) // 2
            usable = torch.isfinite(sums).all() & (sums[-1] > 0)
            means = (sums[:-1] / sums[-1].clamp_min(1)).view(2, heads)
            for name, mean in zip(_AVERAGES, means, strict=True):
                old = self._averages[path][name]
                new = self.momentum * old + (1 - self.momentum) * mean
                self._averages[path][name] = torch.where(usable, new, old)

    def clear(self) -> None:
        """Forget the sums and the parameters before the step."""
        self._before = []
        for sums in self._sums.values():
            sums.zero_()

    def tensors(self) -> dict[str, Tensor]:
        """Return the averages."""
        return {
            f"{path}/{name}": value
            for path, averages in self._averages.items()
            for name, value in averages.items()
        }

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the averages."""
        found: dict[str, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            path, _, name = key.rpartition("/")
            if name not in _AVERAGES or tensor.ndim != 1:
                raise ValueError(f"the state {key!r:.80} is unknown or of another shape")
            sums = self._sums.get(path)
            if sums is not None and len(sums) != 2 * len(tensor) + 1:
                raise ValueError(f"the state {key!r:.80} is of another number of experts")
            value = tensor.clone() if sums is None else tensor.clone().to(sums.device)
            found.setdefault(path, {})[name] = value
        self._averages = found


def _mixtures(training: Training) -> dict[str, LoRAExpert]:
    """Return the updates with parallel experts, by path."""
    return {
        path: update
        for path, update in training.updates()
        if update.shape.heads > 1 and update.shape.branches == 1
    }


def _min_max(values: Tensor) -> Tensor:
    """Return values moved and scaled to [0, 1]; zeros if all are equal."""
    low, high = values.min(), values.max()
    return (values - low) / (high - low).clamp_min(torch.finfo(torch.float32).tiny)
