"""Compares a run with the checkpoint that it continues from: base model, data and settings."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from dmole._version import __version__
from dmole.run.changes import (
    PART,
    Records,
    Remaining,
    accepted_changes,
    changed_settings,
    part_changes,
)
from dmole.run.identity import check_parts
from dmole.run.settings import brought_up_to_date, contrast, run_settings, stream_settings

if TYPE_CHECKING:
    from pathlib import Path

    from dmole.module import ContinualModule
    from dmole.run.state import SequenceState

log = logging.getLogger("dmole")


def check_same_run(
    state: SequenceState,
    module: ContinualModule,
    content: dict[str, Any],
    stage: dict[str, Any] | None,
    file: Path,
) -> None:
    """Refuse a checkpoint of other data or base model, and of other settings unless accepted.

    Args:
        state: Receives the changes of settings, those of earlier resumes included.
        module: Has base model, experts and router.
        content: The checkpoint after a phase.
        stage: The checkpoint within the next stage; None if there is none.
        file: The checkpoint, for messages.

    Raises:
        ValueError: If something differs that must not, or that was not accepted; names it.
    """
    saved, records = compare_runs(state, module, content, stage, file)
    step = stage["global_step"] if stage else None
    for record in records:
        if record["setting"].startswith(PART):
            continue  # logged where the parts are compared
        where = f"step {step}" if "from_step" in record else f"stage {record['from_stage']}"
        difference = contrast(record["before"], record["now"])
        name = record["setting"]
        log.warning("resuming with another %s from %s on (%s)", name, where, difference)
    state.changes = [*{**content, **(stage or {})}.get("changes", []), *records]
    if records:
        state.saved_settings = saved
    if content["code"] != __version__:
        log.warning("%s was made by dmole %s, this is %s", file, content["code"], __version__)


def compare_runs(
    state: SequenceState,
    module: ContinualModule,
    content: dict[str, Any],
    stage: dict[str, Any] | None,
    file: Path,
    *,
    warn: bool = True,
) -> tuple[dict[str, str], Records]:
    """Return the settings of a checkpoint and the accepted changes; see :func:`check_same_run`.

    The state stays as it is, and only differences of rounding are logged, if ``warn``.
    """
    for name in _differing(content["fingerprints"], fingerprints_of(state, module)):
        raise ValueError(f"{file} was made with another {name}; it cannot be resumed here")
    parts = state.fingerprints(module)["base_parts"]
    check_parts(file, content.get("base_parts"), parts, state.accept_changes, warn=warn)
    settings = settings_of(state, module)
    newest = content if stage is None else {**content, **stage}  # older stages have no settings
    saved = brought_up_to_date(newest["settings"], settings)
    changed = changed_settings(saved, settings)
    done = {(index, phase) for index, phase in content["done"]}
    placed = {**content["architecture"], **(stage or {}).get("architecture", {})}
    remaining = Remaining.of(state, done, placed, stage["stage"] if stage else 0)
    of_base = part_changes(content.get("base_parts"), parts, remaining, len(state.plan))
    if not changed:
        return saved, of_base
    step = stage["global_step"] if stage else None
    records = accepted_changes(saved, settings, remaining, state, step)
    if not state.accept_changes:
        name = changed[0]
        raise ValueError(
            f"{file} was made with another {name}; trainer.accept_changes resumes it anyway "
            f"({contrast(saved.get(name), settings.get(name))})"
        )
    return saved, [*of_base, *records]


def settings_of(state: SequenceState, module: ContinualModule) -> dict[str, str]:
    """Return the settings as they were before training."""
    if not state.settings:
        state.settings = run_settings(state, module)
    return state.settings


def fingerprints_of(state: SequenceState, module: ContinualModule) -> dict[str, Any]:
    """Return what must be the same in every process of a run, by a name for messages."""
    digests = state.fingerprints(module)
    return {
        "base model": digests["base"],
        "order of stages": [[s.name, s.expert, *s.tasks] for s in state.plan],
        "order of tasks": list(state.data.task_names),
        "router": type(module.router).__name__,
        **stream_settings(state.stream),
        **({} if state.data.eval_limit is None else {"eval_limit": _draw(state)}),
        **{f"data of {name}": value for name, value in digests["data"].items()},
        **{f"general data {name}": value for name, value in digests.get("general", {}).items()},
    }


def _draw(state: SequenceState) -> str:
    """Return the draw of the test samples."""
    return f"{state.data.eval_limit} with seed {state.data.seed}"


def _differing(saved: dict[str, Any], current: dict[str, Any]) -> list[str]:
    names = sorted(saved.keys() | current.keys())
    return [name for name in names if saved.get(name) != current.get(name)]
