"""What the numbers of a run depend on beside base model and data, as texts to compare."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from dmole.data import Task
    from dmole.module import ContinualModule
    from dmole.run.state import SequenceState
    from dmole.streams.stream import Stream

_PLAIN = (bool, int, float, str, tuple)
_STATE = {
    *("training", "stage_epochs", "stage_steps", "stage_tasks"),
    *("current_expert", "visible_experts"),
}
"""Attributes of the module that change as it learns."""

_OF_TASK = (
    *("format", "prompt", "prompt_suffix", "test_image_root", "eval_only"),
    *("epochs", "repeat", "batch_size", "max_new_tokens"),
)
_OF_DATA = ("batch_size", "seed", "group_by_length", "max_length", "on_too_long")
_OF_TRAINER = ("accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm")
_WITHOUT_EFFECT = ("StageCheckpoint", "StageProgressBar", "ExpertInspector")
"""Callbacks of ours that do not change any number."""


def run_settings(state: SequenceState, module: ContinualModule) -> dict[str, str]:
    """Return the settings of all parts of a run, by a name that a message can use.

    What changes rounding at most is left out: loader workers, devices, evaluation batches.
    """
    trainer, data = state.trainer, state.data
    settings = {
        "setting 'optimizer'": _optimizer(module),
        "setting 'dropout'": str(module.library.dropout),
        "setting 'precision'": str(trainer.precision),
        "setting 'limit_train_batches'": str(trainer.limit_train_batches),
    }
    for prefix, thing in (("model", module), ("allocator", module.allocator)):
        settings |= {f"{prefix} setting {n!r}": v for n, v in _public(thing)}
    settings |= {f"router setting {name!r}": value for name, value in _nested(module.router)}
    for term in module.regularizers:
        name = type(term).__name__
        settings |= {f"{name} setting {n!r}": v for n, v in _nested(term) if n != "training"}
    for name in _OF_TRAINER:
        settings[f"setting 'trainer.{name}'"] = str(getattr(trainer, name))
    for name in _OF_DATA:
        settings[f"setting 'data.{name}'"] = str(getattr(data, name))
    for task in data.tasks:
        settings |= task_settings(task)
    for callback in state.callbacks:
        kind = type(callback)
        if kind.__module__.startswith("dmole.callbacks.") and kind.__name__ not in _WITHOUT_EFFECT:
            settings |= {f"{kind.__name__} setting {n!r}": v for n, v in _public(callback)}
    return settings


def stream_settings(stream: Stream) -> dict[str, str]:
    """Return what the samples of the stages follow from beside their tasks, as texts."""
    settings = {f"stream setting {name!r}": value for name, value in _public(stream)}
    return settings | {"stream": type(stream).__name__}


def task_settings(task: Task) -> dict[str, str]:
    """Return what the numbers of a task depend on beside its samples, as texts."""
    settings = {f"{key} of task {task.name}": str(getattr(task, key)) for key in _OF_TASK}
    return settings | {f"side_files of task {task.name}": str(sorted(task.side_files.items()))}


def _optimizer(module: ContinualModule) -> str:
    """Return class and defaults of the optimizer, made for a parameter of no use."""
    optimizer = module.make_optimizer([torch.nn.Parameter(torch.zeros(1))])
    return f"{type(optimizer).__name__} {sorted(optimizer.defaults.items(), key=str)}"


def _public(thing: object) -> Iterator[tuple[str, str]]:
    for name, value in vars(thing).items():
        if not name.startswith("_") and name not in _STATE and isinstance(value, _PLAIN):
            yield name, str(value)


def _nested(thing: object, depth: int = 3) -> Iterator[tuple[str, str]]:
    """Yield the plain attributes of an object of ours and of those it is made of."""
    for name, value in _attributes(thing):
        if isinstance(value, _PLAIN):
            yield name.lstrip("_"), str(value)
        elif depth and type(value).__module__.startswith("dmole."):
            for inner, text in _nested(value, depth - 1):
                yield f"{name.lstrip('_')}.{inner}", text


def _attributes(thing: object) -> Iterator[tuple[str, Any]]:
    names = vars(thing) if hasattr(thing, "__dict__") else getattr(thing, "__slots__", ())
    for name in sorted(names):
        yield name, getattr(thing, name)
