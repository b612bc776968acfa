"""Seeds that depend on what they are for."""

from __future__ import annotations

import hashlib


def derive_seed(*parts: object) -> int:
    """Return a seed that differs for different parts and is the same in every process.

    Args:
        parts: Numbers and names.
    """
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1  # a generator takes 63 bits safely
