"""Keeps gradients that are not finite out of the experts, their optimizer and the checkpoints."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dmole.steps.finite import (
    NonFiniteError,
    any_not_finite,
    describe,
    first_reason,
    not_finite,
    on_any_rank,
    optimizer_tensors,
    overflows,
    sample_list,
)
from dmole.transfer import to_device

log = logging.getLogger("dmole")


class _Result(NamedTuple):
    """The check of a step's result that the host has not read yet.

    Args:
        flag: 1.0 if a value is not finite, a scalar.
        named: All parameters that train, by a name for messages.
        optimizer: The optimizer.
        position: Step and expert, for messages.
        keys: Samples of the step on this rank.
    """

    flag: Tensor
    named: Mapping[str, Tensor]
    optimizer: Any
    position: str
    keys: list[str]


class StepGuard:
    """Checks each optimizer step on all ranks together, before and after it is made.

    The host waits for the device once a step, before it is made, and reads three flags: whether
    the loss, a gradient, or the result of the step before is not finite.

    Args:
        allowed: Steps of a stage that may be left out because a gradient is not finite.

    Attributes:
        skipped: Steps of the stage that were left out so far.
        scaler_skips: Steps of the stage that the loss scaler of ``16-mixed`` left out in this
            process, which is part of its search for a scale.
        admitted: Whether the last step was made.

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
        self.admitted = False
        self._records: list[dict[str, str]] = []
        self._keys: list[str] = []
        self._watched: list[tuple[Tensor, Callable[[], str]]] = []
        self._result: _Result | None = None

    def enter(self, keys: Sequence[str], first: bool) -> None:
        """Note the samples of a micro-batch; the first one of a step begins it."""
        if first:
            self._keys, self._watched = [], []
        self._keys += keys

    def watch(self, value: Tensor, describe: Callable[[], str]) -> None:
        """Leave the step out if a part of its loss is not finite, without waiting for it now.

        Args:
            value: The part on this rank, a scalar.
            describe: Returns a message if it is not finite.
        """
        self._watched.append((value.detach(), describe))

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
            NonFiniteError: If no further step may be left out; names parameter and samples. Also
                if the step before had a result that is not finite, see :meth:`check_result`.
        """
        gradients = {name: p.grad for name, p in named.items()}
        present = [gradient for gradient in gradients.values() if gradient is not None]
        device = next(iter(named.values())).device
        loss = any_not_finite(value for value, _ in self._watched)
        result, self._result = self._result, None
        before = torch.zeros(()) if result is None else result.flag
        self.admitted = False
        in_result, in_loss, in_gradients = on_any_rank([before, loss, overflows(present)], device)
        if in_result:
            raise _result_error(result)
        if not in_loss and not in_gradients:
            self.admitted = True
            return True
        scaled = not in_loss and scaler is not None and scaler.get_scale() > 1
        if scaled and on_any_rank([not_finite(present)], device)[0]:
            self.scaler_skips += 1
        else:
            gradient = "" if in_loss else describe(gradients)
            problem = self._loss_problem() or (
                gradient and f"the gradient of {gradient} {position}"
            )
            self._leave_out(first_reason(problem), position)
        optimizer.zero_grad(set_to_none=True)
        return False

    def _loss_problem(self) -> str:
        """Return the message of the first part of the loss that is not finite on this rank."""
        texts = (text() for value, text in self._watched if not torch.isfinite(value))
        return next(texts, "")

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
        """Check parameters and state of the optimizer after a step, without waiting for them now.

        The next :meth:`admits` or :meth:`drain` refuses what is not finite.
        """
        tensors = [*named.values(), *optimizer_tensors(optimizer).values()]
        device = next(iter(named.values())).device
        flags = [to_device(not_finite(part), device) for part in _by_device(tensors)]
        self._result = _Result(torch.stack(flags).amax(), named, optimizer, position, self._keys)

    def drain(self) -> None:
        """Wait for the check of the last step. All ranks must call it.

        Raises:
            NonFiniteError: If a parameter or an entry of the optimizer's state is not finite after
                that step; names it.
        """
        result, self._result = self._result, None
        if result is not None and on_any_rank([result.flag], result.flag.device)[0]:
            raise _result_error(result)


def _result_error(result: _Result | None) -> NonFiniteError:
    """Return the error of a step whose result is not finite. All ranks must call it."""
    assert result is not None  # only a result sets the flag, on all ranks
    reason = describe(result.named) or describe(
        {
            f"the optimizer's state {key}": value
            for key, value in optimizer_tensors(result.optimizer).items()
        }
    )
    return NonFiniteError(
        f"{first_reason(reason)} after a step {result.position} with finite gradients; "
        f"samples: {sample_list(result.keys)}"
    )


def _by_device(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """Return the tensors of each device; counters of an optimizer may be on the CPU."""
    groups: dict[torch.device, list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault(tensor.device, []).append(tensor)
    return list(groups.values())
