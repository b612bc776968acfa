"""Seeds derived from their purpose, the same in every process.

The three functions differ in how they join the parts and in the byte order. They are not merged,
because a changed seed would change the results of existing runs.
"""

from __future__ import annotations

import hashlib
from typing import Literal


def derive_seed(*parts: object) -> int:
    """Return a seed for draws from data: orders, subsets and replayed samples.

    Args:
        parts: Numbers and names that determine the seed.
    """
    return _digest(repr(parts), "little")


def expert_seed(*parts: object) -> int:
    """Return a seed for an expert: its initial weights and its dropout.

    Args:
        parts: Numbers and names without ``/`` that determine the seed.
    """
    return _digest("/".join(map(str, parts)), "big")


def router_seed(seed: int, expert: str) -> int:
    """Return a seed for the fit of a router, independent of the order of the tasks.

    Args:
        seed: The router's seed.
        expert: Name of the expert.
    """
    return _digest(f"{seed}/{expert}", "little")


def _digest(text: str, order: Literal["little", "big"]) -> int:
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:8], order) >> 1  # 63 bits are safe for all generators
