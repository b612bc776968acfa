"""Starts a new expert outside of what the base model and earlier tasks use (KeepLoRA)."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from dmole.allocation.initializers.base import Initializer, NewLinear, Source, Values
from dmole.allocation.initializers.directions import (
    completed,
    missing_directions,
    orthonormal,
    principal_directions,
    top_directions,
    without,
)
from dmole.allocation.inputs import second_moment

Directions = Literal["features", "gradients"]


class KeepInitializer(Initializer):
    r"""Sets ``A`` to directions of the gradient outside of a kept subspace; ``A`` stays fixed.

    .. math:: (\nabla_W L)(I - K^\top K) = U S V^\top, \qquad A = V_{1..r}^\top, \qquad B = 0

    The rows of :math:`K` are an orthonormal basis of two subspaces of the linear's input:

    - the leading right singular vectors of the base weight, below a share ``weight_energy`` of its
      energy;
    - the directions that the linear's inputs (``features``) or the gradients of its weight
      (``gradients``) had after each earlier task. After a stage the leading directions outside of
      the basis are added until it holds a share ``task_energy`` of the energy.

    As ``A`` is fixed, every update of the weight lies outside of the kept subspace. Where fewer
    directions than the rank are left, the remaining rows of ``A`` are orthonormal ones from the
    span of the Kaiming values, outside of the kept subspace; without any direction left they are 0.

    Cost: that of :class:`GradientInitializer` before a stage, and after it that of the same or, for
    ``features``, of :class:`EvaInitializer`; a singular value decomposition of each base weight
    each time. Checkpoints hold the directions of the tasks: ``k * in`` float32 numbers a linear,
    ``k`` at most the width ``in``; those of the weights are computed again.

    Args:
        proxy_fraction: See :class:`Initializer`.
        proxy_passes: See :class:`Initializer`.
        weight_energy: Share of the base weight's energy, in ``[0, 1]``; 0 keeps no direction of it.
        task_energy: Share of the energy of each task's features or gradients, in ``[0, 1]``; 0
            keeps no direction of the tasks.
        directions: ``features`` (the paper) or ``gradients`` (the release for LLaVA).
        fix_down: Whether ``A`` is fixed, as published.

    Raises:
        ValueError: If an argument is out of range.

    Source:
        KeepLoRA, 2026, https://arxiv.org/abs/2601.19659, and its code.
    """

    source = "gradients"

    def __init__(
        self,
        *,
        proxy_fraction: float = 0.2,
        proxy_passes: int = 1,
        weight_energy: float = 0.6,
        task_energy: float = 0.99,
        directions: Directions = "features",
        fix_down: bool = True,
    ) -> None:
        super().__init__(proxy_fraction=proxy_fraction, proxy_passes=proxy_passes)
        for name, value in (("weight_energy", weight_energy), ("task_energy", task_energy)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {value}")
        if directions not in get_args(Directions):
            raise ValueError(
                f"directions must be one of {get_args(Directions)}, got {directions!r}"
            )
        self.weight_energy = weight_energy
        self.task_energy = task_energy
        self.directions: Directions = directions
        self.fix_down = fix_down

    @property
    def fixes_down(self) -> bool:  # type: ignore[override]
        """Whether ``lora_a`` is fixed."""
        return self.fix_down

    @property
    def reads_weights(self) -> bool:  # type: ignore[override]
        """Whether directions of the base weights are kept."""
        return self.weight_energy > 0

    @property
    def kept_source(self) -> Source:  # type: ignore[override]
        """What the directions of a task come from."""
        if not self.task_energy:
            return "nothing"
        return "inputs" if self.directions == "features" else "gradients"

    def start(self, linear: NewLinear, measured: Tensor | None) -> Values:
        """Return singular vectors of the gradient outside of the kept subspace."""
        basis = self._basis(linear)
        rows = linear.down.new_zeros(0, linear.down.shape[1])
        if measured is not None:
            norm = float(torch.linalg.vector_norm(measured)) if len(basis) else 0.0
            rows = top_directions(without(measured, basis), linear.rank, scale=norm)
            rows = orthonormal(without(rows, basis)) if len(basis) else rows
        return Values(completed(rows, linear.down, basis), found=len(rows))

    def keep(self, linear: NewLinear, measured: Tensor | None) -> Tensor:
        """Return the kept directions of the tasks, with those of the stage that has ended."""
        if measured is None:
            return linear.kept
        if self.directions == "features":
            moments = second_moment(measured, center=False)
        else:
            moments = measured.t() @ measured  # (in, in)
        new = missing_directions(moments, self._basis(linear), self.task_energy)
        return torch.cat([linear.kept, new])

    def _basis(self, linear: NewLinear) -> Tensor:
        """Return the orthonormal directions of the weight, then those of the tasks."""
        if not self.weight_energy:
            return linear.kept
        principal = principal_directions(linear.weight(), self.weight_energy)
        # both are orthonormal, but a weight that is decomposed on another device has other bits
        return orthonormal(torch.cat([principal, linear.kept.to(principal.device)]))
