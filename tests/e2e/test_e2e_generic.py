"""General data in a run: recorded, part of its identity, the same after a resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from cuts import CutAfter, CutError
from run_digests import run_digests
from small_runs import Recipe, read_csv

from dmole.allocation import UniformAllocator
from dmole.data import Task
from dmole.routing import SharedRouter
from dmole.streams import GenericStream

NAMES = ("paint", "count")
SOURCE = "synthetic://general/train?size={}"


def recipe(*callbacks: Any, size: int = 9) -> Recipe:
    tasks = [
        Task(n, train=f"synthetic://{n}/train?size=6", test=f"synthetic://{n}/test?size=1")
        for n in NAMES
    ]
    return Recipe(
        tasks=tasks,
        callbacks=callbacks,
        data={"batch_size": 4},
        trainer={"checkpoint_every_n_steps": 1},
        stream=GenericStream(SOURCE.format(size), 0.25),
        allocator=UniformAllocator,
        router=SharedRouter,
    )


@pytest.mark.slow
def test_a_run_that_was_cut_ends_with_the_same_bytes_and_only_on_the_same_general_data(
    tmp_path: Path,
) -> None:
    whole = recipe().build(tmp_path / "whole").fit()
    with pytest.raises(CutError):
        recipe(CutAfter(3)).build(tmp_path / "cut").fit()
    with pytest.raises(ValueError, match="another general data general; it cannot be resumed"):
        recipe(size=8).build(tmp_path / "cut").fit("auto")
    torch.manual_seed(99)  # a new process has drawn other numbers
    run = recipe().build(tmp_path / "cut").fit("auto")
    assert run_digests(run) == run_digests(whole)
    rows = read_csv(run / "replay.csv")
    assert [(row["stage"], row["task"]) for row in rows] == [("1", "general"), ("1", "general")] + [
        ("2", "general")
    ] * 2
