"""What a run saves to go on after a phase: all that was learned, never the frozen base model."""

from __future__ import annotations

import pickle
import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.loggers import TensorBoardLogger

from dmole.clock import Lap
from dmole.files import atomic_path

if TYPE_CHECKING:
    from dmole.module import ContinualModule
    from dmole.trainer import ContinualTrainer

FORMAT = 1
Done = set[tuple[int, str]]


class SequenceCheckpoint:
    """Saves after every phase and brings a run back to the end of its last finished phase.

    A phase that was cut short starts again. Its draws depend on seed, stage and rank alone, so
    the result is the one of an uninterrupted run.
    """

    def __init__(self) -> None:
        self._fingerprints: dict[str, Any] | None = None

    def save(self, trainer: ContinualTrainer, module: ContinualModule, done: Done) -> None:
        """Write ``checkpoints/last.ckpt``; the old one stays until the new one is whole."""
        callbacks = {
            type(callback).__name__: callback.state_dict()
            for callback in trainer.continual_callbacks()
        }
        if not trainer.is_global_zero:
            return
        content = {
            "format": FORMAT,
            "done": sorted([stage, phase] for stage, phase in done),
            "fingerprints": self._fingerprint(trainer, module),
            "architecture": module.library.architecture(),
            "versions": dict(module.library.versions),
            "state_dict": module.state_dict(),
            "router": module.router.state_dict(),
            "callbacks": callbacks,
            "progress": _progress(trainer),
            "laps": [vars(lap) for lap in trainer.clock.laps],
            "parameters": trainer.clock.parameters,
        }
        with atomic_path(trainer.run_dir / "checkpoints" / "last.ckpt") as temporary:
            torch.save(content, temporary)

    def load(self, trainer: ContinualTrainer, module: ContinualModule, path: Path) -> Done:
        """Rebuild the state of a checkpoint and return the phases it has finished.

        Args:
            trainer: Goes on in the checkpoint's run folder.
            module: Receives experts and router.
            path: The file, or its run folder.

        Raises:
            ValueError: If the file cannot be read, or base model or data are not the ones it
                was made with; the message says which.
        """
        file = path / "checkpoints" / "last.ckpt" if path.is_dir() else path
        content = read_checkpoint(file)
        _compare(content["fingerprints"], self._fingerprint(trainer, module), file)
        module.library.rebuild(content["architecture"])
        module.library.versions.update(content["versions"])
        module.load_state_dict(content["state_dict"])
        module.router.load_state_dict(content["router"])
        for callback in trainer.continual_callbacks():
            state = content["callbacks"].get(type(callback).__name__)
            if state:
                callback.load_state_dict(state)
        _restore_progress(trainer, content["progress"])
        trainer.clock.laps = [Lap(**lap) for lap in content["laps"]]
        trainer.clock.parameters = content["parameters"]
        run = file.resolve().parents[1]
        trainer.continue_in(
            TensorBoardLogger(run.parents[1], name=run.parent.name, version=run.name)
        )
        return {(stage, phase) for stage, phase in content["done"]}

    def _fingerprint(self, trainer: ContinualTrainer, module: ContinualModule) -> dict[str, Any]:
        if self._fingerprints is None:
            self._fingerprints = {
                "base model": module.backbone.fingerprint(),
                "order of stages": [[s.name, s.expert, *s.tasks] for s in trainer.plan],
                "order of tasks": list(trainer.data.task_names),
                "router": type(module.router).__name__,
                **{f"data of {k}": v for k, v in trainer.data.fingerprint().items()},
                **_settings(trainer, module),
            }
        return self._fingerprints


def read_checkpoint(file: Path) -> dict[str, Any]:
    """Return a checkpoint's content; nothing in it is executed.

    Raises:
        ValueError: If the file is missing, damaged, or no checkpoint of a sequence.
    """
    if not file.is_file():
        raise ValueError(f"there is no checkpoint {file}")
    try:
        _verify(file)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # the message of torch recommends to load it with its code
        found = re.search(r"(?:GLOBAL|class|function) ([\w.]+)", str(error))
        named = f" ({found[1]})" if found else ""
        raise ValueError(
            f"cannot read checkpoint {file}: it holds more than tensors and plain values{named}, "
            "and nothing of a checkpoint is ever run"
        ) from error
    except Exception as error:  # torch raises half a dozen kinds for damaged files
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"cannot read checkpoint {file}: {first}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{file} is not a checkpoint of a sequence of this version")
    return content


def _verify(file: Path) -> None:
    """Refuse a damaged file: torch compares none of the checksums it writes.

    Raises:
        ValueError: If the file is no archive as torch writes it, or a part is not what it was.
    """
    if not zipfile.is_zipfile(file):
        raise ValueError("it is cut short, or no checkpoint")
    with zipfile.ZipFile(file) as archive:
        parts = archive.infolist()
        if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
            raise ValueError("it is compressed, which torch never does")
        if any(part.external_attr or part.is_dir() for part in parts):
            raise ValueError("it holds folders, whose content torch takes for read")
        if sum(part.file_size for part in parts) > file.stat().st_size:
            raise ValueError("its parts claim more than the file holds")
        damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"it is damaged in {damaged}")


def _compare(saved: dict[str, Any], current: dict[str, Any], file: Path) -> None:
    for name in sorted(saved.keys() | current.keys()):
        if saved.get(name) != current.get(name):
            raise ValueError(f"{file} was made with another {name}; it cannot be resumed here")


def _settings(trainer: ContinualTrainer, module: ContinualModule) -> dict[str, str]:
    """Return what else the numbers depend on, as texts."""
    owners = {"model": module, "allocator": module.allocator, "router": module.router}
    settings = {
        f"{owner} setting {name!r}": str(value)
        for owner, thing in owners.items()
        for name, value in vars(thing).items()
        if not name.startswith("_") and name not in _STATE and isinstance(value, _PLAIN)
    }
    for task in trainer.data.tasks:
        for key in ("epochs", "batch_size", "max_new_tokens", "prompt_suffix"):
            settings[f"{key} of task {task.name}"] = str(getattr(task, key))
    settings["data seed"] = str(trainer.data.seed)
    settings["batch size"] = f"{trainer.data.batch_size} x {trainer.accumulate_grad_batches}"
    return settings


_PLAIN = (bool, int, float, str, tuple)
_STATE = {"training", "stage_epochs", "stage_steps", "current_expert", "visible_experts"}
"""Attributes of the module that change as it learns."""


def _progress(trainer: ContinualTrainer) -> dict[str, Any]:
    """Return how far Lightning's counters are, so that steps and epochs go on monotonically."""
    loop = trainer.fit_loop
    return {
        "epoch": loop.epoch_progress.state_dict(),
        "batch": loop.epoch_loop.batch_progress.state_dict(),
        "optimizer": loop.epoch_loop.automatic_optimization.optim_progress.state_dict(),
        "stepped": loop.epoch_loop._batches_that_stepped,
    }


def _restore_progress(trainer: ContinualTrainer, progress: dict[str, Any]) -> None:
    loop = trainer.fit_loop
    loop.epoch_progress.load_state_dict(progress["epoch"])
    loop.epoch_loop.batch_progress.load_state_dict(progress["batch"])
    loop.epoch_loop.automatic_optimization.optim_progress.load_state_dict(progress["optimizer"])
    loop.epoch_loop._batches_that_stepped = progress["stepped"]
