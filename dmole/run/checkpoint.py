"""What a run saves to go on from: all that was learned, never the frozen base model.

Two files. ``last.ckpt`` is the state after the last finished phase. ``stage.ckpt`` is the state
within the stage that trains: the current expert, its optimizer, the place in the data.
"""

from __future__ import annotations

import logging
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmole._version import __version__
from dmole.run.checkpoint_file import FORMAT, read_checkpoint, save_checkpoint
from dmole.run.clock import Lap
from dmole.run.run_folder import LAST
from dmole.run.settings import run_settings, stream_settings

if TYPE_CHECKING:
    from dmole.module import ContinualModule
    from dmole.trainer import ContinualTrainer

log = logging.getLogger("dmole")

Done = set[tuple[int, str]]


class SequenceCheckpoint:
    """Saves a run and brings it back to where it was.

    A phase that was cut short starts again, except training, which goes on at its last saved
    step. All draws depend on seed, stage and rank alone or are restored, so the result is the one
    of an uninterrupted run.
    """

    def __init__(self) -> None:
        self._fingerprints: dict[str, Any] | None = None
        self._settings: dict[str, str] | None = None
        self._run = secrets.token_hex(8)

    def save(self, trainer: ContinualTrainer, module: ContinualModule, done: Done) -> None:
        """Write ``last.ckpt`` after a phase; all ranks call it alike."""
        callbacks = {cb.state_key: cb.state_dict() for cb in trainer.callbacks}  # type: ignore[attr-defined]
        sequence = {cb.state_key: cb.sequence_state_dict() for cb in trainer.continual_callbacks()}
        if not trainer.is_global_zero:
            return
        content = {
            "format": FORMAT,
            "code": __version__,
            "run": self._run,
            "done": sorted([stage, phase] for stage, phase in done),
            "fingerprints": self._fingerprint(trainer, module),
            "settings": self._settings_of(trainer, module),
            "architecture": module.library.architecture(),
            "versions": dict(module.library.versions),
            "state_dict": module.state_dict(),
            "router": module.router.state_dict(),
            "callbacks": {key: state for key, state in callbacks.items() if state},
            "sequence": {key: state for key, state in sequence.items() if state},
            "progress": _progress(trainer),
            "laps": [vars(lap) for lap in trainer.clock.laps],
            "parameters": trainer.clock.parameters,
        }
        save_checkpoint(content, trainer.run_dir / LAST)
        if (trainer.current_stage.index, "train") in done:
            stage_file(trainer.run_dir / LAST).unlink(missing_ok=True)

    def save_stage(self, trainer: ContinualTrainer, module: ContinualModule) -> None:
        """Write ``stage.ckpt`` within a stage's training; all ranks call it alike."""
        # Lightning's flag says what is saved: with the optimizer. How it is read is another one
        trainer.save_checkpoint(stage_file(trainer.run_dir / LAST), weights_only=False)

    def stage_content(self, trainer: ContinualTrainer, module: ContinualModule) -> dict[str, Any]:
        """Return what a checkpoint within a stage needs beyond Lightning's own."""
        shapes = module.library.architecture()
        return {
            "format": FORMAT,
            "run": self._run,
            "stage": trainer.current_stage.index,
            "world_size": trainer.world_size,
            "architecture": {name: shapes[name] for name in module.training_experts},
            "parameters": trainer.clock.parameters,
        }

    def load(
        self, trainer: ContinualTrainer, module: ContinualModule, file: Path
    ) -> tuple[Done, Path | None]:
        """Rebuild the state of a checkpoint.

        Args:
            trainer: Works in the checkpoint's run folder.
            module: Receives experts and router.
            file: The checkpoint after a phase.

        Returns:
            The phases that are finished, and the checkpoint within the next one if it is
            training that was cut short.

        Raises:
            ValueError: If a file cannot be read, or base model, data or settings are not the
                ones it was made with; the message says which.
        """
        content = read_checkpoint(file)
        if "stage" in content:
            raise ValueError(f"{file} holds one stage only: name its run folder instead")
        _require(content, _PHASE_PARTS, file)
        _compare(content["fingerprints"], self._fingerprint(trainer, module), file)
        changed = _differing(content["settings"], self._settings_of(trainer, module))
        if changed and not trainer.accept_changes:
            raise ValueError(
                f"{file} was made with another {changed[0]}; trainer.accept_changes goes on with it"
            )
        for name in changed:
            log.warning("goes on with another %s", name)
        if content["code"] != __version__:
            log.warning("%s was made by dmole %s, this is %s", file, content["code"], __version__)
        self._run = content["run"]
        module.library.rebuild(content["architecture"])
        module.library.versions.update(content["versions"])
        module.load_state_dict(content["state_dict"])
        module.router.load_state_dict(content["router"])
        _load_callbacks(trainer, content["callbacks"])
        for callback in trainer.continual_callbacks():
            if callback.state_key in content["sequence"]:
                callback.load_sequence_state_dict(content["sequence"][callback.state_key])
        _restore_progress(trainer, content["progress"])
        trainer.clock.laps = [Lap(**lap) for lap in content["laps"]]
        trainer.clock.parameters = content["parameters"]
        done = {(stage, phase) for stage, phase in content["done"]}
        return done, self._load_stage(trainer, module, stage_file(file), done)

    def _load_stage(
        self, trainer: ContinualTrainer, module: ContinualModule, file: Path, done: Done
    ) -> Path | None:
        """Put the expert of a cut stage in place, so that nothing is allocated again."""
        if not file.is_file():
            return None
        content = read_checkpoint(file)
        _require(content, _STAGE_PARTS, file)
        if content["run"] != self._run or (content["stage"], "train") in done:
            return None  # of a stage that has been finished since
        if content["world_size"] != trainer.world_size:
            log.warning(
                "stage %d starts again: it was trained by %d processes, this run has %d",
                content["stage"],
                content["world_size"],
                trainer.world_size,
            )
            return None
        module.library.rebuild({**module.library.architecture(), **content["architecture"]})
        _load_callbacks(trainer, content["callbacks"])
        trainer.clock.parameters = content["parameters"]
        return file

    def _settings_of(self, trainer: ContinualTrainer, module: ContinualModule) -> dict[str, str]:
        """Return the settings as they were before anything was learned."""
        if self._settings is None:
            self._settings = run_settings(trainer, module)
        return self._settings

    def identity(self, trainer: ContinualTrainer, module: ContinualModule) -> dict[str, Any]:
        """Return the SHA-256 of the base model and of each task's samples by split."""
        known = self._fingerprint(trainer, module)
        data = {name: known[f"data of {name}"] for name in trainer.data.task_names}
        return {"base": known["base model"], "data": data}

    def _fingerprint(self, trainer: ContinualTrainer, module: ContinualModule) -> dict[str, Any]:
        if self._fingerprints is None:
            self._fingerprints = {
                "base model": module.backbone.fingerprint(),
                "order of stages": [[s.name, s.expert, *s.tasks] for s in trainer.plan],
                "order of tasks": list(trainer.data.task_names),
                "router": type(module.router).__name__,
                **stream_settings(trainer.stream),
                **{f"data of {k}": v for k, v in trainer.data.fingerprint().items()},
            }
        return self._fingerprints


