"""The run folder of a fit and the checkpoint it resumes, the same on all processes."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.fabric.plugins.environments.lightning import LightningEnvironment

from dmole.distributed import broadcast, is_distributed
from dmole.run.peers import watch_parent
from dmole.run.run_folder import LAST, claim_run, find_run, is_edited

if TYPE_CHECKING:
    from collections.abc import Callable

    from dmole.run.child import Extension

_VARIABLE = "DMOLE_OPENING"
"""Environment variable that passes rank 0's decision to the processes that Lightning starts."""


@dataclass(frozen=True)
class Opening:
    """A run folder and the checkpoint to resume from.

    Args:
        run: The folder.
        checkpoint: The file; None for a new run.
    """

    run: Path
    checkpoint: Path | None = None


def find_checkpoint(
    root: Path, name: str, version: int | None, ckpt_path: str | None
) -> Path | None:
    """Return the checkpoint that a run continues from; None for a new run.

    Args:
        root: Folder that holds the runs.
        name: Name of the run.
        version: Number of the run folder; None for any.
        ckpt_path: ``last`` is the newest run of this name that has a checkpoint. ``auto`` is the
            same if there is one, else a new run. It may also be a run folder or a file in it.
            None is a new run.

    Raises:
        ValueError: If there is no such checkpoint.
    """
    if ckpt_path in ("last", "auto"):
        run = find_run(root, name, version)
        if run is None and ckpt_path == "last":
            raise ValueError(
                f"there is no run of {root / name} to resume; --ckpt_path auto would start one"
            )
        return None if run is None else run / LAST
    if ckpt_path is None:
        return None
    path = Path(ckpt_path)
    file = path / LAST if path.is_dir() else path
    if not file.is_file():
        if path.is_dir() and is_edited(path):
            raise ValueError(
                f"{path} was made by dmole experts and has no checkpoint: it is evaluated and "
                "answers, but can be neither resumed nor extended"
            )
        raise ValueError(f"there is no checkpoint {file}")
    if file.resolve().parent.name != LAST.parent.name:
        raise ValueError(f"{file} is not in a run folder: put it into <run>/{LAST.parent}")
    return file


def decide_opening(
    root: Path,
    name: str,
    version: int | None,
    ckpt_path: str | None,
    find_extension: Callable[[Path], Extension | None] = lambda file: None,
) -> Opening:
    """Find the checkpoint to resume from, or make a new run folder.

    Args:
        root: Folder that holds the runs.
        name: Name of the run.
        version: Number of the run folder; None for any.
        ckpt_path: See :func:`find_checkpoint`.
        find_extension: Returns what a new run begins with that extends the finished run of a
            checkpoint; None if that run is resumed.

    Raises:
        ValueError: If there is no such checkpoint, or the new folder exists already.
    """
    file = find_checkpoint(root, name, version, ckpt_path)
    if file is None:
        return Opening(claim_run(root, name, version))
    extension = find_extension(file)
    if extension is None:
        return Opening(file.resolve().parents[1], file)
    child = claim_run(root, name, version)
    return Opening(child, extension.write(child))


def agree_on_opening(environment: object, decide: Callable[[], Opening], rank: int) -> Opening:
    """Return the decision of rank 0 on every process.

    Args:
        environment: Lightning's cluster environment; None in a single process.
        decide: Makes the decision; called on rank 0 only.
        rank: Global rank of this process.
    """
    started = isinstance(environment, LightningEnvironment) and environment.local_rank() > 0
    if started and not is_distributed():
        # rank 0 started this process after its decision
        if _VARIABLE not in os.environ:
            raise ValueError("LOCAL_RANK is set, but by no launcher: use torchrun, or unset it")
        decided = json.loads(os.environ.pop(_VARIABLE))
        watch_parent(decided["process"])
        return _decode(decided)
    decided = broadcast(_encode(decide()) if rank == 0 else None)
    assert decided is not None  # rank 0 has sent its decision
    if not is_distributed():
        os.environ[_VARIABLE] = json.dumps(decided)  # for processes that start later
    return _decode(decided)


def _encode(opening: Opening) -> dict[str, Any]:
    checkpoint = None if opening.checkpoint is None else str(opening.checkpoint)
    return {"run": str(opening.run), "checkpoint": checkpoint, "process": os.getpid()}


def _decode(values: dict[str, Any]) -> Opening:
    checkpoint = values["checkpoint"]
    return Opening(Path(values["run"]), None if checkpoint is None else Path(checkpoint))
