"""Answers already given, kept under all that they depend on: the sample and its experts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

GateSet = tuple[str, ...]
"""Experts of a sample, best first; empty is the base model."""


class AnswerBook:
    """Remembers answers by sample and gate set.

    Each expert counts with the digest of its tensors: one that goes on training, or that changed
    though it should not have, is another one, and its samples are answered again. The order of a
    gate set does not matter.
    """

    def __init__(self) -> None:
        self._texts: dict[tuple[str, frozenset[tuple[str, str]]], str] = {}

    def get(self, key: str, gate_set: GateSet, digests: Mapping[str, str]) -> str:
        """Return a sample's answer under a gate set; KeyError where there is none."""
        return self._texts[key, _identified(gate_set, digests)]

    def put(self, key: str, gate_set: GateSet, digests: Mapping[str, str], text: str) -> None:
        """Keep an answer."""
        self._texts[key, _identified(gate_set, digests)] = text

    def missing(
        self, keys: Iterable[str], plan: Mapping[str, GateSet], digests: Mapping[str, str]
    ) -> list[int]:
        """Return the positions of samples without an answer under their planned gate set."""
        return [
            index
            for index, key in enumerate(keys)
            if (key, _identified(plan[key], digests)) not in self._texts
        ]

    def keep_only(self, plans: Iterable[Mapping[str, GateSet]], digests: Mapping[str, str]) -> None:
        """Forget the answers under all gate sets but those that are in use now.

        Else they would grow with the square of the tasks. A sample that comes back to an earlier
        gate set is answered again, with the same result.

        Args:
            plans: Gate sets of samples: those of the router and of the oracle, say.
            digests: Digest of each expert's tensors.
        """
        used = {(key, _identified(gates, digests)) for plan in plans for key, gates in plan.items()}
        self._texts = {place: text for place, text in self._texts.items() if place in used}

    def clear(self) -> None:
        """Forget all answers."""
        self._texts.clear()

    def state_dict(self) -> list[Any]:
        """Return plain lists."""
        return [
            [key, sorted([name, digest] for name, digest in gates), text]
            for (key, gates), text in self._texts.items()
        ]

    def load_state_dict(self, state: Iterable[Any]) -> None:
        """Take over what :meth:`state_dict` returned."""
        self._texts = {
            (key, frozenset((name, digest) for name, digest in gates)): text
            for key, gates, text in state
        }


def _identified(gate_set: GateSet, digests: Mapping[str, str]) -> frozenset[tuple[str, str]]:
    return frozenset((name, digests[name]) for name in gate_set)
