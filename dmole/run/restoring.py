"""Writes files of a run again that were deleted, cut short or changed since the run wrote them.

The state of the run, in memory or from ``last.ckpt``, holds the content of all files except
predictions, whose answers are deleted when no experts use them; those are evaluated again.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from dmole.distributed import broadcast
from dmole.run.changes import later_change
from dmole.run.run_files import HoldsRunFiles, RunFile
from dmole.run.run_folder import LAST
from dmole.run.state import BEFORE_TRAINING, PHASES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dmole.callbacks import EvaluationMatrix
    from dmole.module import ContinualModule
    from dmole.routing import Router
    from dmole.run.context import EvaluationPass
    from dmole.run.state import SequenceState
    from dmole.streams.stream import Stage

log = logging.getLogger("dmole")

_SHOWN = 5


class Restorer:
    """Writes lost files of a run again.

    Args:
        state: Has the files, the callbacks and the position of the run.
        module: Has experts and router.
        matrix: The callback that holds the results of evaluations.
        answer: Answers the samples of an evaluation pass.
    """

    def __init__(
        self,
        state: SequenceState,
        module: ContinualModule,
        matrix: EvaluationMatrix,
        answer: Callable[[ContinualModule, EvaluationPass], None],
    ) -> None:
        self._state = state
        self._module = module
        self._matrix = matrix
        self._answer = answer

    def restore(self, *more: RunFile, thorough: bool) -> list[str]:
        """Write all files again that are missing or changed. All ranks must call it.

        Args:
            more: Files that belong to no callback.
            thorough: Whether to compare the content of all files; otherwise their sizes and times.

        Returns:
            Names of files that cannot be written again, equal on all ranks.
        """
        state = self._state
        lost = self._rewrite(more, thorough=thorough)
        # an interrupted evaluation resumes first, since another one would replace its journal
        if not lost or (thorough and state.phase == "router"):
            return lost
        answers = self._matrix.answers.state_dict()
        for stage in [BEFORE_TRAINING, *state.plan]:
            names = self._matrix.lost_at(state, stage.index, lost)
            if names and is_repeatable(state, stage, self._module.router):
                with state.revisited(stage):
                    self._repeat(stage, names)
                lost = [name for name in lost if name not in names]
        self._matrix.answers.load_state_dict(answers)
        return lost

    def _repeat(self, stage: Stage, names: Sequence[str]) -> None:
        """Repeat the routed pass of the current stage's evaluation, to write some of its files."""
        log.info("stage %d is evaluated again for %s", stage.index, _listed(names))
        routed = self._matrix.plan(self._state, self._module)
        self._answer(self._module, routed)
        self._matrix.recover(self._state, self._module, routed, names)

    def _rewrite(self, more: Sequence[RunFile], *, thorough: bool) -> list[str]:
        """Write lost files whose content is known; return the names of the others."""
        state, unknown = self._state, []
        if state.is_global_zero:
            files = [*_required(state, self._module), *more]
            if thorough:  # results of a run of an earlier version, which has no digests
                state.files.adopt(state.run_dir, (file for file in files if file.write is None))
            broken = state.files.broken(state.run_dir, files, thorough=thorough)
            known = [file for file in broken if file.write is not None]
            names = [file.name for file in known if state.files.has_written(file.name)]
            if names:  # others belong to the tasks that a run adds to those of its parent
                log.info("%s: written again: %s", state.run_dir, _listed(names))
            state.put(*known)
            state.board.check()
            unknown = [file.name for file in broken if file.write is None]
        return broadcast(unknown)


def resume_position(state: SequenceState) -> bool:
    """Set stage and phase of a resumed run to those of its last finished phase, if there is one."""
    if not state.done:
        return False
    last = max(stage for stage, _ in state.done)
    state.stage = state.plan[last - 1] if last else BEFORE_TRAINING
    state.phase = [phase for phase in PHASES if (last, phase) in state.done][-1]
    return True


def lacks_checkpoint(state: SequenceState) -> bool:
    """Return whether ``last.ckpt`` or the file of a frozen expert is lost. All ranks must call it.

    A changed file of an expert counts as lost.
    """
    return broadcast(not (state.run_dir / LAST).is_file() or state.frozen.lacks_files())


def is_repeatable(state: SequenceState, stage: Stage, router: Router) -> bool:
    """Return whether the evaluation after a stage would give the same answers again."""
    return not why_unrepeatable(state, stage, router)


def why_unrepeatable(state: SequenceState, stage: Stage, router: Router) -> str:
    """Return why the evaluation after a stage would give other answers; empty if it would not.

    It would if a later stage has trained an expert further or has changed how a router chooses
    among the experts, or if a setting that changes answers or routing was changed after the stage,
    at this resume or an earlier one.
    """
    before = {name for past in state.plan[: stage.index] for name in past.experts}
    later = (s for s in state.plan[stage.index :] if (s.index, "train") in state.done)
    if not before.isdisjoint(name for s in later for name in s.experts):
        return "their experts trained further"
    fitted = any((s.index, "router") in state.done for s in state.plan[stage.index :])
    if router.refits_all and fitted and len(before) > 1:
        return f"the {type(router).__name__} was fitted again"
    change = later_change(state, stage.index)
    if change is None:
        return ""
    return f"{change['setting']} was changed from stage {change['from_stage']} on"


def loss_error(state: SequenceState, lost: Sequence[str]) -> ValueError:
    """Return the error of a run that has ended without some of its files."""
    return ValueError(
        f"{state.run_dir} lacks {_listed(lost)}: the answers are lost, and they cannot be computed "
        "again because experts, router or settings have changed since; all other files are there"
    )


def _required(state: SequenceState, module: ContinualModule) -> list[RunFile]:
    holders = (cb for cb in state.callbacks if isinstance(cb, HoldsRunFiles))
    return [file for callback in holders for file in callback.run_files(state, module)]


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
