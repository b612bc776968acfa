"""Stores generated answers by everything they depend on: the sample and its experts."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from dmole.storage.files import atomic_path, errors_naming, parse_json, read_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

GateSet = tuple[str, ...]
"""Experts of a sample, best first; empty is the base model."""


DECODING = "@decoding"  # no name of an expert begins with @
"""Key of the digest of what answers depend on besides samples and experts."""
WEIGHTS = "@weights"
"""Key of the digest of the weights of all samples' experts, where some are not 1."""
ORDERED = "@ordered"
"""Key of a digest that is there where answers depend on the order of a sample's experts."""


class AnswerBook:
    """Stores answers by sample and gate set.

    The digest of its tensors identifies an expert. If an expert continues training, or changes
    although it should not, its digest differs and its samples are answered again. The same holds
    for the settings of decoding, whose digest has the key `DECODING`, and for the weights of the
    experts, whose digest has the key `WEIGHTS`. The order of the experts in a gate set matters
    where there is a digest with the key `ORDERED`.

    Example:
        >>> from dmole.callbacks.answers import AnswerBook
        >>> book = AnswerBook()
        >>> book.put("count/test/7", ("count",), {"count": "digest"}, "three")
        >>> book.get("count/test/7", ("count",), {"count": "digest"})
        'three'
        >>> book.missing(["count/test/7"], {"count/test/7": ("count",)}, {"count": "changed"})
        [0]
    """

    def __init__(self) -> None:
        self._texts: dict[tuple[str, frozenset[tuple[str, str]]], str] = {}

    def get(self, key: str, gate_set: GateSet, digests: Mapping[str, str]) -> str:
        """Return a sample's answer under a gate set; `KeyError` if there is none."""
        return self._texts[key, _identified(gate_set, digests)]

    def put(self, key: str, gate_set: GateSet, digests: Mapping[str, str], text: str) -> None:
        """Store an answer."""
        self._texts[key, _identified(gate_set, digests)] = text

    def missing(
        self, keys: Iterable[str], plan: Mapping[str, GateSet], digests: Mapping[str, str]
    ) -> list[int]:
        """Return the indices of samples without an answer under their planned gate set."""
        return [
            index
            for index, key in enumerate(keys)
            if (key, _identified(plan[key], digests)) not in self._texts
        ]

    def keep_only(self, plans: Iterable[tuple[Mapping[str, GateSet], Mapping[str, str]]]) -> None:
        """Delete all answers except those under the gate sets that are in use now.

        Otherwise their number would grow with the square of the number of tasks. A sample that
        returns to an earlier gate set is answered again, with the same result.

        Args:
            plans: Gate sets of samples, for example those of the router and of the oracle, each
                with the digests that identify them.
        """
        used = {
            (key, _identified(gates, digests))
            for plan, digests in plans
            for key, gates in plan.items()
        }
        self._texts = {key: text for key, text in self._texts.items() if key in used}

    def clear(self) -> None:
        """Delete all answers."""
        self._texts.clear()

    def state_dict(self) -> list[Any]:
        """Return the answers as plain lists."""
        return [
            [key, sorted([name, digest] for name, digest in gates), text]
            for (key, gates), text in self._texts.items()
        ]

    def load_state_dict(self, state: Iterable[Any]) -> None:
        """Load a state that :meth:`state_dict` returned."""
        self._texts = {
            (key, frozenset((name, digest) for name, digest in gates)): text
            for key, gates, text in state
        }


def _identified(gate_set: GateSet, digests: Mapping[str, str]) -> frozenset[tuple[str, str]]:
    places = {name: f"@{place}" for place, name in enumerate(gate_set) if ORDERED in digests}
    names = (*gate_set, *(key for key in (DECODING, WEIGHTS, ORDERED) if key in digests))
    return frozenset((name, digests[name] + places.get(name, "")) for name in names)


