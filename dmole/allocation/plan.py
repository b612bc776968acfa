"""Allocation plans: the units that may hold an expert, and those that get one."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Protocol

from dmole.modality import Modality

UnitKind = Literal["block", "linear", "input"]


class Block(Protocol):
    """The attributes of a backbone's block that allocation reads."""

    @property
    def name(self) -> str:
        """Short name such as ``vision.0``."""

    @property
    def modality(self) -> Modality:
        """``vision``, ``projector`` or ``language``."""

    @property
    def linears(self) -> tuple[str, ...]:
        """Full paths of the block's linears."""


@dataclass(frozen=True)
class Unit:
    """The smallest part of the model that gets an expert: a block or a single linear.

    Args:
        name: Unique name, also the ``unit`` column of ``allocation.csv``.
        modality: ``vision``, ``projector`` or ``language``.
        linears: Full paths of the linears that are wrapped together.
        parameters: Parameters of an expert of rank 1, the sum of in + out over the linears.
    """

    name: str
    modality: Modality
    linears: tuple[str, ...]
    parameters: int


@dataclass(frozen=True)
class AllocationEntry:
    """The decision for one unit.

    Args:
        modality: ``vision``, ``projector`` or ``language``.
        unit: Name of the unit.
        score: Proxy score as measured; None without a gradient or without scoring.
        expert: Whether the unit gets the expert.
        rank: Rank of the expert, 0 without one.
        linears: Full paths of the unit's linears.
        parameters: Parameters of an expert of rank 1 in this unit.
        mixture: Number of parallel experts of that rank, for routers that mix them.
    """

    modality: Modality
    unit: str
    score: float | None
    expert: bool
    rank: int
    linears: tuple[str, ...]
    parameters: int
    mixture: int = 1


@dataclass(frozen=True)
class Allocation:
    """The units that get an expert, with the scores and budgets that led to the choice.

    Args:
        expert: Name of the expert.
        entries: One per unit, in the order of the model.
        difficulty: Share of the proxy score per modality (``vision``, ``language``), summing to 1.
            The projector belongs to ``language``. Empty without scoring.
        budget: Number of units granted per modality.
        parent: Past expert whose values the new expert starts with, on the same units; None for
            a fresh start.
    """

    expert: str
    entries: tuple[AllocationEntry, ...]
    difficulty: dict[str, float]
    budget: dict[str, int]
    parent: str | None = None

    @property
    def experts(self) -> tuple[AllocationEntry, ...]:
        """Entries that get an expert, in the order of the model."""
        return tuple(entry for entry in self.entries if entry.expert)

    def starting_from(self, parent: Allocation) -> Allocation:
        """Return the allocation on the units and with the ranks of a past expert, its parent.

        The scores remain those of the new task.

        Raises:
            ValueError: If the plans are of different units.
        """
        units = [entry.unit for entry in self.entries]
        if units != [entry.unit for entry in parent.entries]:
            raise ValueError(
                f"expert {self.expert} cannot start from {parent.expert}: they differ in the units"
            )
        entries = tuple(
            replace(entry, expert=other.expert, rank=other.rank, mixture=other.mixture)
            for entry, other in zip(self.entries, parent.entries, strict=True)
        )
        return replace(self, entries=entries, budget=dict(parent.budget), parent=parent.expert)

    def rows(self, stage: int) -> list[dict[str, str | int | float]]:
        """Return the rows of ``allocation.csv``; an absent score is an empty cell."""
        return [
            {
                "stage": stage,
                "expert": self.expert,
                "modality": entry.modality,
                "unit": entry.unit,
                "score": "" if entry.score is None else entry.score,
                "selected": int(entry.expert),
                "rank": entry.rank * entry.mixture,
            }
            for entry in self.entries
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return the plan in plain JSON types; the inverse of :meth:`from_dict`."""
        content = asdict(self)
        if self.parent is None:
            del content["parent"]
        return content

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Allocation:
        """Rebuild a plan from :meth:`to_dict`.

        Raises:
            ValueError: If a field is missing or unknown.
        """
        try:
            content = _renamed(content)
            entries = tuple(
                AllocationEntry(**{**_renamed(entry), "linears": tuple(entry["linears"])})
                for entry in content["entries"]
            )
            return cls(
                expert=content["expert"],
                entries=entries,
                difficulty=dict(content["difficulty"]),
                budget=dict(content["budget"]),
                parent=content.get("parent"),  # plans of earlier versions have none
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"not an allocation: {error}") from error

    def to_json(self) -> str:
        """Return the plan as one canonical line of JSON."""
        return json.dumps(self.to_dict(), sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Allocation:
        """Rebuild a plan from :meth:`to_json`."""
        return cls.from_dict(json.loads(text))


_OLD_FIELDS = {"task": "expert", "module": "modality", "layer": "unit"}
"""Field names in the checkpoints of earlier versions, and their current names."""


def _renamed(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {_OLD_FIELDS.get(name, name): value for name, value in fields.items()}


def expert_parameters(allocation: Allocation) -> int:
    """Return the number of parameters of the plan's low-rank updates, routers not counted."""
    return sum(entry.rank * entry.mixture * entry.parameters for entry in allocation.experts)


def build_units(
    blocks: Sequence[Block],
    features: Mapping[str, tuple[int, int]],
    unit: UnitKind = "block",
    targets: str = "",
) -> list[Unit]:
    """Return the units of a model, in the order of the model.

    Args:
        blocks: Blocks of the model.
        features: ``(in_features, out_features)`` per linear, keyed by full path.
        unit: ``block`` joins all linears of a block, ``linear`` makes each linear a unit.
        targets: Regular expression, searched in the paths of the linears that may hold experts.

    Raises:
        ValueError: If ``unit`` is invalid, a block has no linear, the shape of a linear is missing,
            or ``targets`` matches no linear.
    """
    if unit not in ("block", "linear"):
        raise ValueError(f"unit must be 'block' or 'linear', got {unit!r}")
    units = []
    for block in blocks:
        if not block.linears:
            raise ValueError(f"block {block.name} has no linear to hold an expert")
        missing = [linear for linear in block.linears if linear not in features]
        if missing:
            raise ValueError(f"block {block.name}: shape of linear {missing[0]} is unknown")
        matching = tuple(path for path in block.linears if re.search(targets, path))
        if not matching:
            continue
        groups = [matching] if unit == "block" else [(linear,) for linear in matching]
        for linears in groups:
            name = block.name if unit == "block" else linears[0]
            size = sum(sum(features[linear]) for linear in linears)
            units.append(Unit(name, block.modality, linears, size))
    if not units:
        raise ValueError(f"no linear of the model fits targets {targets!r}")
    return units
