"""Runs whose base model is split over the ranks, beside the same runs with DDP."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_digests import run_digests
from sharded_runs import PHASES, Fit, write_tasks

from dmole.allocation import SensitivityAllocator, UniformAllocator
from dmole.callbacks import ContinualCallback
from dmole.regularizers import Distillation, ElasticWeights
from dmole.routing import AutoencoderRouter, SharedRouter
from dmole.run.state import sequence_of
from dmole.strategies import ShardedBaseStrategy
from dmole.streams import SequentialStream
from experiments.gpu.runs import compare

DECODES_SPLIT = partial(ShardedBaseStrategy, gather_for_evaluation=False)
RECOMPUTES = {"activation_checkpointing": True}
FAMILIES = ("llava", "qwen2_5_vl", "idefics3", "gemma3")
MORE: dict[str, dict[str, Any]] = {
    "closest start": {
        "allocator": partial(
            SensitivityAllocator, start="closest", start_samples=5, start_ratio=1e9, rank=2
        ),
        "router": partial(AutoencoderRouter, ranking="likelihood", partner=False, max_experts=1),
    },
    "delta": {"allocator": partial(SensitivityAllocator, score="delta", score_steps=3, rank=2)},
    "fisher": {"allocator": partial(SensitivityAllocator, reduction="fisher", rank=2)},
    "LwF": {
        "allocator": partial(UniformAllocator, rank=2),
        "router": SharedRouter,
        "regularizers": lambda: [Distillation()],
        "stream": partial(SequentialStream, shared_expert="one"),
    },
    "EWC": {
        "allocator": partial(UniformAllocator, rank=2),
        "router": SharedRouter,
        "regularizers": lambda: [ElasticWeights(samples=5)],
        "stream": partial(SequentialStream, shared_expert="one"),
    },
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded") / "data"
    write_tasks(folder)
    return folder


@pytest.fixture(scope="module")
def pictured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of tasks all of whose samples have an image: no batch is padded by a filler."""
    folder = tmp_path_factory.mktemp("pictured") / "data"
    write_tasks(folder, texts=False)
    return folder


def assert_equal(ours: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]]) -> str:
    """Compare the results of all ranks; return the largest difference as a text."""
    run, other = ours[0]["run"], theirs[0]["run"]
    assert {rank["run"] for rank in ours} == {run}
    found = dict(compare(run, other))
    assert found["same allocation"]
    assert found["largest difference in the evaluation matrix"] == 0
    assert found["share of answers from the same experts"] == 1
    assert found["share of equal answers"] == 1
    assert ours[0]["experts"].keys() == theirs[0]["experts"].keys()
    worst = 0.0
    for key, tensor in ours[0]["experts"].items():
        for rank in ours[1:]:
            assert (rank["experts"][key] == tensor).all(), key
        worst = max(worst, float(np.abs(tensor - theirs[0]["experts"][key]).max()))
    assert worst <= 1e-5
    assert any(tensor.any() for key, tensor in ours[0]["experts"].items() if "lora_b" in key)
    return f"experts differ by {worst:.1e}"


def assert_split(ranks: Sequence[dict[str, Any]], *, answers_whole: bool) -> str:
    """Check what each rank holds of the base model after each phase; return the share."""
    for rank in ranks:
        for phase in PHASES:
            assert max(rank["held"][phase]) <= rank["bound"] < rank["whole"], phase
        whole = [held == rank["whole"] for held in rank["held"].get("answer", ())]
        assert all(whole) if answers_whole else not any(whole)
    return f"{ranks[0]['bound'] / ranks[0]['whole']:.3f} of the bytes are resident"


def test_two_ranks_learn_on_a_split_base_as_with_ddp(tmp_path: Path) -> None:
    """Ranks have batches without an image or an answer token, and one has no test sample."""
    write_tasks(tmp_path / "data", train=(3, 5), test=(1, 1))
    fit = partial(Fit, data=tmp_path / "data", family="llava", batch_size=1)
    ours = fit(root=tmp_path / "ours", strategy=ShardedBaseStrategy).on(2)
    theirs = fit(root=tmp_path / "theirs").on(2)
    assert_equal(ours, theirs)
    assert_split(ours, answers_whole=True)


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("decodes", ["whole", "split"])
def test_families_learn_on_a_split_base_as_with_ddp(
    data: Path, tmp_path: Path, family: str, world: int, decodes: str
) -> None:
    """The second form recomputes activations, and input and output embeddings are one tensor."""
    split = decodes == "split"
    model = RECOMPUTES if split else {}
    fit = partial(Fit, data=data, family=family, model=model, tied=split)
    strategy = DECODES_SPLIT if split else ShardedBaseStrategy
    ours = fit(root=tmp_path / "ours", strategy=strategy).on(world)
    theirs = fit(root=tmp_path / "theirs").on(world)
    texts = assert_equal(ours, theirs), assert_split(ours, answers_whole=not split)
    print(f"{family}, {world} ranks, decodes {decodes}: equal; {'; '.join(texts)}")


@pytest.mark.slow
@pytest.mark.parametrize("method", MORE)
def test_methods_that_make_more_passes_keep_the_ranks_in_step(
    pictured: Path, tmp_path: Path, method: str
) -> None:
    fit = partial(Fit, data=pictured, family="tiny", **MORE[method])
    ours = fit(root=tmp_path / "ours", strategy=DECODES_SPLIT).on(2)
    theirs = fit(root=tmp_path / "theirs").on(2)
    assert_equal(ours, theirs)
    assert_split(ours, answers_whole=False)


class EndsRun(ContinualCallback):
    """Requests the end of the run on one rank, in the training of the second stage."""

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        state = sequence_of(trainer)
        if state.stage.index == 2 and state.is_global_zero:
            os.kill(os.getpid(), signal.SIGTERM)


class EndsAnswers(ContinualCallback):
    """Requests the end of the run on one rank, in the evaluation after the first stage."""

    def on_test_batch_end(self, trainer: Any, *args: Any) -> None:
        state = sequence_of(trainer)
        if state.stage.index == 1 and not state.is_global_zero:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.parametrize("cut", [EndsRun, EndsAnswers])
def test_a_run_on_a_split_base_is_resumed_bit_for_bit(
    data: Path, tmp_path: Path, cut: type[ContinualCallback]
) -> None:
    fit = partial(Fit, data=data, family="tiny", strategy=DECODES_SPLIT)
    whole = fit(root=tmp_path / "whole").on(2)[0]["run"]
    run = tmp_path / "cut" / "dmole" / "version_0"
    ended = fit(root=tmp_path / "cut", callbacks=[cut()], ends=True).on(2)
    assert ended == ["ended", "ended"]
    assert not (run / "predictions" / "stage_2.jsonl").exists()
    assert fit(root=tmp_path / "cut", checkpoint=run).on(2)[0]["run"] == run
    assert run_digests(run) == run_digests(whole)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [ShardedBaseStrategy, "ddp"])
def test_one_process_learns_as_without_the_strategy(
    data: Path, tmp_path: Path, strategy: Any
) -> None:
    """Some batches have no image."""
    fit = partial(Fit, data=data, family="tiny", batch_size=1)
    ours = fit(root=tmp_path / "ours", strategy=strategy).on(1)[0]
    theirs = fit(root=tmp_path / "theirs", strategy="auto").on(1)[0]
    assert ours["held"] == theirs["held"]
    assert run_digests(ours["run"]) == run_digests(theirs["run"])
