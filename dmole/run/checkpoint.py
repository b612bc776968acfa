"""The checkpoints of a run: all trained state, without the frozen base model.

There are two files. ``last.ckpt`` is the state after the last finished phase; experts that no
longer train are in files of their own, see `dmole.run.frozen`. ``stage.ckpt`` is the state within
the training of a stage: its experts, their optimizer, the position in the data.

An interrupted phase starts again, except training, which resumes at its last saved step. Every
random draw depends only on seed, stage and rank, or its generator is restored. A resumed run
therefore gives the same result as an uninterrupted run.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from dmole._version import __version__
from dmole.run.board import BoardPosition
from dmole.run.checkpoint_file import FORMAT, read_checkpoint, save_checkpoint
from dmole.run.clock import Costs, Lap
from dmole.run.extending import Parent
from dmole.run.lightning_private import fit_progress, restore_fit_progress
from dmole.run.run_folder import LAST
from dmole.run.same_run import check_same_run, fingerprints_of, settings_of
from dmole.run.state import BEFORE_TRAINING, PHASES
from dmole.storage.files import refusing
from dmole.storage.values import listed

if TYPE_CHECKING:
    from dmole.module import ContinualModule
    from dmole.run.state import SequenceState

log = logging.getLogger("dmole")

_PHASE_PARTS = (
    *("code", "run", "done", "fingerprints", "settings", "architecture", "versions"),
    *("state_dict", "router", "callbacks", "sequence", "progress", "laps", "parameters"),
)
_STAGE_PARTS = ("run", "stage", "world_size", "architecture", "callbacks", "parameters")


@runtime_checkable
class HoldsSequenceState(Protocol):
    """A callback with state that changes only at the boundaries of stages."""

    @property
    def state_key(self) -> str:
        """Key of the state in a checkpoint."""

    def sequence_state_dict(self) -> dict[str, Any]:
        """Return the state."""

    def load_sequence_state_dict(self, state: dict[str, Any]) -> None:
        """Load a state that :meth:`sequence_state_dict` returned."""


def save_sequence(state: SequenceState, module: ContinualModule) -> None:
    """Write ``last.ckpt`` after a phase. All ranks must call it."""
    callbacks = {cb.state_key: cb.state_dict() for cb in state.callbacks}
    sequence = {cb.state_key: cb.sequence_state_dict() for cb in _holders(state)}
    if not state.is_global_zero:
        return
    content = {
        "format": FORMAT,
        "code": __version__,
        "run": state.run_id,
        "done": sorted([stage, phase] for stage, phase in state.done),
        "fingerprints": fingerprints_of(state, module),
        "base_parts": state.fingerprints(module)["base_parts"],
        "settings": settings_of(state, module),
        "changes": state.changes,
        "parent": None if state.parent is None else state.parent.to_dict(),
        "architecture": module.library.architecture(),
        "versions": dict(module.library.versions),
        "state_dict": module.state_dict(),
        "router": module.router.state_dict(),
        "callbacks": {key: value for key, value in callbacks.items() if value},
        "sequence": {key: value for key, value in sequence.items() if value},
        "progress": fit_progress(state.trainer),
        "laps": json.dumps([vars(lap) for lap in state.clock.laps]),
        "parameters": state.clock.costs.to_dict(),
        "files": state.files.state_dict(),
        "stream": state.stream.state_dict(),
        "events": _logged(state),
    }
    file = state.run_dir / LAST
    frozen = [name for name in module.library.names if name not in state.stage.experts]
    content = state.frozen.split(content, frozen, file)
    save_checkpoint(content, file)
    state.frozen.keep_only(content, file)
    if (state.stage.index, "train") in state.done:
        stage_file(file).unlink(missing_ok=True)


def save_stage(state: SequenceState) -> None:
    """Write ``stage.ckpt`` within the training of a stage. All ranks must call it."""
    # here `weights_only=False` saves the optimizer too; on loading, the flag has another meaning
    state.trainer.save_checkpoint(stage_file(state.run_dir / LAST), weights_only=False)


def stage_content(state: SequenceState, module: ContinualModule) -> dict[str, Any]:
    """Return the content that a checkpoint within a stage needs in addition to Lightning's."""
    shapes, training = module.library.architecture(), module.training_experts
    return {
        "format": FORMAT,
        "run": state.run_id,
        "stage": state.stage.index,
        "world_size": state.world_size,
        # in the order of the library, in which a resumed run adds them again
        "architecture": {name: shapes[name] for name in module.library.names if name in training},
        "parameters": state.clock.costs.to_dict(),
        "settings": settings_of(state, module),
        "changes": state.changes,
        "events": _logged(state, fit_progress(state.trainer)["stepped"]),
    }


def load_sequence(state: SequenceState, module: ContinualModule, file: Path) -> Path | None:
    """Restore the state of a checkpoint.

    Args:
        state: State of a sequence in the checkpoint's run folder; receives the finished phases.
        module: Receives experts and router.
        file: The checkpoint after a phase.

    Returns:
        The checkpoint within the next phase if that is an interrupted training, else None.

    Raises:
        ValueError: If a file cannot be read, or if base model, data or settings differ from those
            of the checkpoint; the message names the difference.
    """
    with refusing(file, "checkpoint"):
        return _load_sequence(state, module, file)


