"""Writes files of a run again that were deleted, cut short or changed since the run wrote them.

The state of the run, in memory or from ``last.ckpt``, holds the content of all files except
predictions, whose answers are deleted when no experts use them; those are evaluated again.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from dmole.distributed import broadcast
from dmole.run.changes import needs_new_answers
from dmole.run.run_files import HoldsRunFiles, RunFile
from dmole.run.run_folder import LAST

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dmole.module import ContinualModule
    from dmole.run.state import SequenceState
    from dmole.streams.stream import Stage

log = logging.getLogger("dmole")

_SHOWN = 5


def restore_files(
    state: SequenceState, module: ContinualModule, *more: RunFile, thorough: bool
) -> list[str]:
    """Write all files of the run again that are missing or changed. All ranks must call it.

    Args:
        state: Has the files and callbacks of the run.
        module: Has experts and router.
        more: Files that belong to no callback.
        thorough: Whether to compare the content of all files; otherwise their sizes and times.

    Returns:
        Names of files whose content is not known, equal on all ranks.
    """
    unknown: list[str] = []
    if state.is_global_zero:
        files = [*_required(state, module), *more]
        broken = state.files.broken(state.run_dir, files, thorough=thorough)
        known = [file for file in broken if file.write is not None]
        if known:
            log.info("%s: written again: %s", state.run_dir, _listed([f.name for f in known]))
        state.put(*known)
        state.check_board()
        unknown = [file.name for file in broken if file.write is None]
    return broadcast(unknown)


def adopt_files(state: SequenceState, module: ContinualModule) -> None:
    """Take results of a run of an earlier version as they are if their content is not known."""
    if state.is_global_zero:
        unknown = (file for file in _required(state, module) if file.write is None)
        state.files.adopt(state.run_dir, unknown)


def lacks_checkpoint(state: SequenceState) -> bool:
    """Return whether ``last.ckpt`` was deleted. All ranks must call it."""
    return broadcast(not (state.run_dir / LAST).is_file())


def is_repeatable(state: SequenceState, stage: Stage) -> bool:
    """Return whether the evaluation after a stage would give the same answers again.

    It would not if a later stage has trained an expert further, or if the run was resumed with
    settings that change answers.
    """
    before = {name for past in state.plan[: stage.index] for name in past.experts}
    later = (s for s in state.plan[stage.index :] if (s.index, "train") in state.done)
    return not needs_new_answers(state) and before.isdisjoint(
        name for s in later for name in s.experts
    )


def loss_error(state: SequenceState, lost: Sequence[str]) -> ValueError:
    """Return the error of a run that has ended without some of its files."""
    return ValueError(
        f"{state.run_dir} lacks {_listed(lost)}: the answers are lost, and they cannot be computed "
        "again because experts or settings have changed since; all other files are there"
    )


def _required(state: SequenceState, module: ContinualModule) -> list[RunFile]:
    holders = (cb for cb in state.callbacks if isinstance(cb, HoldsRunFiles))
    return [file for callback in holders for file in callback.run_files(state, module)]


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
