"""Seeds that depend on what they are for, and are the same in every process.

The three functions differ in how they join the parts and in the order of the bytes. They are not
merged: any change of a seed changes the results of every run that was made with it.
"""

from __future__ import annotations

import hashlib
from typing import Literal


def derive_seed(*parts: object) -> int:
    """Return a seed for draws from data: orders, parts and replayed samples.

    Args:
        parts: Numbers and names; the seed differs where they do.
    """
    return _digest(repr(parts), "little")


def expert_seed(*parts: object) -> int:
    """Return a seed for an expert: its initial weights and its dropout.

    Args:
        parts: Numbers and names without ``/``; the seed differs where they do.
    """
    return _digest("/".join(map(str, parts)), "big")


def router_seed(seed: int, expert: str) -> int:
    """Return a seed for the fit of a router, the same wherever the task stands in the sequence.

    Args:
        seed: The router's seed.
        expert: Name of the expert.
    """
    return _digest(f"{seed}/{expert}", "little")


def _digest(text: str, order: Literal["little", "big"]) -> int:
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:8], order) >> 1  # a generator takes 63 bits safely
