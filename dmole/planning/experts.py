"""The experts of a sequence, as allocator and router of a config would make them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from dmole.allocation import Allocation, Allocator, Unit, build_units
from dmole.allocation.budget import budget_modality
from dmole.planning.memory import MASK, ExpertSize
from dmole.planning.setup import Setup
from dmole.planning.shape import ModelShape
from dmole.routing.mixture_routers import expert_shapes

FEW = 2
"""Partners that the samples of one batch are assumed to choose among, all of one task."""


@dataclass(frozen=True, kw_only=True)
class PlannedExperts:
    """The experts of a sequence.

    Args:
        size: What a stage trains: its expert and the common one, if any.
        parameters: Parameters of all experts at the end.
        past: Those of the experts that the last stage does not train.
        largest: Those of the largest expert.
        count: Number of experts at the end.
        by_sample: Whether a sample may use no expert that the latest stage has trained.
        partners: Whether a step computes past experts beside the one in training.
        in_step: Past experts that a batch is assumed to use in training.
        in_answer: Experts that a batch is assumed to use in evaluation.
        scored: Experts in all units, which a short training scores; None without one.
    """

    size: ExpertSize
    parameters: int
    past: int
    largest: int
    count: int
    by_sample: bool
    partners: bool
    in_step: int
    in_answer: int
    scored: ExpertSize | None


def scored_by_gradients(allocator: Allocator) -> bool:
    """Return whether an allocator needs the proxy pass."""
    return allocator.needs_scores and allocator.scored_by == "gradients"


def scored_by_training(allocator: Allocator) -> bool:
    """Return whether an allocator needs a short training of experts in all units."""
    return allocator.needs_scores and allocator.scored_by == "training"


def plan_experts(shape: ModelShape, setup: Setup) -> PlannedExperts:
    """Return the experts at the end of a sequence.

    Scores are not known before a run. The costliest choice is assumed, as many blocks of the
    language model as the budget allows.

    Raises:
        ValueError: If no unit can hold an expert.
    """
    if setup.allocator.unit == "input":
        raise ValueError(
            f"dmole plan does not reckon soft prompts, which {type(setup.allocator).__name__} gives"
        )
    setup.router.set_text_width(shape.language.width)
    units = _units(shape, setup)
    names = list(dict.fromkeys(name for stage in setup.stages for name in stage.experts))
    sizes = {}
    for number, name in enumerate(names):
        plan = _allocate(units, setup, name, first=number == 0)
        sizes[name] = _size(shape, setup, plan)
    last = setup.stages[-1].experts if setup.stages else ()
    trained = [sizes[name] for name in last]
    past = sum(size.parameters for name, size in sizes.items() if name not in last)
    router = getattr(setup.router, "router", setup.router)
    return PlannedExperts(
        size=_joined(trained),
        parameters=sum(size.parameters for size in sizes.values()),
        past=past,
        largest=max((size.parameters for size in sizes.values()), default=0),
        count=len(sizes),
        by_sample=len(sizes) > 1 and not setup.router.common and not _uses_all(router),
        partners=past > 0 and _uses_past(router),
        in_step=_in_step(setup, router, len(sizes) - len(last)),
        in_answer=_in_answer(router, len(sizes)) + (len(last) > 1),
        scored=_scored(shape, setup, units) if sizes else None,
    )


def _scored(shape: ModelShape, setup: Setup, units: list[Unit]) -> ExpertSize | None:
    if not scored_by_training(setup.allocator):
        return None
    size = _size(shape, setup, setup.allocator.largest("scored", units, first=True))
    return replace(size, mask=0)  # without dropout


def _units(shape: ModelShape, setup: Setup) -> list[Unit]:
    blocks = [b for b in shape.blocks if setup.projector_experts or b.modality != "projector"]
    return build_units(blocks, dict(shape.sizes), setup.allocator.unit, setup.allocator.targets)


def _allocate(units: list[Unit], setup: Setup, name: str, *, first: bool) -> Allocation:
    if not setup.allocator.needs_scores:
        return setup.allocator.allocate(name, units, None, first)
    scores = {u.name: 1.0 if budget_modality(u.modality) == "language" else 1e-9 for u in units}
    return setup.allocator.allocate(name, units, scores, first)


def _size(shape: ModelShape, setup: Setup, plan: Allocation) -> ExpertSize:
    shapes = expert_shapes(plan, setup.router, setup.allocator.expert_alpha(setup.alpha))
    held = [{b.name for b in shape.blocks if b.modality == m and shapes.keys() & set(b.linears)}
            for m in ("vision", "language")]  # fmt: skip
    half = setup.mixed or setup.dtype == "float32"
    return ExpertSize(
        blocks=(len(held[0]), len(held[1])),
        channels=max((of_linear.channels for of_linear in shapes.values()), default=0),
        parameters=sum(of.count(*shape.sizes[path]) for path, of in shapes.items()),
        mask=MASK if setup.dropout else 0,
        copies=not half,
        linears=tuple(shape.sizes[path] for path in shapes),
    )


def _joined(sizes: list[ExpertSize]) -> ExpertSize:
    """Return the size of several experts in training together."""
    if not sizes:
        return ExpertSize(blocks=(0, 0), channels=0, parameters=0)
    return replace(
        sizes[0],
        blocks=(max(s.blocks[0] for s in sizes), max(s.blocks[1] for s in sizes)),
        channels=sum(size.channels for size in sizes),
        parameters=sum(size.parameters for size in sizes),
        linears=max((size.linears for size in sizes), key=len),
    )


def _uses_past(router: object) -> bool:
    return bool(getattr(router, "partner", False)) or _uses_all(router)


def _uses_all(router: object) -> bool:
    return type(router).__name__ == "AllExpertsRouter"


def _in_step(setup: Setup, router: object, past: int) -> int:
    """Return how many past experts a batch uses in training: few, where samples choose partners."""
    every = any(name == "Orthogonality" for name, _ in setup.regularizers)
    if every or _uses_all(router):
        return past
    return min(past, FEW) if _uses_past(router) else 0


def _in_answer(router: object, count: int) -> int:
    """Return how many experts a batch uses in evaluation: all samples are of one task."""
    if _uses_all(router):
        return count
    return min(count, int(getattr(router, "max_experts", 1)))
