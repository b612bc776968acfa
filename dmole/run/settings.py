"""The settings of a run that its results depend on, except base model and data.

They are texts, which a resumed run compares with those of its checkpoint. Settings are the
arguments of constructors. A class keeps each argument in an attribute of the same name, with or
without a leading underscore; all its other attributes are state.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch

from dmole.data.decoding import AS_STORED

if TYPE_CHECKING:
    from dmole.data import Task
    from dmole.module import ContinualModule
    from dmole.routing import Router
    from dmole.run.state import SequenceState
    from dmole.streams.stream import Stream

_PLAIN = (bool, int, float, str, tuple)

RETIRED = ("allow_zero_length_dataloader_with_multiple_devices", "prepare_data_per_node",
           "vision_width", "due", "tasks")  # fmt: skip
"""Attributes that older checkpoints list as settings, though no constructor takes them."""

ADDED = {"rank_factor": "1.0", "min_steps": "1", "std_floor": "0.001", "combine": "sum",
         "skip_nonfinite_steps": "0", "ranking": "loss", "start": "fresh",
         "start_samples": "64", "start_ratio": "1.5", "covariance_components": "0",
         "evaluate": "all", "score": "gradient", "score_steps": "32"}  # fmt: skip
"""Settings that older checkpoints lack, with the value that the code had then."""

_OF_TASK = (
    *("format", "prompt", "prompt_suffix", "test_image_root", "eval_only"),
    *("epochs", "repeat", "batch_size", "max_new_tokens"),
)
_OF_DATA = ("batch_size", "seed", "group_by_length", "max_length", "on_too_long")
_OF_TRAINER = ("accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm")
_EXACT = ("proxy_passes",)
"""Arguments of which the results do not depend."""
_VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_WITHOUT_EFFECT = (
    *("ExpertInspector", "ReportPage", "RichStageProgressBar", "StageCheckpoint"),
    *("StageProgressBar", "StageProgressLines"),
)
"""Callbacks of this package that do not change any result."""


def run_settings(state: SequenceState, module: ContinualModule) -> dict[str, str]:
    """Return the settings of all parts of a run, by a name that a message can use.

    Settings that affect at most rounding are left out: loader workers, devices, evaluation
    batches.
    """
    trainer, data = state.trainer, state.data
    settings = {
        "setting 'optimizer'": _optimizer(module),
        "setting 'dropout'": str(module.library.dropout),
        "setting 'precision'": str(trainer.precision),
        "setting 'limit_train_batches'": str(trainer.limit_train_batches),
        "setting 'trainer.evaluate'": state.evaluates,
    }
    if module.generation:  # a mapping; empty in checkpoints from before this setting
        settings["model setting 'generation'"] = str(sorted(module.generation.items()))
    for prefix, part in (("model", module), ("allocator", module.allocator)):
        settings |= {f"{prefix} setting {n!r}": v for n, v in _arguments(part)}
    settings |= _initializer(module)
    settings |= {f"router setting {name!r}": value for name, value in _nested(module.router)}
    for term in module.regularizers:
        name = type(term).__name__
        settings |= {f"{name} setting {n!r}": v for n, v in _nested(term)}
    for name in _OF_TRAINER:
        settings[f"setting 'trainer.{name}'"] = str(getattr(trainer, name))
    for name in _OF_DATA:
        settings[f"setting 'data.{name}'"] = str(getattr(data, name))
    for task in data.tasks:
        settings |= task_settings(task)
    for callback in state.callbacks:
        kind = type(callback)
        if kind.__module__.startswith("dmole.callbacks.") and kind.__name__ not in _WITHOUT_EFFECT:
            settings |= {f"{kind.__name__} setting {n!r}": v for n, v in _arguments(callback)}
    for rule in _rules(state):
        settings |= {f"{type(rule).__name__} setting {n!r}": v for n, v in _arguments(rule)}
    return settings


def _rules(state: SequenceState) -> Iterator[object]:
    """Yield the gradient rules of a run."""
    for callback in state.callbacks:
        if type(callback).__name__ == "GradientRules":
            yield from getattr(callback, "rules", ())


def stream_settings(stream: Stream) -> dict[str, str]:
    """Return the settings of a stream, which determine the samples of the stages, as texts."""
    settings = {f"stream setting {name!r}": value for name, value in _arguments(stream)}
    return settings | {"stream": type(stream).__name__}


def task_settings(task: Task) -> dict[str, str]:
    """Return the settings of a task that its results depend on, except its samples, as texts."""
    settings = {f"{key} of task {task.name}": str(getattr(task, key)) for key in _OF_TASK}
    if task.images not in (None, AS_STORED):  # checkpoints from before this setting lack it
        settings[f"images of task {task.name}"] = str(task.images)
    if task.update:  # the same
        settings[f"update of task {task.name}"] = str(task.update)
    return settings | {f"side_files of task {task.name}": str(sorted(task.side_files.items()))}


def brought_up_to_date(saved: Mapping[str, str], current: Mapping[str, str]) -> dict[str, str]:
    """Return the settings of a checkpoint without those of `RETIRED`, with those of `ADDED`."""
    added = {
        key: text
        for key in current
        for name, text in ADDED.items()
        if key not in saved and key.endswith(_endings(name))
    }
    endings = tuple(ending for name in RETIRED for ending in _endings(name))
    kept = {k: text for k, text in saved.items() if k in current or not k.endswith(endings)}
    return {**kept, **added}


def _endings(name: str) -> tuple[str, str]:
    """Return how the key of an argument ends, of a part itself or of an object within it."""
    return f"'{name}'", f".{name}'"


def contrast(saved: str | None, current: str | None) -> str:
    """Return what differs between a setting of a checkpoint and that of a run.

    Of a list of arguments, only those that differ are shown.

    Example:
        >>> contrast("AdamW [('eps', 1e-08), ('lr', 0.1)]", "AdamW [('eps', 1e-08), ('lr', 0.2)]")
        "checkpoint: 'lr', 0.1; now: 'lr', 0.2"
    """
    old, new = (str(text).split("), (") for text in (saved, current))
    if len(old) == len(new):
        pairs = [(a, b) for a, b in zip(old, new, strict=True) if a != b]
        old, new = [a for a, _ in pairs], [b for _, b in pairs]
    texts = ("; ".join(part.strip("()[]") for part in parts)[:200] for parts in (old, new))
    return "checkpoint: {}; now: {}".format(*texts)


def _initializer(module: ContinualModule) -> dict[str, str]:
    """Return class and settings of the initializer; none in checkpoints from before it."""
    starts = module.allocator.initializer
    if starts is None:
        return {}
    key = "allocator setting 'initializer"
    found = {f"{key}.{name}'": value for name, value in _arguments(starts)}
    return {f"{key}'": type(starts).__name__, **found}


def _optimizer(module: ContinualModule) -> str:
    """Return class and defaults of the optimizer, made for a dummy parameter."""
    optimizer = module.make_optimizer([torch.nn.Parameter(torch.zeros(1))])
    return f"{type(optimizer).__name__} {sorted(optimizer.defaults.items(), key=str)}"


def _arguments(instance: object) -> Iterator[tuple[str, str]]:
    """Yield the plain constructor arguments that an object keeps as attributes.

    Attributes that are no argument of a constructor are state, not settings.
    """
    for name in _parameters(type(instance)):
        value = getattr(instance, name, getattr(instance, f"_{name}", None))
        if isinstance(value, _PLAIN):
            yield name, str(value)


def _parameters(kind: type) -> list[str]:
    """Return the names of the constructor arguments of a class and its base classes."""
    names: dict[str, None] = {}
    for base in kind.__mro__:
        if base is not object and "__init__" in vars(base):
            parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
            names |= dict.fromkeys(p.name for p in parameters if p.kind not in _VARIABLE)
    for name in _EXACT:
        names.pop(name, None)
    names.pop("self", None)
    return sorted(names)


def mixing_settings(router: Router) -> dict[str, str]:
    """Return how a router weighs experts within linears, by name; empty if it does not."""
    mixing = router.mixing
    if mixing is None:
        return {}
    classes = {"class": type(mixing).__name__, "gate": type(getattr(mixing, "gate", None)).__name__}
    return {**dict(_nested(mixing)), **classes}


def _nested(instance: object, depth: int = 3) -> Iterator[tuple[str, str]]:
    """Yield the constructor arguments of an object and of its attributes from this package."""
    yield from _arguments(instance)
    if not depth:
        return
    for name, value in sorted(getattr(instance, "__dict__", {}).items()):
        if type(value).__module__.startswith("dmole.") and not isinstance(value, _PLAIN):
            for inner, text in _nested(value, depth - 1):
                yield f"{name.lstrip('_')}.{inner}", text
