"""A cost model of three numbers: seconds for an operator call, an operation and a byte.

A work is counted without a clock: calls of operators, floating-point operations of its products,
bytes that operators read and write. The three numbers are fitted to works of the bare model and of
PEFT on the same machine; the times of dmole are then predicted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from experiments.speed.timing import Times, Work

VIEWS = frozenset(
    {"alias", "as_strided", "detach", "expand", "permute", "select", "slice", "split", "squeeze"}
    | {"t", "transpose", "unbind", "unsqueeze", "view", "_unsafe_view"}
)
"""Operators that only make a new header of the same storage; they are not counted."""


@dataclass(frozen=True)
class Amount:
    """What a work does.

    Args:
        calls: Calls of operators that compute or copy.
        flops: Floating-point operations of its matrix products.
        bytes: Sizes of the tensors that these operators read and write.
    """

    calls: int
    flops: int
    bytes: int


@dataclass(frozen=True)
class CostModel:
    """Seconds as a weighted sum of calls, operations and bytes."""

    per_call: float
    per_flop: float
    per_byte: float

    def seconds(self, amount: Amount) -> float:
        """Return the predicted seconds of a work."""
        pairs = zip(astuple(self), astuple(amount), strict=True)
        return float(sum(price * count for price, count in pairs))


class _Count(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls = self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ not in VIEWS:
            self.calls += 1
            tensors = [
                leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor)
            ]
            self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return out


def amount_of(work: Work) -> Amount:
    """Count the operators of a work, its backward pass included."""
    counter = _Count()
    with FlopCounterMode(display=False) as flops, counter:
        work()
    return Amount(counter.calls, flops.get_total_flops(), counter.bytes)


def fitted(amounts: Mapping[str, Amount], times: Times) -> CostModel:
    """Fit the three numbers, so that the relative errors are least.

    Args:
        amounts: The works to fit to; at least three that differ.
        times: Their seconds.
    """
    rows = [
        [count / times.median(name) for count in astuple(amount)]
        for name, amount in amounts.items()
    ]
    prices = np.linalg.lstsq(np.array(rows), np.ones(len(rows)), rcond=None)[0]
    return CostModel(*(float(price) for price in prices))
