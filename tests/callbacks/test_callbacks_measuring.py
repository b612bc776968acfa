"""Losses of test samples are computed once for each fit of an expert, by one of the ranks."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from dmole.callbacks import measuring
from dmole.callbacks.measuring import MeasuredSamples, measuring_device
from dmole.routing import AutoencoderRouter, RouteQuery
from dmole.routing.embedding import EmbeddingCache
from dmole.routing.query import Measures

SAMPLES, WIDTH = 11, 6
NAMES = ["near", "far"]
QUERY = RouteQuery(None, (), "test", None, NAMES)


def rows_of(number: int, shift: int) -> Tensor:
    generator = torch.Generator().manual_seed(shift)
    return torch.randn(number, WIDTH, generator=generator) + 9 * torch.eye(WIDTH)[shift]


ROWS = torch.cat([rows_of(SAMPLES - 5, 0), rows_of(5, 1)])


@dataclass
class Noted:
    """Notes what a meter is asked for."""

    meter: Any
    asked: list[tuple[str, int]] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.meter, name)

    def losses(self, rows: Tensor, experts: Sequence[str], device: torch.device) -> Tensor:
        self.asked += [(expert, len(rows)) for expert in experts]
        return self.meter.losses(rows, experts, device)


class Ranks:
    """Ranks of a run as threads, with what connects them."""

    def __init__(self, world: int, known: Sequence[int]) -> None:
        self.world = world
        self.known = known
        self.embedded = 0
        self._barrier = threading.Barrier(world)
        self._own = threading.local()
        self._values: dict[int, Any] = {}

    def gather(self, value: Any) -> list[Any]:
        self._values[self._own.rank] = value
        self._barrier.wait(10)
        values = [self._values[rank] for rank in range(self.world)]
        self._barrier.wait(10)
        return values

    def embed(self, *args: Any) -> Tensor:
        self.embedded += 1
        return ROWS

    def on(self, rank: int, measured: MeasuredSamples, meter: Any) -> Measures:
        self._own.rank = rank
        cache = EmbeddingCache()
        cache.add([f"t/test/{i}" for i in self.known], ROWS[list(self.known)])
        state: Any = SimpleNamespace(
            data=SimpleNamespace(test_samples=lambda task: samples()),
            world_size=self.world,
            trainer=SimpleNamespace(global_rank=rank),
            device=torch.device("cpu"),
            strategy=None,
            interruption=SimpleNamespace(
                until_requested=lambda starts: iter(starts), check=lambda strategy: None
            ),
        )
        module: Any = SimpleNamespace(embedder=SimpleNamespace(cache=cache))
        return measured.of(state, module, meter, "t")


def samples() -> list[Any]:
    return [SimpleNamespace(id=str(i)) for i in range(SAMPLES)]


@pytest.fixture
def router(monkeypatch: pytest.MonkeyPatch) -> AutoencoderRouter:
    monkeypatch.setattr(measuring, "BLOCK", 4)
    router = AutoencoderRouter(max_experts=2)
    for shift, name in enumerate(NAMES):
        router.fit(name, rows_of(40, shift))
    return router


def measure(
    router: AutoencoderRouter, monkeypatch: pytest.MonkeyPatch, world: int, known: Sequence[int]
) -> tuple[list[Measures], list[list[tuple[str, int]]], Ranks]:
    ranks = Ranks(world, known)
    monkeypatch.setattr(measuring, "gather_objects", ranks.gather)
    monkeypatch.setattr(measuring, "embed_samples", ranks.embed)
    meters = [Noted(router.meter(QUERY)) for _ in range(world)]
    with ThreadPoolExecutor(world) as pool:
        found = list(pool.map(ranks.on, range(world), (MeasuredSamples() for _ in meters), meters))
    return found, [meter.asked for meter in meters], ranks


@pytest.mark.parametrize("ranking", ["loss", "likelihood"])
@pytest.mark.parametrize("known", [range(SAMPLES), range(5)])
def test_ranks_share_the_samples_and_get_what_one_rank_computes(
    known: Sequence[int], ranking: Any, monkeypatch: pytest.MonkeyPatch, router: AutoencoderRouter
) -> None:
    router = AutoencoderRouter(ranking=ranking)
    for shift, name in enumerate(NAMES):
        router.fit(name, rows_of(40, shift))
    found, asked, ranks = measure(router, monkeypatch, 2, known)
    for measures in found:
        assert torch.equal(measures.losses, router.losses(ROWS, NAMES))
        routed = router.route(RouteQuery(ROWS, ["t"] * SAMPLES, "test", None, NAMES))
        again = router.route(RouteQuery(None, ["t"] * SAMPLES, "test", None, NAMES, measures))
        assert routed.order == again.order
        assert torch.equal(routed.losses, again.losses)
    whole = [[("near", 4), ("far", 4), ("near", 3), ("far", 3)], [("near", 4), ("far", 4)]]
    # with five known embeddings, rank 0 has measured its first block when it finds that some lack
    first = [whole[0][:2], []] if len(known) < SAMPLES else [[], []]
    assert asked == [[*first[0], *whole[0]], [*first[1], *whole[1]]]
    assert ranks.embedded == (2 if len(known) < SAMPLES else 0)


def test_only_the_losses_of_a_new_fit_are_computed(
    router: AutoencoderRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranks, measured = Ranks(1, range(SAMPLES)), MeasuredSamples()
    monkeypatch.setattr(measuring, "gather_objects", ranks.gather)

    def asked() -> set[str]:
        meter = Noted(router.meter(QUERY))
        found = ranks.on(0, measured, meter)
        assert torch.equal(found.losses, router.losses(ROWS, NAMES))
        return {name for name, _ in meter.asked}

    assert asked() == {"near", "far"}
    ranks.known = []  # what was measured needs no embeddings
    assert asked() == set()
    ranks.known = range(SAMPLES)
    router.fit("far", rows_of(40, 2))
    assert asked() == {"far"}
    router.restore(router.tensors())
    assert asked() == {"near", "far"}


def test_losses_are_computed_where_float64_is() -> None:
    names = ["cuda:1", "cpu", "mps"]
    found = [str(measuring_device(torch.device(name))) for name in names]
    assert found == ["cuda:1", "cpu", "cpu"]