class AnswerJournal:
    """Writes the answers of a running pass to disk, batch by batch, in one file per rank.

    An interrupted pass generates only the remaining batches. Only complete batches count, so
    every answer comes from the same batch as in an uninterrupted pass. Each batch has a digest.
    """

    def __init__(self) -> None:
        self._path: Path | None = None
        self._name = ""
        self._digests: Mapping[str, str] = {}

    def open(
        self, path: Path, name: str, plan: Mapping[str, GateSet], digests: Mapping[str, str]
    ) -> dict[str, str]:
        """Start or resume a pass.

        Args:
            path: File of this rank.
            name: Name of the pass; answers of another pass are deleted.
            plan: Gate set of each sample in this pass.
            digests: Digest of each expert's tensors.

        Returns:
            The answers from an earlier process, by sample.
        """
        self._path, self._name, self._digests = path, name, digests
        batches = _valid_batches(path, name, plan, digests)
        self._write(path, [name, *batches])
        return _texts(batches)

    @staticmethod
    def _write(path: Path, entries: Iterable[Any]) -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("".join(map(_line, entries)), encoding="utf-8")

    def add(self, keys: Sequence[str], texts: Sequence[str], gate_sets: Sequence[GateSet]) -> None:
        """Append one batch.

        Raises:
            RuntimeError: If no pass was opened.
        """
        if self._path is None:
            raise RuntimeError("the journal is not open")
        gates = (_pairs(gate_set, self._digests) for gate_set in gate_sets)
        batch = [list(entry) for entry in zip(keys, texts, gates, strict=True)]
        if not self._path.is_file():  # it was deleted with its answers
            self._write(self._path, [self._name])
        with errors_naming(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(_line(batch))


def read_journal(
    path: Path, name: str, plan: Mapping[str, GateSet], digests: Mapping[str, str]
) -> dict[str, str]:
    """Return the answers that :meth:`AnswerJournal.open` would return; do not change the file."""
    return _texts(_valid_batches(path, name, plan, digests))


def _valid_batches(
    path: Path, name: str, plan: Mapping[str, GateSet], digests: Mapping[str, str]
) -> list[Any]:
    """Return the batches of a pass whose gate sets still match its plan."""
    header, *batches = _complete_lines(path) or [None]
    if header != name:
        return []
    return [batch for batch in batches if _fits(batch, plan, digests)]


def _fits(batch: Any, plan: Mapping[str, GateSet], digests: Mapping[str, str]) -> bool:
    """Return whether a line is a list of samples, answers and gate sets of this plan."""
    return isinstance(batch, list) and all(
        isinstance(entry, list)
        and len(entry) == 3
        and all(isinstance(text, str) for text in entry[:2])
        and entry[0] in plan
        and entry[2] == _pairs(plan[entry[0]], digests)
        for entry in batch
    )


def _texts(batches: Iterable[Any]) -> dict[str, str]:
    return {key: text for batch in batches for key, text, _ in batch}


def _pairs(gate_set: GateSet, digests: Mapping[str, str]) -> list[list[str]]:
    return sorted([name, digest] for name, digest in _identified(gate_set, digests))


def _line(entry: Any) -> str:
    """Return a line of a journal: an entry and its digest."""
    text = json.dumps(entry, ensure_ascii=False)
    return json.dumps([entry, _digest(text)], ensure_ascii=False) + "\n"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _complete_lines(path: Path) -> list[Any]:
    """Return the entries of a journal that are as written, up to the first broken line.

    The answers of other batches are generated again.
    """
    entries: list[Any] = []
    if path.is_file():
        for line in read_bytes(path, limit=None).split(b"\n")[:-1]:
            try:
                content = parse_json(line)
            except ValueError:
                break
            if isinstance(content, list) and len(content) == 2:
                entry, digest = content
                if digest == _digest(json.dumps(entry, ensure_ascii=False)):
                    entries.append(entry)
    return entries
