"""Keeps gradients that are not finite out of the experts, their optimizer and the checkpoints."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dmole.steps.finite import (
    NonFiniteError,
    describe,
    first_reason,
    not_finite,
    on_any_rank,
    optimizer_tensors,
    overflows,
    sample_list,
)

log = logging.getLogger("dmole")


class StepGuard:
    """Checks each optimizer step on all ranks together, before and after it is made.

    Args:
        allowed: Steps of a stage that may be left out because a gradient is not finite.

    Attributes:
        skipped: Steps of the stage that were left out so far.
        scaler_skips: Steps of the stage that the loss scaler of ``16-mixed`` left out in this
            process, which is part of its search for a scale.

    Raises:
        ValueError: If ``allowed`` is negative.
    """

    def __init__(self, allowed: int = 0) -> None:
        if allowed < 0:
            raise ValueError(f"skip_nonfinite_steps must not be negative, got {allowed}")
        self.allowed = allowed
        self.begin()

    def begin(self, skipped: int = 0) -> None:
        """Begin a stage, or resume one in which steps were left out before."""
        self.skipped = skipped
        self.scaler_skips = 0
        self._records: list[dict[str, str]] = []
        self._keys: list[str] = []
        self._problem = ""

    def enter(self, keys: Sequence[str], first: bool) -> None:
        """Note the samples of a micro-batch; the first one of a step begins it."""
        if first:
            self._keys, self._problem = [], ""
        self._keys += keys

    def report(self, problem: str) -> None:
        """Note a value of the loss that is not finite; its step will be left out.

        Raises:
            NonFiniteError: If no further step may be left out.
        """
        if self.skipped >= self.allowed:
            raise NonFiniteError(problem)
        self._problem = self._problem or problem

    def admits(
        self, named: Mapping[str, Tensor], optimizer: Any, position: str, scaler: Any = None
    ) -> bool:
        """Return whether the gradients may be clipped and used. All ranks must call it.

        If not, they are removed, so that the optimizer changes nothing. A step that the loss
        scaler leaves out does not count while its scale is above 1: until then the scale causes
        the overflow.

        Args:
            named: All parameters that train, by a name for messages.
            optimizer: The optimizer.
            position: Step and expert, for messages.
            scaler: The loss scaler of ``16-mixed``.

        Raises:
            NonFiniteError: If no further step may be left out; names parameter and samples.
        """
        gradients = {name: p.grad for name, p in named.items()}
        present = [gradient for gradient in gradients.values() if gradient is not None]
        device = next(iter(named.values())).device
        flag = torch.ones(()) if self._problem else overflows(present)
        if not on_any_rank(flag, device):
            return True
        scaled = scaler is not None and scaler.get_scale() > 1
        if scaled and on_any_rank(not_finite(present), device):
            self.scaler_skips += 1
        else:
            gradient = describe(gradients)
            problem = self._problem or (gradient and f"the gradient of {gradient} {position}")
            self._leave_out(first_reason(problem), position)
        optimizer.zero_grad(set_to_none=True)
        return False

    def _leave_out(self, reason: str, position: str) -> None:
        samples = sample_list(self._keys)
        named = reason if "; samples: " in reason else f"{reason}; samples: {samples}"
        if self.skipped >= self.allowed:
            raise NonFiniteError(f"{named}; the step was not made")
        self.skipped += 1
        self._records.append({"reason": reason, "samples": samples})
        log.warning("skipped step %d of at most %d: %s", self.skipped, self.allowed, named)

    def collect(self) -> list[dict[str, str]]:
        """Return reason and samples of the steps that were left out since the last call."""
        records, self._records = self._records, []
        return records

    def check_result(self, named: Mapping[str, Tensor], optimizer: Any, position: str) -> None:
        """Refuse parameters or a state of the optimizer that a step has made non-finite.

        All ranks must call it.

        Raises:
            NonFiniteError: Names the parameter, or the entry of the state.
        """
        state = optimizer_tensors(optimizer)
        device = next(iter(named.values())).device
        tensors = [*named.values(), *state.values()]
        flag = sum(not_finite(part).to(device) for part in _by_device(tensors))
        if not on_any_rank(torch.as_tensor(flag), device):
            return
        reason = describe(named) or describe(
            {f"the optimizer's state {key}": value for key, value in state.items()}
        )
        raise NonFiniteError(
            f"{first_reason(reason)} after a step {position} with finite gradients; "
            f"samples: {sample_list(self._keys)}"
        )


def _by_device(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """Return the tensors of each device; counters of an optimizer may be on the CPU."""
    groups: dict[torch.device, list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault(tensor.device, []).append(tensor)
    return list(groups.values())
