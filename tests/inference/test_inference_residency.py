"""Experts that are unloaded when idle, and loaded again unchanged when they are used."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from dmole.experts import ExpertLibrary
from dmole.inference import ExpertResidency
from dmole.inference.residency import ReadExpert

NAMES = ("a", "b", "c")
BYTES = (3 * 8 + 5 * 3) * 4  # of each expert: rank 3 in a linear from 8 to 5, float32


@pytest.fixture
def library() -> ExpertLibrary:
    library = ExpertLibrary(nn.Sequential(nn.Linear(8, 5)), lambda path: "language")
    for name in NAMES:
        library.add(name, {"0": 3}, {"0": 6.0})
        for _, parameter in library.parameters(name):
            nn.init.normal_(parameter)
    return library


@pytest.fixture
def disk(library: ExpertLibrary) -> dict[str, dict[str, Tensor]]:
    return {name: library.state_dict(name) for name in NAMES}


@pytest.fixture
def read(disk: dict[str, dict[str, Tensor]]) -> ReadExpert:
    def read_one(name: str) -> Mapping[str, Tensor]:
        if name not in disk:
            raise ValueError(f"expert {name} is gone")
        return disk[name]

    return read_one


def held(library: ExpertLibrary) -> int:
    """Return the bytes that the storages of all experts hold."""
    pairs = (pair for name in library.names for pair in library.parameters(name))
    return sum(parameter.untyped_storage().nbytes() for _, parameter in pairs)


def test_unloading_frees_the_exact_size_and_loading_restores_every_bit(
    library: ExpertLibrary, read: ReadExpert, disk: dict[str, dict[str, Tensor]]
) -> None:
    residency = ExpertResidency(library, read)
    assert held(library) == 3 * BYTES
    assert residency.unload("b") == BYTES
    assert (held(library), residency.loaded, residency.unloaded) == (2 * BYTES, ("a", "c"), ("b",))
    assert residency.unload("b") == 0
    residency.require(["b", "a"])
    assert (held(library), residency.loads, residency.unloaded) == (3 * BYTES, 1, ())
    restored = library.tensors("b")
    assert all(torch.equal(restored[key], tensor) for key, tensor in disk["b"].items())
    assert not any(parameter.requires_grad is False for _, parameter in library.parameters("b"))


def test_the_least_recently_used_experts_leave_first_and_pinned_ones_stay(
    library: ExpertLibrary, read: ReadExpert
) -> None:
    residency = ExpertResidency(library, read, max_loaded=2, pinned=["a"])
    residency.record([("b",), ("c",), ()])
    assert residency.loaded == ("a", "c")
    residency.require(["b"])
    residency.record([("b",)])
    assert residency.loaded == ("a", "b")
    residency.unpin("a")
    residency.require(["c"])
    residency.record([("b", "c")])
    assert residency.loaded == ("b", "c")


def test_an_idle_expert_leaves_after_its_number_of_requests(
    library: ExpertLibrary, read: ReadExpert
) -> None:
    residency = ExpertResidency(library, read, idle_after=3)
    residency.record([("a",), ("b",)])
    assert residency.loaded == NAMES
    residency.record([("a",), ("a",)])
    assert residency.loaded == ("a", "b")
    residency.record([("a",), ("a",)])
    assert residency.loaded == ("a",)


def test_a_file_that_was_changed_or_is_gone_is_named_and_the_expert_stays_unloaded(
    library: ExpertLibrary, read: ReadExpert, disk: dict[str, dict[str, Tensor]]
) -> None:
    residency = ExpertResidency(library, read)
    residency.unload("a")
    residency.unload("b")
    disk["a"]["0.lora_a"] = disk["a"]["0.lora_a"] + 1
    with pytest.raises(ValueError, match="expert 'a' was changed on disk since it was loaded"):
        residency.require(["a"])
    del disk["b"]
    with pytest.raises(ValueError, match="expert b is gone"):
        residency.require(["b"])
    assert (held(library), residency.loaded) == (BYTES, ("c",))


def test_an_expert_that_takes_over_is_reported_once(
    library: ExpertLibrary, read: ReadExpert, caplog: pytest.LogCaptureFixture
) -> None:
    residency = ExpertResidency(library, read, window=4, takeover=0.75)
    with caplog.at_level(logging.WARNING):
        residency.record([("a",), ("a",), ("a",)])
        assert not caplog.records  # the window is not full
        residency.record([("b",), ("a",)])
    assert [record.getMessage()[:44] for record in caplog.records] == [
        "expert 'a' answered 75% of the last 4 reques"
    ]
    assert residency.activity.counts() == {"a": 3, "b": 1}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_loaded": 0}, "max_loaded must be at least 1, got 0"),
        ({"idle_after": -1}, "idle_after must be at least 1, got -1"),
        ({"takeover": 0.0}, r"takeover must be in \(0, 1\], got 0.0"),
        ({"storage": "tape"}, "storage must be 'cpu' or 'disk', got 'tape'"),
        ({"pinned": ["z"]}, "there is no expert 'z' to pin"),
        ({"window": 0}, "the window must hold at least 1 request, got 0"),
        ({"storage": "cpu"}, "the experts are on the CPU already: unload them to disk"),
    ],
)
def test_invalid_options_are_refused(
    library: ExpertLibrary, read: ReadExpert, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ExpertResidency(library, read, **options)  # type: ignore[arg-type]


def test_after_a_move_to_the_cpu_nothing_is_unloaded_to_the_cpu_and_nothing_fails(
    read: ReadExpert,
) -> None:
    library = ExpertLibrary(nn.Sequential(nn.Linear(8, 5, device="meta")), lambda _: "language")
    for name in NAMES:
        library.add(name, {"0": 3}, {"0": 6.0})
    residency = ExpertResidency(library, read, storage="cpu", max_loaded=1)
    library.model.to_empty(device="cpu")
    residency.record([("a",), ("b",)])
    assert (residency.loaded, residency.unload("c")) == (NAMES, 0)


def test_a_pinned_expert_cannot_be_unloaded(library: ExpertLibrary, read: ReadExpert) -> None:
    with pytest.raises(ValueError, match="expert 'a' is pinned"):
        ExpertResidency(library, read, pinned=["a"]).unload("a")
