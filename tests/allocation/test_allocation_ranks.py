"""Scores of several ranks, as threads of one process."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn

from dmole.allocation import proxy, score_gradients
from dmole.allocation.meter import GradientMeter, assign_owners
from dmole.distributed import Ranks

T = TypeVar("T")


class Exchange:
    """Gives every thread the values of all."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size, timeout=30)
        self.values: list[Any] = [None] * size

    def __call__(self, index: int, value: T) -> list[T]:
        self.values[index] = value
        self.barrier.wait()
        values = list(self.values)
        self.barrier.wait()
        return values


class ThreadRanks(Ranks):
    """A thread as a rank."""

    def __init__(self, rank: int, exchange: Exchange) -> None:
        super().__init__(torch.device("cpu"))
        self.rank = rank
        self.exchange = exchange

    @property
    def index(self) -> int:
        return self.rank

    @property
    def size(self) -> int:
        return len(self.exchange.values)

    def any(self, here: bool) -> bool:
        return any(self.exchange(self.rank, here))

    def sum(self, tensor: Tensor) -> Tensor:
        return torch.stack(self.exchange(self.rank, tensor)).sum(0)

    def sum_at(self, owner: int, tensor: Tensor) -> Tensor:
        calls = self.exchange(self.rank, (owner, tensor))
        assert {(each, other.shape) for each, other in calls} == {(owner, tensor.shape)}
        total = torch.stack([other for _, other in calls]).sum(0)
        self.exchange.barrier.wait()  # all have read the tensors, which may now change
        return total if owner == self.rank else tensor.fill_(torch.nan)


def on_ranks(size: int, work: Callable[[Ranks], T]) -> list[T]:
    exchange, results = Exchange(size), {}

    def run(rank: int) -> None:
        try:
            results[rank] = work(ThreadRanks(rank, exchange))
        finally:
            if rank not in results:
                exchange.barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [results[rank] for rank in range(size)]


class TwoTowers(nn.Module):
    """A vision layer that samples without an image skip, and one that no sample uses."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.vision = nn.Linear(5, 5)
        self.idle = nn.Linear(5, 5)
        self.language = nn.ModuleList(nn.Linear(5, 5) for _ in range(3))

    def loss(self, sample: tuple[Tensor, bool]) -> Tensor:
        x, has_image = sample
        x = self.vision(x).tanh() if has_image else x
        for layer in self.language:
            x = layer(x).tanh()
        return x.square().sum()

    def units(self, *, linears: bool) -> dict[str, list[Any]]:
        layers = {"vision": self.vision, "idle": self.idle}
        layers |= {f"language.{i}": layer for i, layer in enumerate(self.language)}
        return {n: [m] if linears else list(m.parameters()) for n, m in layers.items()}


def make_batches() -> list[list[tuple[Tensor, bool]]]:
    torch.manual_seed(1)
    # two parts for either rank; the second rank sees no image; one part; one part without image
    images = [(True, False, True, False), (True,), (False, False), (False, True, False)]
    return [[(torch.randn(2, 5), image) for image in batch] for batch in images]


CASES = [("sum", "sum"), ("mean", "norm"), ("mean_batch_norm", "sum"), ("fisher", "norm")]


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("linears", [False, True])
@pytest.mark.parametrize(("reduction", "combine"), CASES)
def test_ranks_score_like_one_process(
    reduction: str, combine: str, linears: bool, size: int
) -> None:
    base, batches = TwoTowers(), make_batches()

    def scores(shares: Sequence[list[Any]], ranks: Ranks | None) -> dict[str, float | None]:
        model = copy.deepcopy(base)

        def losses(parts: list[Any]) -> Iterator[Tensor]:
            return (model.loss(part) for part in parts)

        units = model.units(linears=linears)
        options: Any = {"reduction": reduction, "combine": combine, "passes": 2, "ranks": ranks}
        return score_gradients(model, units, shares, losses, **options)

    whole = scores(batches, None)
    assert whole.pop("idle") is None
    assert all(whole.values())

    def share(ranks: Ranks) -> dict[str, float | None]:
        parts = [batch[ranks.index :: ranks.size] for batch in batches]
        while not parts[-1]:
            parts.pop()  # a rank may have fewer batches
        return scores(parts, ranks)

    found = on_ranks(size, share)
    assert all(each == found[0] for each in found)
    assert found[0].pop("idle") is None
    assert found[0] == pytest.approx(whole, rel=1e-6)


@pytest.mark.parametrize(
    ("reduction", "parts", "share"), [("sum", 2, 0.5), ("fisher", 2, 0.5), ("fisher", 1, 0.0)]
)
def test_a_rank_keeps_its_share_of_the_gradients_or_their_norms(
    reduction: Any, parts: int, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, most, lock = TwoTowers(), {}, threading.Lock()

    class Watched(GradientMeter):
        def close_backward(self) -> None:
            super().close_backward()
            assert self.ranks is not None
            kept = sum(t.numel() for t in (*self.kept, *self.parts.values()) if t is not None)
            with lock:
                most[self.ranks.index] = max(kept, most.get(self.ranks.index, 0))

    monkeypatch.setattr(proxy, "GradientMeter", Watched)

    def work(ranks: Ranks) -> None:
        model, batch = copy.deepcopy(base), make_batches()[0][:parts]

        def losses(batch: list[Any]) -> Any:
            found = [model.loss(sample) for sample in batch]
            return found if parts > 1 else found[0]

        units = model.units(linears=False)
        score_gradients(model, units, [batch, batch], losses, reduction=reduction, ranks=ranks)

    on_ranks(2, work)
    entries = share * sum(parameter.numel() for parameter in base.parameters())
    # as even as tensors of 25 entries allow; two norms are kept of each tensor
    assert all(entries - 30 <= kept <= entries + 30 for kept in most.values()), most


def test_gradients_that_share_memory_are_summed_apart() -> None:
    def work(ranks: Ranks) -> dict[str, float | None]:
        model = nn.ParameterDict({"a": torch.ones(2, 2), "b": torch.ones(4)})
        units = {name: [parameter] for name, parameter in model.items()}

        def loss(batch: Tensor) -> Tensor:
            return ((model["a"].reshape(-1) + model["b"]) * batch).sum()

        return score_gradients(model, units, [torch.ones(4)], loss, ranks=ranks)  # type: ignore[arg-type]

    assert on_ranks(2, work) == [{"a": 4.0, "b": 4.0}] * 2


def test_owners_share_the_entries_evenly() -> None:
    sizes = [4096 * 11008] * 3 + [4096 * 4096] * 4 + [4096] * 7
    owners = assign_owners(sizes, 3)
    loads = [sum(s for s, o in zip(sizes, owners, strict=True) if o == r) for r in range(3)]
    assert max(loads) < 1.3 * min(loads)
    assert assign_owners([5, 5], 1) == [0, 0]
