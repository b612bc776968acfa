"""Past experts in host memory change no result of a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cuts import CutAt, CutError
from run_digests import run_digests
from small_runs import Recipe, small_task
from test_e2e_distributed import TWO_RANKS, fit_on_two_ranks

from dmole.allocation import UniformAllocator
from dmole.regularizers import Orthogonality
from dmole.routing import AllExpertsRouter, AutoencoderRouter

TASKS = [small_task(name, 8, 4) for name in ("paint", "count", "caption")]
PARTNERS: dict[str, Any] = {
    "router": lambda: AutoencoderRouter(threshold_scale=50.0),  # gates are open for all samples
    "model": {"dropout": 0.1},
}
O_LORA: dict[str, Any] = {
    "router": AllExpertsRouter,
    "allocator": lambda: UniformAllocator(rank=2, budget_fraction=1.0),
    "model": {"regularizers": [Orthogonality(0.1)]},
}


def recipe(method: dict[str, Any], limit: int | None, **parts: Any) -> Recipe:
    model = method["model"] | {"past_experts_on_device": limit}
    return Recipe(tasks=TASKS, **{**method, "model": model}, **parts)


@pytest.mark.slow
@pytest.mark.parametrize("method", [PARTNERS, O_LORA], ids=["partners", "o_lora"])
def test_a_run_that_is_cut_and_resumed_is_equal_to_the_bit(
    method: dict[str, Any], tmp_path: Path
) -> None:
    expected = run_digests(recipe(method, None).build(tmp_path / "device").fit())
    cut = replace(recipe(method, 0), callbacks=[CutAt(3, "train")]).build(tmp_path / "host")
    with pytest.raises(CutError):
        cut.fit()
    resumed = recipe(method, 1).build(tmp_path / "host")
    assert run_digests(resumed.fit(Path("auto"))) == expected
    assert min(run.module.library.past.loads for run in (cut, resumed)) > 0


@pytest.mark.slow
def test_two_ranks_learn_alike_and_the_same(tmp_path: Path) -> None:
    runs = []
    for limit in (None, 1):
        parts = {"data": {"batch_size": 2}, "trainer": TWO_RANKS, "devices": 2}
        built = recipe(PARTNERS, limit, **parts)
        run, states = fit_on_two_ranks(lambda b=built, n=limit: b.build(tmp_path / f"{n}"))
        assert all((states[0][key] == states[1][key]).all() for key in states[0])
        runs.append(run_digests(run))
    assert runs[0] == runs[1]
