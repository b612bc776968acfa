"""Builds the base model, the router and the data of a run from its checked settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass, replace
from typing import TYPE_CHECKING, Any, get_args

from dmole.allocation import UniformAllocator
from dmole.data import Task
from dmole.routing import Router
from dmole.run.parts import (
    PARTS,
    Part,
    constructor_hints,
    import_class,
    is_under,
    kinds,
    replace_parts,
)
from dmole.run.plain import CONFIG, REMOTE_CODE
from dmole.run.schema import RunSettings

if TYPE_CHECKING:
    from dmole.datamodule import ContinualDataModule
    from dmole.module import ContinualModule


def build_module(
    settings: RunSettings, trusted: Sequence[str] = (), *, trust_remote_code: bool = False
) -> ContinualModule:
    """Return the base model with the router of a run, still without experts.

    Nothing but the classes of `dmole.run.parts.PARTS` and trusted ones is built; optimizer,
    allocator, regularizers, callbacks, loggers and plugins of the run are not.

    Args:
        settings: From :func:`dmole.run.model_file.read_run_settings`.
        trusted: Modules outside dmole whose classes may be built.
        trust_remote_code: Whether code in the folder of the base model may run.

    Raises:
        ValueError: If a value is out of range or the base model cannot be loaded; names the file.
    """
    from dmole.module import ContinualModule

    parts = build_model_parts(settings, trusted, trust_remote_code=trust_remote_code)
    try:
        return ContinualModule(allocator=UniformAllocator(), seed=settings.seed, **parts)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{settings.path}: {error}") from error


def build_model_parts(
    settings: RunSettings, trusted: Sequence[str] = (), *, trust_remote_code: bool = False
) -> dict[str, Any]:
    """Return ``backbone``, ``router`` and the settings of decoding of a run, without Lightning.

    Args:
        settings: From :func:`dmole.run.model_file.read_run_settings`.
        trusted: Modules outside dmole whose classes may be built.
        trust_remote_code: Whether code in the folder of the base model may run.

    Raises:
        ValueError: If a value is out of range or the base model cannot be loaded; names the file.
    """
    model = dict(settings.model)
    if trust_remote_code:
        backbone: Part = model["backbone"]
        model["backbone"] = replace(backbone, settings={**backbone.settings, REMOTE_CODE: True})
    try:
        parts: dict[str, Any] = _built(model, trusted)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{settings.path}: {error}") from error
    return parts


def build_router(settings: RunSettings, trusted: Sequence[str] = ()) -> Router:
    """Return the router of a run, without what it has learned.

    Args:
        settings: From :func:`dmole.run.model_file.read_run_settings`.
        trusted: Modules outside dmole whose classes may be built.

    Raises:
        ValueError: If a value is out of range; names the file.
    """
    try:
        router = _built(settings.model["router"], trusted)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{settings.path}: {error}") from error
    assert isinstance(router, Router)  # the reader has checked the type
    return router


def build_data(settings: RunSettings, trusted: Sequence[str] = ()) -> ContinualDataModule:
    """Return the data module of a run.

    Args:
        settings: From :func:`dmole.run.model_file.read_run_settings`.
        trusted: Modules outside dmole whose metrics may be built.

    Raises:
        ValueError: If a task or a number is not valid; names the file.
    """
    from dmole.datamodule import ContinualDataModule

    data = dict(settings.data)
    try:
        tasks = [Task(**_arguments(Task, _built(task, trusted))) for task in data.pop("tasks")]
        data = _arguments(ContinualDataModule, data)
        return ContinualDataModule(tasks, seed=settings.seed, **data)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{settings.path}: {error}") from error


def _built(value: Any, trusted: Sequence[str]) -> Any:
    """Return a plain value with every part in it replaced by its object."""

    def build(name: str, settings: dict[str, Any]) -> Any:
        kind = _class_of(name, trusted)
        return kind(**_arguments(kind, settings))

    return replace_parts(value, build)


def _arguments(kind: type, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a class, keys and values as the dataclasses that it expects."""
    hints = constructor_hints(kind)
    return {key: _as_dataclass(each, hints.get(key)) for key, each in settings.items()}


def _as_dataclass(value: Any, hint: Any) -> Any:
    """Return keys and values as the dataclass that a hint asks for, if it asks for one."""
    options = [each for each in (hint, *get_args(hint)) if is_dataclass(each)]
    if isinstance(value, Mapping) and options and isinstance(options[0], type):
        return options[0](**value)
    return value


def _class_of(name: str, trusted: Sequence[str]) -> type:
    """Return the class of a short name, or of a trusted path that is defined where it says."""
    if "." not in name:
        return import_class(_public(name))
    if not is_under(name, trusted):
        raise ValueError(f"the class {name} is neither part of dmole nor trusted")
    kind = import_class(name)
    if not is_under(f"{kind.__module__}.{kind.__qualname__}", trusted):
        raise ValueError(f"the class {name} is defined in {kind.__module__}, which is not trusted")
    return kind


def as_config(settings: RunSettings) -> dict[str, Any]:
    """Return the settings in the form of a config, for the command line and its overrides.

    The run is evaluated by one device unless flags say otherwise, and nothing is allocated.
    """
    trainer, model, data = (
        replace_parts(part, _config_part)
        for part in (settings.trainer, settings.model, settings.data)
    )
    scope = trainer.pop("avg_scope", None)
    if scope is not None:
        trainer["callbacks"] = [_config_part("EvaluationMatrix", {"avg_scope": scope})]
    return {
        "seed_everything": settings.seed,
        "trainer": {"devices": 1, **trainer},
        "model": {"allocator": _config_part("UniformAllocator", {}), **model},
        "data": data,
    }


def _config_part(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    part = {CONFIG.kind: name if "." in name else _public(name)}
    return part | ({CONFIG.settings: settings} if settings else {})


def _public(name: str) -> str:
    """Return the path of a class of dmole by its short name."""
    return next(kinds(base)[name] for base in PARTS if name in kinds(base))