def _load_sequence(state: SequenceState, module: ContinualModule, file: Path) -> Path | None:
    content = read_checkpoint(file)
    if "stage" in content:
        raise ValueError(f"{file} holds one stage only: name its run folder instead")
    require_parts(content, file)
    _restore_plan(state, module, content)
    stage = _interrupted_stage(state, content, stage_file(file))
    check_same_run(state, module, content, stage, file)
    state.run_id, state.parent = content["run"], Parent.saved_in(content)
    module.library.rebuild(content["architecture"])
    module.library.versions.update(content["versions"])
    module.load_state_dict(content["state_dict"])
    module.router.load_state_dict(content["router"])
    _load_callbacks(state, content["callbacks"])
    for callback in _holders(state):
        if callback.state_key in content["sequence"]:
            callback.load_sequence_state_dict(content["sequence"][callback.state_key])
    restore_fit_progress(state.trainer, content["progress"])
    state.clock.laps = [Lap(**lap) for lap in listed(content["laps"])]
    state.clock.costs = Costs.from_dict(content["parameters"])
    state.done = _phases(state, content["done"])
    if "files" in content:  # since format 4
        state.files.load_state_dict(content["files"])
    if stage is None:
        _resume_board(state, content)
        return None
    with refusing(stage_file(file), "checkpoint"):
        _load_stage(state, module, stage)
        _resume_board(state, stage)
    return stage_file(file)


def _restore_plan(state: SequenceState, module: ContinualModule, content: dict[str, Any]) -> None:
    """Plan the stages that the stream had found, unless the checkpoint is of another stream."""
    saved = content["fingerprints"]
    now = {"stream": type(state.stream).__name__, "order of tasks": list(state.data.task_names)}
    if all(saved.get(name) == value for name, value in now.items()):
        state.stream.load_state_dict(content.get("stream", {}))
        state.make_plan(module)


def _interrupted_stage(
    state: SequenceState, last: dict[str, Any], file: Path
) -> dict[str, Any] | None:
    """Return the checkpoint within the stage after ``last.ckpt``, None if there is none."""
    if not file.is_file():
        return None
    with refusing(file, "checkpoint"):
        content = read_checkpoint(file)
        require_parts(content, file, _STAGE_PARTS)
    if content["run"] != last["run"] or [content["stage"], "train"] in map(list, last["done"]):
        return None  # the stage has been finished since
    trained = {index for index, phase in last["done"] if phase == "train"}
    stage = next((stage.index for stage in state.plan if stage.index not in trained), 0)
    if content["stage"] != stage:
        log.warning("%s is of stage %d, stage %d starts again", file, content["stage"], stage)
        return None
    if content["world_size"] != state.world_size:
        log.warning(
            "stage %d starts again: it was trained by %d processes, this run has %d",
            content["stage"],
            content["world_size"],
            state.world_size,
        )
        return None
    return content


def _load_stage(state: SequenceState, module: ContinualModule, content: dict[str, Any]) -> None:
    """Restore the experts of an interrupted stage, so that they are not allocated again."""
    # the common expert is added first; before format 4 it came last in this file
    first = [stage.common for stage in state.plan if stage.common in content["architecture"]][:1]
    saved = {name: content["architecture"][name] for name in [*first, *content["architecture"]]}
    module.library.rebuild({**module.library.architecture(), **saved})
    _load_callbacks(state, content["callbacks"])
    state.clock.costs = Costs.from_dict(content["parameters"])


def _phases(state: SequenceState, pairs: Any) -> set[tuple[int, str]]:
    """Return the finished phases of a checkpoint, which must be phases of the plan."""
    known = {(stage.index, phase) for stage in state.plan for phase in PHASES}
    done = {(stage, phase) for stage, phase in pairs}
    if unknown := done - known - {(BEFORE_TRAINING.index, PHASES[-1])}:
        raise ValueError(f"the run has no phase {min(unknown, key=str)!r:.80}")
    return done


def _logged(state: SequenceState, step: int | None = None) -> dict[str, Any] | None:
    """Return how far the run has logged to TensorBoard; see `BoardPosition`."""
    position = state.board.position(step)
    return None if position is None else position.to_dict()


def _resume_board(state: SequenceState, content: dict[str, Any]) -> None:
    """Continue the file of TensorBoard events; checkpoints of earlier versions name none."""
    if content.get("events") is not None:
        state.board.resume(BoardPosition.from_dict(content["events"]))


def stage_file(last: Path) -> Path:
    """Return the path of ``stage.ckpt`` in the folder of ``last.ckpt``."""
    return last.with_name("stage.ckpt")


def require_parts(
    content: dict[str, Any], file: Path, keys: tuple[str, ...] = _PHASE_PARTS
) -> None:
    """Raise a `ValueError` unless a checkpoint has all its parts, by default one after a phase."""
    missing = [key for key in keys if key not in content]
    if missing:
        raise ValueError(f"{file} is not a whole checkpoint: it lacks {', '.join(missing)}")


def _holders(state: SequenceState) -> list[HoldsSequenceState]:
    return [callback for callback in state.callbacks if isinstance(callback, HoldsSequenceState)]


def _load_callbacks(state: SequenceState, states: dict[str, Any]) -> None:
    for callback in state.callbacks:
        if callback.state_key in states:
            callback.load_state_dict(states[callback.state_key])
