"""Refuses a base model that is not the one of a run."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from dmole.models.identity import FIXED, NUMERICS, changed_parts
from dmole.storage.reading import read_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from dmole.models.identity import Parts

log = logging.getLogger("dmole")

SETTING = "--trainer.accept_changes true"
"""What accepts the changes of a base model on the command line of a run."""


def check_parts(
    made: Path,
    saved: Any,
    current: Parts,
    accept: bool,
    *,
    fixed: tuple[str, ...] = FIXED,
    warn: bool = True,
    accept_by: str | None = SETTING,
) -> None:
    """Refuse a base model whose parts differ from those of a run.

    Parts that the run did not record are not compared. Parts that change only the rounding of
    results give a warning.

    Args:
        made: File or folder that the run made, for messages.
        saved: Parts that the run recorded.
        current: Parts of now.
        accept: Whether changes are accepted, with a warning each.
        fixed: Parts whose change is never accepted.
        warn: Whether to log the changes that are not refused.
        accept_by: What accepts changes, for messages; None if nothing does.

    Raises:
        ValueError: If a part differs; the message names it and its first values that differ.
    """
    for name, text in changed_parts(saved, current).items():
        if name in fixed:
            raise ValueError(f"{made} was made with {text}; it cannot be resumed here")
        if name != NUMERICS and not accept:
            raise ValueError(f"{made} was made with {text}{_hint(accept_by)}")
        if warn:
            log.warning("%s was made with %s", made, text)


def check_base_of_run(
    run: Path, current: Mapping[str, Any], accept: bool, accept_by: str | None = SETTING
) -> None:
    """Refuse a base model that is not the one of a finished run.

    Args:
        run: Folder of the run; its ``metrics.json`` has the fingerprints.
        current: ``base_parts`` of now, and ``base`` if the weights are to be compared, too.
        accept: Whether changes are accepted, with a warning each.
        accept_by: What accepts them, for messages; None if nothing does.

    Raises:
        ValueError: If the weights or a part differ; the message names the part.
    """
    path = run / "metrics.json"
    content = read_json(path, "metrics") if path.is_file() else {}
    saved = content.get("fingerprints") if isinstance(content, dict) else None
    if not isinstance(saved, dict):
        return  # a run of an early version has no fingerprints
    if "base" in current and saved.get("base") is not None:
        check_weights(run, saved["base"], current["base"], accept, accept_by)
    parts = saved.get("base_parts")
    check_parts(run, parts, current["base_parts"], accept, fixed=(), accept_by=accept_by)


def check_weights(
    made: Path, saved: object, current: object, accept: bool, accept_by: str | None = SETTING
) -> None:
    """Refuse a base model of other weights.

    Args:
        made: Folder that was made with the base model, for messages.
        saved: Fingerprint that the folder records.
        current: Fingerprint of now.
        accept: Whether other weights are accepted, with a warning.
        accept_by: What accepts them, for messages; None if nothing does.

    Raises:
        ValueError: If the fingerprints differ.
    """
    if saved == current:
        return
    text = "was made with a base model of other weights"
    if not accept:
        raise ValueError(f"{made} {text}{_hint(accept_by)}")
    log.warning("%s %s", made, text)


def _hint(accept_by: str | None) -> str:
    return "" if accept_by is None else f"; {accept_by} uses it anyway"
