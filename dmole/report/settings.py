"""Comparison of the settings of two runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dmole.run.settings import ADDED

OF_A_REPEAT = (
    *("seed", "seed_everything", "version", "default_root_dir", "enable_progress_bar"),
    *("loggers", "report", "report_to", "case_images", "keep_embeddings"),
    *("cache_images", "cache_bytes", "cache_folder"),
    *("cache_vision", "cache_vision_bytes", "cache_vision_folder"),
    "past_experts_on_device",
)
"""Settings in which repeats of one method may differ: the seed, and what changes no result."""


def _is_empty(value: Any) -> bool:
    """Return whether a setting is null, an empty list or a mapping of what is off or empty."""
    if isinstance(value, Mapping):
        return all(each is False or _is_empty(each) for each in value.values())
    return value is None or value == []


def first_difference(one: Any, other: Any, path: str = "") -> str | None:
    """Return the key of the first setting in which two configs differ, None if they agree.

    A missing setting equals null and an empty list or mapping, so runs of an earlier version
    agree with those of a version that has further settings, unless these change what it does.

    Example:
        >>> first_difference({"model": {"alpha": 8}}, {"model": {"alpha": 16}})
        'model.alpha'
    """
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = (first_difference(*pair, path) for pair in zip(one, other, strict=True))
        return next((difference for difference in pairs if difference is not None), None)
    if not (isinstance(one, Mapping) and isinstance(other, Mapping)):
        empty = _is_empty(one) and _is_empty(other)
        return None if one == other or empty else path
    for key in sorted({*one, *other} - {*OF_A_REPEAT, "ckpt_path"}, key=str):
        alone = (key in one) != (key in other)
        if alone and key in ADDED and str({**one, **other}[key]) == ADDED[key]:
            continue  # an earlier version lacks the setting and does the same
        difference = first_difference(one.get(key), other.get(key), f"{path}.{key}".lstrip("."))
        if difference is not None:
            return difference
    return None
