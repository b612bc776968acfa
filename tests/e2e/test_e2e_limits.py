"""Limits of later phases end a run before anything is trained; what is allowed does train."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from small_runs import Recipe, small_task

from dmole.allocation import Allocator, SensitivityAllocator, UniformAllocator
from dmole.cli.main import main
from dmole.data import Task
from dmole.routing import (
    AutoencoderRouter,
    BranchMixing,
    CommonExpertRouter,
    KeyRouter,
    Router,
    SharedRouter,
)
from dmole.streams import ReplayStream

ONE = small_task("count", train_size=1)
TWO = small_task("count", train_size=2)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (Recipe(tasks=("paint", ONE)),
         "stage 2 (count) has 1 training sample, AutoencoderRouter needs at least 2"),
        (Recipe(trainer={"limit_train_batches": 0}),
         "trainer.limit_train_batches 0 leaves none of 2 in stage 1 (paint)"),
        (Recipe(trainer={"limit_train_batches": 0.4}),
         "trainer.limit_train_batches 0.4 leaves none of 2 in stage 1 (paint)"),
        (Recipe(allocator=lambda: SensitivityAllocator(rank=9999)),
         "expert 'paint': rank 9999 is larger than linear"),
        (Recipe(allocator=lambda: UniformAllocator(rank=9999), router=SharedRouter),
         "expert 'paint': rank 9999 is larger than linear"),
        (Recipe(allocator=lambda: SensitivityAllocator(max_parameters=3)),
         "expert paint: max_parameters=3 is below the"),
        (Recipe(allocator=lambda: SensitivityAllocator(targets="no_such_linear")),
         "no_such_linear"),
        (Recipe(allocator=lambda: SensitivityAllocator(score="delta"),
                router=lambda: CommonExpertRouter(KeyRouter(), BranchMixing())),
         "with score 'delta' scores plain experts, and CommonExpertRouter mixes several"),
        (Recipe(data={"max_length": 20}),
         "task 'paint': sample 'paint-train-0-0' has 75 tokens, more than max_length 20"),
        (Recipe(stream=ReplayStream(None, buffer_size=4, share=0.05)),
         "share 0.05 of the 8 samples of count is less than one replayed sample"),
        (Recipe(stream=ReplayStream(None, buffer_mb=1e-6)),
         "no sample of paint fits in a buffer of 1e-06 MB"),
    ],
)  # fmt: skip
def test_what_a_later_phase_would_refuse_ends_the_run_before_it_writes(
    recipe: Recipe, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        recipe.build(tmp_path).fit()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("task", "router", "allocator"),
    [
        (TWO, AutoencoderRouter, SensitivityAllocator),
        (ONE, KeyRouter, SensitivityAllocator),
        (ONE, SharedRouter, UniformAllocator),
    ],
)
def test_the_smallest_tasks_that_are_allowed_are_learned(
    task: Task, router: Callable[[], Router], allocator: Callable[[], Allocator], tmp_path: Path
) -> None:
    run = Recipe(tasks=(task,), router=router, allocator=allocator).build(tmp_path).fit()
    assert (run / "experts" / "count").is_dir()
    lines = (run / "evaluation_matrix.csv").read_text().splitlines()
    assert len(lines) == 3


@pytest.mark.parametrize(
    ("flags", "found"),
    [
        ((), True),
        (("--trainer.stream", "dmole.streams.JointStream"), False),
        (("--model.router", "dmole.routing.SharedRouter"), False),
    ],
)
def test_data_check_reports_a_task_that_is_too_small_for_its_router(
    flags: tuple[str, ...], found: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, question in (("train", "what ?"), ("test", "which ?")):
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": "red"}]
        items = [{"id": f"{name}0", "conversations": turns}]
        (tmp_path / f"{name}.json").write_text(json.dumps(items))
    task = {"name": "t", "train": "train.json", "test": "test.json"}
    config = tmp_path / "c.yaml"
    config.write_text(yaml.safe_dump({"data": {"data_root": str(tmp_path), "tasks": [task]}}))
    words = ["data", "check", "--config", "quickstart.yaml", "--config", str(config)]
    status = main([*words, "--processes", "0", "--no_tokens", *flags])
    file = tmp_path / "train.json"
    line = f"t train: {file}: has 1 training sample, AutoencoderRouter needs at least 2"
    assert (line in capsys.readouterr().out) == found
    assert status == int(found)
