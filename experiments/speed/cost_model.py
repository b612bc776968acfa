"""A cost model of two numbers: seconds for an operator call and for a floating-point operation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from experiments.speed.timing import Times, Work

VIEWS = frozenset({"view", "detach", "t", "transpose", "expand", "slice", "select", "unsqueeze"})
"""Operators that only make a new header of the same storage; they are not counted."""


@dataclass(frozen=True)
class Amount:
    """What a work does.

    Args:
        calls: Calls of operators that compute or copy.
        flops: Floating-point operations of its matrix products.
    """

    calls: int
    flops: int


@dataclass(frozen=True)
class CostModel:
    """Seconds as ``calls * per_call + flops * per_flop``."""

    per_call: float
    per_flop: float

    def seconds(self, amount: Amount) -> float:
        """Return the predicted seconds of a work."""
        return amount.calls * self.per_call + amount.flops * self.per_flop


class _CountCalls(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        self.calls += func.overloadpacket.__name__ not in VIEWS
        return func(*args, **(kwargs or {}))


def amount_of(work: Work) -> Amount:
    """Count the operators of a work, its backward pass included."""
    counter = _CountCalls()
    with counter:
        work()
    with FlopCounterMode(display=False) as flops:
        work()
    return Amount(counter.calls, flops.get_total_flops())


def fitted(amounts: Mapping[str, Amount], times: Times) -> CostModel:
    """Fit the two numbers to works, so that their relative errors are least.

    Args:
        amounts: The works to fit to; at least two that differ.
        times: Their seconds.
    """
    rows, ones = [], []
    for name, amount in amounts.items():
        seconds = times.median(name)
        rows.append([amount.calls / seconds, amount.flops / seconds])
        ones.append(1.0)
    per_call, per_flop = np.linalg.lstsq(np.array(rows), np.array(ones), rcond=None)[0]
    return CostModel(float(per_call), float(per_flop))
