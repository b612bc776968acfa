"""The classes of this package that a run or a config may name, in one closed table."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, get_type_hints

from dmole._moved import MOVED, NAMES, current_path

PARTS: dict[str, tuple[str, ...]] = {
    "Backbone": ("dmole.models.PretrainedBackbone",),
    "Allocator": (
        "dmole.allocation.ConditionAllocator",
        "dmole.allocation.DepthAllocator",
        "dmole.allocation.PromptAllocator",
        "dmole.allocation.SensitivityAllocator",
        "dmole.allocation.UniformAllocator",
    ),
    "Initializer": (
        "dmole.allocation.AdapterInitializer",
        "dmole.allocation.EvaInitializer",
        "dmole.allocation.GradientInitializer",
        "dmole.allocation.KeepInitializer",
    ),
    "Router": (
        "dmole.routing.AllExpertsRouter",
        "dmole.routing.AnchorRouter",
        "dmole.routing.ArrowRouter",
        "dmole.routing.AutoencoderRouter",
        "dmole.routing.CommonExpertRouter",
        "dmole.routing.GenerativeRouter",
        "dmole.routing.KeyRouter",
        "dmole.routing.OracleRouter",
        "dmole.routing.PromptRouter",
        "dmole.routing.RidgeRouter",
        "dmole.routing.SeparableRouter",
        "dmole.routing.SharedRouter",
        "dmole.routing.TextPrototypeRouter",
        "dmole.routing.TokenRouter",
    ),
    "TokenGate": (
        "dmole.routing.DenseGate",
        "dmole.routing.EntropyGate",
        "dmole.routing.OneHotGate",
        "dmole.routing.TopKGate",
    ),
    "Mixing": (
        "dmole.routing.ArrowMixing",
        "dmole.routing.BranchMixing",
        "dmole.routing.CommonMixing",
        "dmole.routing.DualMixing",
        "dmole.routing.SeparableMixing",
        "dmole.routing.TokenMixing",
    ),
    "Regularizer": (
        "dmole.regularizers.AdversarialTask",
        "dmole.regularizers.BranchFreezing",
        "dmole.regularizers.Distillation",
        "dmole.regularizers.ElasticWeights",
        "dmole.regularizers.IntruderReduction",
        "dmole.regularizers.KeyElements",
        "dmole.regularizers.LoadBalance",
        "dmole.regularizers.MomentumMerge",
        "dmole.regularizers.Orthogonality",
        "dmole.regularizers.ReplayImportance",
        "dmole.regularizers.RouterEntropy",
    ),
    "Stream": (
        "dmole.streams.AnswerStyleStream",
        "dmole.streams.AutoStream",
        "dmole.streams.BlurredStream",
        "dmole.streams.GenericStream",
        "dmole.streams.JointStream",
        "dmole.streams.ReplayStream",
        "dmole.streams.SequentialStream",
        "dmole.streams.ZeroShotStream",
    ),
    "TaskMetric": (
        "dmole.benchmarks.cmit.rules.MultichoiceInBatches",
        "dmole.benchmarks.cvit.captions.CVITCaption",
        "dmole.benchmarks.metrics.RuleMetric",
        "dmole.benchmarks.retention.metrics.MME",
        "dmole.benchmarks.retention.metrics.MMMU",
        "dmole.benchmarks.retention.metrics.POPE",
        "dmole.benchmarks.ucit.captions.UCITCaption",
        "dmole.metrics.BLEU4",
        "dmole.metrics.CIDEr",
        "dmole.metrics.Contains",
        "dmole.metrics.ExactMatch",
        "dmole.metrics.IoU",
        "dmole.metrics.METEOR",
        "dmole.metrics.ROUGEL",
        "dmole.metrics.VQASoft",
    ),
    "Callback": (
        "dmole.callbacks.CaseImages",
        "dmole.callbacks.Curriculum",
        "dmole.callbacks.EvaluationMatrix",
        "dmole.callbacks.ExpertAllocation",
        "dmole.callbacks.ExpertFiles",
        "dmole.callbacks.ExpertInspector",
        "dmole.callbacks.GradientRules",
        "dmole.callbacks.Regularization",
        "dmole.callbacks.ReplayRecord",
        "dmole.callbacks.ReportPage",
        "dmole.callbacks.RichStageProgressBar",
        "dmole.callbacks.RouterFitting",
        "dmole.callbacks.SegmentRecord",
        "dmole.callbacks.SkippedSteps",
        "dmole.callbacks.StageCheckpoint",
        "dmole.callbacks.StageProgressBar",
        "dmole.callbacks.StageProgressLines",
        "dmole.callbacks.TrainingRouting",
    ),
    "GradientRule": (
        "dmole.curriculum.rules.InputPreconditioning",
        "dmole.curriculum.rules.InputProjection",
        "dmole.curriculum.rules.PastDirection",
        "dmole.curriculum.rules.UtilityFreezing",
        "dmole.curriculum.rules.WeightSubspace",
    ),
    "Strategy": ("dmole.strategies.ShardedBaseStrategy",),
    "settings": ("dmole.data.Task", "dmole.models.Patterns"),
}
"""Public path of each class, by the name of its base class."""


@dataclass(frozen=True)
class Part:
    """A part of a method as a file names it.

    Args:
        kind: Short name of a class of dmole, or dotted path of another class.
        settings: Its arguments, with further parts in them.
    """

    kind: str
    settings: dict[str, Any]


def kinds(base: str) -> dict[str, str]:
    """Return the classes of a part: short name and public path.

    Args:
        base: Name of the base class, a key of `PARTS`.

    Example:
        >>> kinds("Mixing")["BranchMixing"]
        'dmole.routing.BranchMixing'
    """
    return {path.rpartition(".")[2]: path for path in PARTS[base]}


def import_class(path: str) -> type:
    """Return the class with a path.

    Raises:
        ValueError: If the path names no class; the message says why.
    """
    module, _, name = path.rpartition(".")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} cannot be imported: {error}") from error
    if not isinstance(found, type):
        raise ValueError(f"{path} is no class")
    return found


def defined_at(kind: type) -> str:
    """Return the path where a class is defined, whatever module it was imported from."""
    return f"{kind.__module__}.{kind.__qualname__}"


def is_under(path: str, trusted: Sequence[str]) -> bool:
    """Return whether a dotted path is one of the trusted paths or below one."""
    return any(path == each or path.startswith(f"{each}.") for each in trusted)


def constructor_hints(kind: type) -> dict[str, Any]:
    """Return the type hint of each argument of a class; none without a constructor of its own."""
    if kind.__init__ is object.__init__:  # type: ignore[misc]
        return {}
    hints = get_type_hints(kind.__init__)  # type: ignore[misc]
    names = [name for name in inspect.signature(kind).parameters if name in hints]
    return {name: hints[name] for name in names}


def required_arguments(kind: type) -> list[str]:
    """Return the names of the constructor arguments of a class that have no default."""
    if kind.__init__ is object.__init__:  # type: ignore[misc]
        return []
    parameters = inspect.signature(kind).parameters.values()
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in variable]


def kind_of(path: str, base: str) -> str | None:
    """Return the short name of a class of this package by its path, None for another class.

    Args:
        path: A current or an earlier path of the class.
        base: Name of its base class, a key of `PARTS`.

    Example:
        >>> kind_of("dmole.data.stream.JointStream", "Stream")
        'JointStream'
        >>> kind_of("subprocess.Popen", "Stream") is None
        True
    """
    path = current_path(path)
    name = path.rpartition(".")[2]
    public = kinds(base).get(name)
    if public is None or path not in (public, f"dmole.{name}", defined_at(import_class(public))):
        return None
    return name


def replace_parts(value: Any, replace: Callable[[str, dict[str, Any]], Any]) -> Any:
    """Return a value with every part in it replaced, inner ones first.

    Args:
        value: Result of a reader.
        replace: Returns the replacement of a part from its kind and settings.
    """
    if isinstance(value, list):
        return [replace_parts(each, replace) for each in value]
    if isinstance(value, Part):
        return replace(value.kind, replace_parts(value.settings, replace))
    if isinstance(value, Mapping):
        return {name: replace_parts(each, replace) for name, each in value.items()}
    return value


def part_paths() -> Iterator[str]:
    """Yield every path under which a config may name a class of `PARTS`, earlier ones included."""
    renamed: dict[str, list[str]] = {}
    for old, new in NAMES.items():
        renamed.setdefault(new, []).append(old)
    for public in (path for paths in PARTS.values() for path in paths):
        name = public.rpartition(".")[2]
        for path in dict.fromkeys((public, f"dmole.{name}", defined_at(import_class(public)))):
            yield path
            yield from renamed.get(path, ())
            module = path.rpartition(".")[0]
            for old, new in MOVED.items():
                if module == new or module.startswith(f"{new}."):
                    yield old + path[len(new) :]