def stage_file(last: Path) -> Path:
    """Return where the checkpoint within a stage is, beside the one after the last phase."""
    return last.with_name("stage.ckpt")


_PHASE_PARTS = (
    *(
        "code",
        "run",
        "done",
        "fingerprints",
        "settings",
        "architecture",
        "versions",
        "state_dict",
        "router",
    ),
    *("callbacks", "sequence", "progress", "laps", "parameters"),
)
_STAGE_PARTS = ("run", "stage", "world_size", "architecture", "callbacks", "parameters")


def _require(content: dict[str, Any], keys: tuple[str, ...], file: Path) -> None:
    missing = [key for key in keys if key not in content]
    if missing:
        raise ValueError(f"{file} is no whole checkpoint: it lacks {', '.join(missing)}")


def _load_callbacks(trainer: ContinualTrainer, states: dict[str, Any]) -> None:
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if callback.state_key in states:
            callback.load_state_dict(states[callback.state_key])


def _compare(saved: dict[str, Any], current: dict[str, Any], file: Path) -> None:
    for name in _differing(saved, current):
        raise ValueError(f"{file} was made with another {name}; it cannot be resumed here")


def _differing(saved: dict[str, Any], current: dict[str, Any]) -> list[str]:
    names = sorted(saved.keys() | current.keys())
    return [name for name in names if saved.get(name) != current.get(name)]


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
