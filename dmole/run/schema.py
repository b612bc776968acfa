"""The settings of a run that its answers depend on: their keys, types and ranges."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dmole.data import Task
from dmole.data.decoding import ImageOptions
from dmole.data.ranges import RANGES
from dmole.models.backbone import Backbone
from dmole.routing import Router
from dmole.run.plain import REMOTE_CODE, PlainReader
from dmole.streams.stream import Stream

TRAINING_ONLY = (
    *("allocator", "alpha", "dropout", "optimizer", "schedule", "warmup", "regularizers", "seed"),
    *("activation_checkpointing", "past_experts_on_device", "projector_experts"),
    *("cache_vision", "cache_vision_bytes", "cache_vision_folder"),
)
"""Arguments of `ContinualModule` without an effect on answers."""

MODEL: dict[str, Any] = {
    "backbone": Backbone,
    "router": Router,
    "beams": int,
    "generation": dict[str, Any] | None,
    "skip_nonfinite_steps": int,
}
"""Types of the arguments of `ContinualModule` that a run may hold, all but `TRAINING_ONLY`."""

DATA: dict[str, Any] = {
    "tasks": list[Task],
    "data_root": str | None,
    "batch_size": int,
    "max_tokens_per_batch": int | None,
    "eval_batch_size": int,
    "eval_tokens_per_batch": int | None,
    "eval_limit": int | None,
    "num_workers": int,
    "max_length": int | None,
    "on_too_long": Literal["error", "truncate"],
    "group_by_length": bool,
    "pin_memory": bool,
    "verify_images": bool,
    "images": ImageOptions,
}
"""Types of the arguments of `ContinualDataModule` that a run may hold, all but `NOT_OF_RUN`."""

NOT_OF_RUN = ("seed", "cache_images", "cache_bytes", "cache_folder")
"""Arguments of `ContinualDataModule` that a run has elsewhere, or that are of a machine alone."""

TRAINER: dict[str, Any] = {
    "name": str,
    "stream": Stream | None,
    "incremental_evaluation": bool,
    "evaluate": Literal["all", "seen", "last"],
    "accelerator": Literal["auto", "cpu", "gpu", "cuda", "mps"],
    "precision": Literal["32-true", "32", 32, "bf16-mixed", "bf16", "16-mixed", "16", 16] | None,
    "deterministic": bool | Literal["warn"] | None,
    "benchmark": bool | None,
    "inference_mode": bool,
    "enable_progress_bar": bool | None,
    "avg_scope": Literal["all", "seen"],
}
"""Types of the settings of the trainer."""

_RANGES = {
    "seed": (0, 2**32 - 1),
    "model.beams": (1, 256),
    **{f"data.{key}": bounds for key, bounds in RANGES.items()},
}
"""Smallest and largest value of numbers that a run may set."""


@dataclass(frozen=True)
class RunSettings:
    """The settings of a run that its answers depend on, checked and plain.

    Args:
        path: The file they come from.
        seed: Seed of the run.
        model: ``backbone``, ``router`` and decoding settings.
        data: Arguments of the data module, with ``tasks``.
        trainer: ``stream``, ``precision`` and others.
        remote_code: Whether the file sets ``trust_remote_code``, which is never read from it.
    """

    path: Path
    seed: int
    model: dict[str, Any]
    data: dict[str, Any]
    trainer: dict[str, Any]
    remote_code: bool = False

    def base_strings(self) -> Iterator[str]:
        """Yield every text in the settings of the base model: names and paths."""
        yield from _strings(self.model["backbone"].settings)


def checked_settings(
    content: Mapping[str, Any], reader: PlainReader, remote_code: bool
) -> RunSettings:
    """Return settings if every value has the type and range of its key.

    Args:
        content: ``seed``, ``model``, ``data`` and ``trainer``.
        reader: Reads the values of the file.
        remote_code: Whether the file sets ``trust_remote_code``.

    Raises:
        ValueError: If a key is missing or unknown, or a value is not valid; names file and key.
    """
    parts = {
        name: reader.arguments(hints, reader.mapping(content[name], name), name)
        for name, hints in (("model", MODEL), ("data", DATA), ("trainer", TRAINER))
    }
    for section, needed in (("model", ("backbone", "router")), ("data", ("tasks",))):
        for key in needed:
            if key not in parts[section]:
                raise reader.error(f"{section}.{key}", "is missing")
    parts["model"]["backbone"].settings.pop(REMOTE_CODE, None)  # false or null
    seed = reader.read(int, content["seed"], "seed")
    settings = RunSettings(reader.path, seed, **parts, remote_code=remote_code)
    for key, (least, most) in _RANGES.items():
        section, _, name = key.rpartition(".")
        value = parts[section].get(name) if section else seed
        if value is not None and not least <= value <= most:
            raise reader.error(key, f"must be from {least} to {most}, got {value}")
    return settings


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, Mapping)):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _strings(each)
