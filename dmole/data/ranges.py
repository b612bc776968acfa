"""Smallest and largest values of the numbers that a config sets for the data."""

from __future__ import annotations

import os

RANGES = {
    "batch_size": (1, 2**20),
    "max_tokens_per_batch": (1, 2**31),
    "eval_batch_size": (1, 2**20),
    "eval_tokens_per_batch": (1, 2**31),
    "eval_limit": (1, 2**31),
    "num_workers": (0, 256),
    "max_length": (1, 2**31),
}
"""Smallest and largest value of arguments of `dmole.ContinualDataModule`."""


def check_numbers(**values: int | None) -> None:
    """Refuse a number out of range; None is not checked.

    Args:
        values: Keys of `RANGES` with their values.

    Raises:
        ValueError: If a number is out of range, or there are more workers than the host can run;
            names the key.

    Example:
        >>> check_numbers(batch_size=0)
        Traceback (most recent call last):
        ...
        ValueError: data.batch_size must be at least 1, got 0
    """
    for key, value in values.items():
        least, most = RANGES[key]
        if value is None:
            continue
        if value < least:
            raise ValueError(f"data.{key} must be at least {least}, got {value}")
        if value > most:
            raise ValueError(f"data.{key} must be at most {most}, got {value}")
    workers, most = values.get("num_workers"), max(64, 4 * (os.cpu_count() or 1))
    if workers is not None and workers > most:
        raise ValueError(f"data.num_workers must be at most {most} on this host, got {workers}")
