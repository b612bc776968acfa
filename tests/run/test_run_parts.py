"""The table of parts is complete, and only its classes have short names."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from importlib import import_module
from pkgutil import walk_packages

import pytest
from lightning.pytorch.strategies import Strategy

import dmole
from dmole._moved import NAMES
from dmole.allocation import Allocator
from dmole.callbacks import ContinualCallback
from dmole.metrics import TaskMetric
from dmole.models.backbone import Backbone
from dmole.regularizers import Regularizer
from dmole.routing import Mixing, Router, TokenGate
from dmole.run.parts import PARTS, defined_at, import_class, kind_of, kinds, part_paths
from dmole.streams.stream import Stream

BASES = {
    "Backbone": Backbone,
    "Allocator": Allocator,
    "Router": Router,
    "TokenGate": TokenGate,
    "Mixing": Mixing,
    "Regularizer": Regularizer,
    "Stream": Stream,
    "TaskMetric": TaskMetric,
    "Callback": ContinualCallback,
    "Strategy": Strategy,
}


def subclasses(base: type) -> Iterator[type]:
    for kind in base.__subclasses__():
        yield kind
        yield from subclasses(kind)


@pytest.mark.parametrize("base", BASES)
def test_every_part_of_the_package_is_in_the_table(base: str) -> None:
    for module in walk_packages(dmole.__path__, "dmole."):
        if not module.name.endswith(("__main__", "._lmms_model")):  # the latter needs lmms-eval
            import_module(module.name)
    found = {
        kind.__name__
        for kind in subclasses(BASES[base])
        if kind.__module__.startswith("dmole.") and not inspect.isabstract(kind)
    }
    abstract = {"CaptionMetric"}  # a base of metrics that has no rule of its own
    missing = found - abstract - set(kinds(base))
    assert not missing, f"add {sorted(missing)} to PARTS in dmole/run/parts.py"
    for path in PARTS[base]:
        kind = import_class(path)
        assert base == "Callback" or issubclass(kind, BASES[base])


def test_short_names_are_unique() -> None:
    names = [name for base in PARTS for name in kinds(base)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("path", "base", "kind"),
    [
        ("dmole.routing.AutoencoderRouter", "Router", "AutoencoderRouter"),
        ("dmole.AutoencoderRouter", "Router", "AutoencoderRouter"),
        ("dmole.routing.autoencoder_router.AutoencoderRouter", "Router", "AutoencoderRouter"),
        ("dmole.data.stream.JointStream", "Stream", "JointStream"),
        ("dmole.evil.AutoencoderRouter", "Router", None),
        ("evil.AutoencoderRouter", "Router", None),
        ("dmole.routing.AutoencoderRouter", "Stream", None),
        ("dmole.routing.subprocess", "Router", None),
        ("", "Router", None),
    ],
)
def test_a_class_has_its_short_name_under_its_own_paths_only(
    path: str, base: str, kind: str | None
) -> None:
    assert kind_of(path, base) == kind


def test_the_paths_of_parts_lead_to_parts_and_hold_earlier_ones() -> None:
    paths = set(part_paths())
    known = {defined_at(import_class(path)) for each in PARTS.values() for path in each}
    assert known <= paths
    assert "dmole.data.stream.ReplayStream" in paths
    assert "dmole.routing.task_keys.KeyRouter" in paths
    for old, new in NAMES.items():
        assert (old in paths) == (new in paths), old
    assert not any(path.rpartition(".")[2][0].islower() for path in paths)


def test_a_path_that_is_no_class_is_refused() -> None:
    for path in ("dmole.routing.gates_from_order", "dmole.nothing.X", "X"):
        with pytest.raises(ValueError, match=r"cannot be imported|is no class"):
            import_class(path)
