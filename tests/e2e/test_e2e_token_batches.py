"""A run with a budget of tokens for each batch: it is kept, resumed and shared by ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cuts import CutAfter, CutError
from run_digests import run_digests
from small_runs import Recipe
from test_e2e_distributed import TWO_RANKS, fit_on_two_ranks

from dmole.callbacks import ContinualCallback
from dmole.data import Task

BUDGET = 260
TASK = Task(
    "paint",
    train="synthetic://paint/train?size=7",
    test="synthetic://paint/test?size=2",
    epochs=2,
    max_new_tokens=3,
)


class Shapes(ContinualCallback):
    """Remembers the shape of each training batch."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def on_train_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.shapes.append(tuple(batch.inputs["input_ids"].shape))


def recipe(*callbacks: ContinualCallback, **data: Any) -> Recipe:
    return Recipe(
        tasks=[TASK],
        callbacks=callbacks,
        data={"max_tokens_per_batch": BUDGET} | data,
        model={"dropout": 0.2},
        trainer={"checkpoint_every_n_steps": 1},
    )


def test_batches_keep_to_the_budget_and_a_cut_run_resumes_to_the_bit(tmp_path: Path) -> None:
    shapes = Shapes()
    whole = recipe(shapes).build(tmp_path / "whole").fit()
    rows = [rows for rows, _ in shapes.shapes]
    assert max(rows) * max(tokens for _, tokens in shapes.shapes) <= BUDGET
    assert sum(rows) == 2 * 7
    assert len(rows) % 2 == 0
    assert sorted(rows[: len(rows) // 2]) == sorted(rows[len(rows) // 2 :])
    assert max(rows) > 1
    with pytest.raises(CutError):
        recipe(CutAfter(len(rows) - 1)).build(tmp_path / "cut").fit()
    with pytest.raises(ValueError, match=f"data.max_tokens_per_batch {BUDGET}$"):
        recipe(max_tokens_per_batch=2 * BUDGET).build(tmp_path / "cut").fit("auto")
    assert run_digests(recipe().build(tmp_path / "cut").fit("auto")) == run_digests(whole)


def test_a_sample_above_the_budget_is_named(tmp_path: Path) -> None:
    message = r"task 'paint': sample 'paint-train-0-\d' has \d+ tokens, more than "
    with pytest.raises(ValueError, match=message + "data.max_tokens_per_batch 20"):
        recipe(max_tokens_per_batch=20).build(tmp_path).fit()
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_two_ranks_share_the_batches(tmp_path: Path) -> None:
    two = Recipe(
        tasks=[TASK],
        data={"max_tokens_per_batch": BUDGET},
        trainer=TWO_RANKS,
        devices=2,
        model={"dropout": 0.0},
    )
    _, experts = fit_on_two_ranks(lambda: two.build(tmp_path))
    for key, tensor in experts[0].items():
        assert (tensor == experts[1][key]).all(), key
