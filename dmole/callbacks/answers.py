"""Answers already given, kept under all that they depend on: the sample and its experts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

GateSet = tuple[str, ...]
"""Experts of a sample, best first; empty is the base model."""


class AnswerBook:
    """Remembers answers by sample and gate set.

    An expert that goes on training is another one afterwards, so each expert counts with its
    version: the number of stages that trained it. The order of a gate set does not matter.
    """

    def __init__(self) -> None:
        self._texts: dict[tuple[str, frozenset[tuple[str, int]]], str] = {}

    def get(self, key: str, gate_set: GateSet, versions: Mapping[str, int]) -> str:
        """Return a sample's answer under a gate set; KeyError where there is none."""
        return self._texts[key, _versioned(gate_set, versions)]

    def put(self, key: str, gate_set: GateSet, versions: Mapping[str, int], text: str) -> None:
        """Keep an answer."""
        self._texts[key, _versioned(gate_set, versions)] = text

    def missing(
        self, keys: Iterable[str], plan: Mapping[str, GateSet], versions: Mapping[str, int]
    ) -> list[int]:
        """Return the positions of samples without an answer under their planned gate set."""
        return [
            index
            for index, key in enumerate(keys)
            if (key, _versioned(plan[key], versions)) not in self._texts
        ]

    def clear(self) -> None:
        """Forget all answers."""
        self._texts.clear()

    def state_dict(self) -> list[Any]:
        """Return plain lists."""
        return [
            [key, sorted([name, version] for name, version in gates), text]
            for (key, gates), text in self._texts.items()
        ]

    def load_state_dict(self, state: Iterable[Any]) -> None:
        """Take over what :meth:`state_dict` returned."""
        self._texts = {
            (key, frozenset((name, version) for name, version in gates)): text
            for key, gates, text in state
        }


def _versioned(gate_set: GateSet, versions: Mapping[str, int]) -> frozenset[tuple[str, int]]:
    return frozenset((name, versions.get(name, 0)) for name in gate_set)
