"""Before each stage: score the units, allocate the expert, place it on the model."""

from __future__ import annotations

import hashlib
import logging
from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from dmole.allocation import Allocation
from dmole.allocation.budget import budget_modality
from dmole.allocation.start import closest_expert
from dmole.callbacks.base import ContinualCallback, parts
from dmole.callbacks.initialization import check_kept, keep_directions, start_expert
from dmole.callbacks.unit_scores import measure_units
from dmole.callbacks.warm_start import compare_starts
from dmole.distributed import broadcast, gather_objects
from dmole.modality import INPUT
from dmole.run.context import StageContext
from dmole.run.run_files import RunFile
from dmole.storage.files import write_csv
from dmole.storage.versions import newest_versions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dmole.allocation import AllocationEntry
    from dmole.module import ContinualModule
    from dmole.run.state import SequenceState
    from dmole.streams.stream import Stage

log = logging.getLogger("dmole")

COMMON = 0
"""Key of the allocation of the expert that all stages share."""

HEADER = ("stage", "expert", "modality", "unit", "score", "selected", "rank")


class ExpertAllocation(ContinualCallback):
    """Places a stage's new experts on the model; an existing expert continues training.

    It acts before Lightning wraps the model for distributed training and makes the optimizer, so
    both include the new parameters. All ranks use the allocation of rank 0, which each rank
    verifies. Writes ``allocation.csv``.
    """

    def __init__(self) -> None:
        self.allocations: dict[int, Allocation] = {}
        self._texts: dict[int, tuple[Allocation, str]] = {}  # those of `state_dict`
        self._kept: dict[str, Tensor] = {}  # directions of past tasks, by linear

    def on_stage_start(self, state: SequenceState, module: ContinualModule) -> None:
        """Place the stage's experts on the model, the common one first, and start the stage."""
        stage = state.stage
        for name in reversed(stage.experts):
            if name in module.library.names:
                continue
            with state.timed("allocate"):
                plan = plan_allocation(state, module, stage, name)
                plan = _agreed(self._started(plan, state, module))
                self.allocations[COMMON if name == stage.common else stage.index] = plan
                module.add_expert(plan)
                if module.allocator.initializer is not None and plan.parent is None:
                    start_expert(state, module, plan, self._kept)
            self._report(state, module, plan)
        version = state.updated_expert(stage)
        if version is not None:
            module.router.add_update(stage.expert, version)
        plan_of_stage = self.allocations.get(stage.index)
        epochs = state.data.epochs(stage.tasks)
        module.begin_stage(StageContext.of(stage, epochs, plan_of_stage))

    def _started(
        self, plan: Allocation, state: SequenceState, module: ContinualModule
    ) -> Allocation:
        """Return the allocation with its parent, if the expert starts from a past one."""
        plans = {past.expert: past for past in self.allocations.values()}
        version = state.updated_expert(state.stage)
        if version is not None and plan.expert == state.stage.expert:
            log.info("expert %s continues expert %s, on the same units", plan.expert, version)
            return plan.starting_from(plans[version])
        newest = newest_versions(module.library.names, module.router.updates)
        past = [n for n in newest.values() if n in plans and n != module.router.common]
        past = list(dict.fromkeys(past))  # without replaced versions
        if module.allocator.start == "fresh" or not past:
            return plan
        found = compare_starts(state, module, state.stage, past)
        parent = closest_expert(found.losses, found.entropy, module.allocator.start_ratio)
        origin = "fresh" if parent is None else f"from expert {parent}"
        log.info("expert %s starts %s; %s", plan.expert, origin, found)
        return plan if parent is None else plan.starting_from(plans[parent])

    def on_experts_final(self, state: SequenceState, module: ContinualModule) -> None:
        """Let the initializer keep directions of the stage's task for later experts."""
        starts = module.allocator.initializer
        if starts is not None and starts.kept_source != "nothing":
            self._kept = keep_directions(state, module, self._kept)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the trainable parameters, those of regularizers included."""
        state, module = parts(trainer, pl_module)
        count = sum(p.numel() for p in module.parameters() if p.requires_grad)
        state.clock.costs.record(trainable={state.stage.expert: count})

    def parents(self) -> dict[str, str | None]:
        """Return the past expert that each expert started from; None for a fresh start."""
        return {plan.expert: plan.parent for plan in self.allocations.values()}

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows of ``allocation.csv``."""
        plans = self.allocations.items()
        return [row for index, plan in plans for row in plan.rows(max(1, index))]

    def _report(self, state: SequenceState, module: ContinualModule, plan: Allocation) -> None:
        count = module.count_parameters(plan)
        shares = ", ".join(f"{modality} {share:.0%}" for modality, share in plan.difficulty.items())
        sizes = dict.fromkeys(describe_rank(entry) for entry in plan.experts)
        log.info(
            "expert %s: %s; %s; %d parameters%s",
            plan.expert,
            " ".join(entry.unit for entry in plan.experts),
            " or ".join(sizes),
            count,
            f" (difficulty: {shares})" if shares else "",
        )
        state.clock.costs.record(base=module.backbone.parameter_count())
        state.put(*self.run_files(state, module))

    def run_files(self, state: SequenceState, module: ContinualModule) -> Iterator[RunFile]:
        """Return ``allocation.csv``, which exists once an expert is placed."""
        if self.allocations:
            rows = self.rows()
            yield RunFile(
                "allocation.csv", lambda run: write_csv(run / "allocation.csv", HEADER, rows)
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the allocations as JSON texts, by stage."""
        for stage, plan in self.allocations.items():
            if stage not in self._texts or self._texts[stage][0] is not plan:
                self._texts[stage] = (plan, plan.to_json())
        return {str(stage): self._texts[stage][1] for stage in self.allocations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load saved allocations."""
        self.allocations = {int(k): Allocation.from_json(v) for k, v in state_dict.items()}

    def sequence_state_dict(self) -> dict[str, Any]:
        """Return the directions that the initializer keeps, by linear."""
        return dict(self._kept)

    def load_sequence_state_dict(self, state: dict[str, Any]) -> None:
        """Load the directions that the initializer keeps."""
        self._kept = check_kept(state)


def describe_rank(entry: AllocationEntry) -> str:
    """Return the size of a unit's expert: its rank, and the number of parallel experts.

    That of a soft prompt is its number of tokens.
    """
    if entry.unit == INPUT:
        return f"{entry.rank} tokens"
    mixture = f"{entry.mixture} x " if entry.mixture > 1 else ""
    return f"{mixture}rank {entry.rank}"


def describe_allocation(plan: Allocation, parameters: int) -> str:
    """Return an allocation as a text table: units, scores, ranks, number of parameters."""
    lines = [f"expert {plan.expert}: {parameters} parameters"]
    for modality, share in plan.difficulty.items():
        lines.append(f"  {modality}: difficulty {share:.1%}, budget {plan.budget[modality]}")
    scored = any(entry.score is not None for entry in plan.entries)
    for entry in plan.entries:
        tried = scored and budget_modality(entry.modality) in plan.budget
        unscored = "no gradient" if tried else "not scored"
        score = unscored if entry.score is None else f"{entry.score:.4g}"
        size = describe_rank(entry) if entry.expert else "-"
        lines.append(f"  {entry.unit:<24} {score:>12}  {size}")
    return "\n".join(lines)


def plan_allocation(
    state: SequenceState, module: ContinualModule, stage: Stage, expert: str
) -> Allocation:
    """Return the allocation of a new expert, without placing it.

    The scores come from the base model without experts and from the data that arrives in the
    stage, without replayed samples. If stages have sharp boundaries, the allocation therefore does
    not depend on the order of the tasks.

    Args:
        state: Has data and device; connects the ranks.
        module: Has base model and allocator.
        stage: The first stage that trains the expert.
        expert: Name of the expert: that of the stage, or the one that all stages share.

    Raises:
        Interrupted: If a signal requested the end of the run.
        ValueError: If a unit cannot be scored, or the allocator refuses the units or the scores.
    """
    units, allocator = module.units(), module.allocator
    scores = measure_units(state, module, stage, expert) if allocator.needs_scores else None
    return allocator.allocate(expert, units, scores, first=not module.library.names)


def _agreed(plan: Allocation) -> Allocation:
    """Return rank 0's allocation after checking that every rank has the same one.

    Raises:
        RuntimeError: If they differ because ranks have different data or scores.
    """
    if len(set(gather_objects(_digest(plan)))) > 1:
        raise RuntimeError(f"the ranks disagree where expert {plan.expert!r} belongs")
    return Allocation.from_json(broadcast(plan.to_json()))


def _digest(plan: Allocation) -> str:
    """Return a hash of an allocation without its scores, which may differ by rounding."""
    placement = [(entry.unit, entry.expert, entry.rank) for entry in plan.entries]
    return hashlib.sha256(
        repr((plan.expert, sorted(plan.budget.items()), placement, plan.parent)).encode()
    ).hexdigest()
