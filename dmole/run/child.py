"""Makes the run folder of a run that extends a finished one.

The new folder is that of a run whose first stages are done: it has the files of the parent that
these stages wrote, and a checkpoint of the parent to which the new tasks were added. Learning them
is resuming this run. The checkpoint is written last, so a folder without one is not used.
"""

from __future__ import annotations

import logging
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from dmole.run.checkpoint import require_parts
from dmole.run.checkpoint_file import peek_checkpoint, read_checkpoint, save_checkpoint
from dmole.run.embeddings import carry_embeddings
from dmole.run.extending import Parent, RunPlan, new_tasks, unfinished_phase
from dmole.run.run_folder import LAST
from dmole.run.same_run import compare_runs, fingerprints_of, settings_of
from dmole.run.state import PHASES
from dmole.storage.digests import FILE, Digests, file_digest, read_digests
from dmole.storage.files import atomic_path
from dmole.storage.reading import open_file, refusing

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from dmole.module import ContinualModule
    from dmole.run.state import SequenceState

log = logging.getLogger("dmole")

_WRITTEN_NEW = (
    *("config.yaml", "model.json", "timing.json"),
    *("evaluation_matrix.csv", "oracle_matrix.csv", "metrics.json"),
)
"""Files of the parent that the new run writes itself: they have its tasks, settings or times."""


@runtime_checkable
class ExtendsState(Protocol):
    """A callback whose state depends on the tasks of the run."""

    @property
    def state_key(self) -> str:
        """Key of the state in a checkpoint."""

    def extend_sequence_state(
        self,
        saved: dict[str, Any],
        state: SequenceState,
        module: ContinualModule,
        parent: Parent,
    ) -> dict[str, Any]:
        """Return the state of a finished run as that of a run with more tasks."""


@dataclass(frozen=True)
class Extension:
    """A finished run and what a run with more tasks begins with.

    Args:
        run: Folder of the finished run.
        digests: Its files.
        content: The checkpoint of the new run.
        tasks: The tasks to learn.
    """

    run: Path
    digests: Digests
    content: dict[str, Any]
    tasks: tuple[str, ...]

    def write(self, child: Path) -> Path:
        """Write files and checkpoint into the folder of the new run, and return the checkpoint.

        The files of the finished run are not changed. After an error the new folder is removed.
        """
        try:
            for name, digest in self.digests.files.items():
                if name not in _WRITTEN_NEW:
                    _carry(self.run / name, child / name, digest)
            carry_embeddings(self.run, child)
            save_checkpoint(self.content, child / LAST)
        except BaseException:
            shutil.rmtree(child, ignore_errors=True)
            raise
        log.info("%s extends %s by %s", child, self.run, ", ".join(self.tasks))
        return child / LAST


def find_extension(state: SequenceState, module: ContinualModule, file: Path) -> Extension | None:
    """Return what a run begins with that extends the run of a checkpoint.

    Args:
        state: Has plan and data of the new run.
        module: Has base model, allocator and router, without experts.
        file: The checkpoint.

    Returns:
        The extension; None if the checkpoint is one of a run with the same tasks, to be resumed.

    Raises:
        ValueError: If the run of the checkpoint is not finished, or tasks, data, base model or
            settings differ from those of the checkpoint in more than new tasks; names it.
    """
    with refusing(file, "checkpoint"):
        saved = RunPlan.saved_in(peek_checkpoint(file))
        if saved is None or not new_tasks(saved, RunPlan.of(state), file):
            return None
        return _extension(state, module, read_checkpoint(file), file)


def _extension(
    state: SequenceState, module: ContinualModule, content: dict[str, Any], file: Path
) -> Extension:
    require_parts(content, file)
    run, now = file.resolve().parents[1], RunPlan.of(state)
    saved = RunPlan.saved_in(content)
    assert saved is not None  # the caller has seen it
    done = {(stage, phase) for stage, phase in content["done"]}
    if rest := unfinished_phase(saved, done, PHASES):
        raise ValueError(
            f"{run} is not finished: {rest} remains; resume it first: "
            f"dmole fit --config {run}/config.yaml --ckpt_path {run}"
        )
    digests = read_digests(run)
    if digests is None:
        raise ValueError(f"{run} has no {FILE}: resume it first, which writes the file")
    name = f"{run.parent.name}/{run.name}"
    parent = Parent(name, file_digest(run / FILE), len(saved.stages), saved.tasks)
    grown = _grown(state, module, content, saved, parent)
    compare_runs(state, module, grown, None, file, warn=False)
    grown["sequence"] = _sequence(state, module, content["sequence"], parent)
    return Extension(run, digests, grown, new_tasks(saved, now, file))


def _grown(
    state: SequenceState,
    module: ContinualModule,
    content: dict[str, Any],
    saved: RunPlan,
    parent: Parent,
) -> dict[str, Any]:
    """Return the checkpoint of a finished run as one of a run with more tasks.

    The state of callbacks stays that of the finished run.
    """
    added = {task for task in state.data.task_names if task not in saved.tasks}
    current = fingerprints_of(state, module)
    orders = {key: current[key] for key in ("order of stages", "order of tasks")}
    new_data = {f"data of {task}": current[f"data of {task}"] for task in sorted(added)}
    settings = settings_of(state, module).items()
    of_added = {name: text for name, text in settings if name.partition(" of task ")[2] in added}
    files = content.get("files", {"digests": {}, "unverified": []})
    kept = {name: paths for name, paths in files["digests"].items() if name not in _WRITTEN_NEW}
    return {
        **content,
        "run": state.run_id,
        "parent": parent.to_dict(),
        "fingerprints": {**content["fingerprints"], **orders, **new_data},
        "settings": {**content["settings"], **of_added},
        "files": {**files, "digests": kept},
        "events": None,  # the new run logs to a file of its own
    }


def _sequence(
    state: SequenceState, module: ContinualModule, saved: Mapping[str, Any], parent: Parent
) -> dict[str, Any]:
    """Return the state of the callbacks of a finished run as that of a run with more tasks."""
    sequence = dict(saved)
    for callback in state.callbacks:
        if isinstance(callback, ExtendsState) and callback.state_key in sequence:
            before = sequence[callback.state_key]
            after = callback.extend_sequence_state(before, state, module, parent)
            sequence[callback.state_key] = after
    return sequence


def _carry(source: Path, target: Path, digest: str) -> None:
    """Link the tensors of the parent, and copy other files; leave out what was changed or lost.

    What is left out is written again from the checkpoint. Every file is replaced by renaming, so
    a link shares content and is never written through.
    """
    try:
        whole = file_digest(source) == digest
    except ValueError:
        whole = False
    if not whole:
        log.warning("%s is not the file that its run has written: it is not taken over", source)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.suffix == ".safetensors":
        with suppress(OSError):  # another file system, or one without links
            os.link(source.resolve(), target)
            return
    with (
        open_file(source, "file of the run") as content,
        atomic_path(target) as temporary,
        temporary.open("wb") as copy,
    ):
        shutil.copyfileobj(content, copy)
