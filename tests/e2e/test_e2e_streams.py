"""Streams that mix tasks: training, recorded tables and resume."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cuts import CutAfter, CutError
from run_digests import run_digests
from small_runs import Recipe, read_csv

from dmole.allocation import UniformAllocator
from dmole.callbacks import ContinualCallback, RouterFitting
from dmole.data import Task
from dmole.data.batch import Batch
from dmole.routing import SharedRouter
from dmole.streams.stream import BlurredStream, ReplayStream, SequentialStream, Stream

TASKS = [
    Task(
        name,
        train=f"synthetic://{name}/train?size={size}",
        test=f"synthetic://{name}/test?size=2",
        epochs=epochs,
        max_new_tokens=3,
    )
    for name, size, epochs in (("paint", 7, 1), ("count", 6, 2), ("read", 5, 1))
]
SHARED = {"allocator": UniformAllocator, "router": SharedRouter}
REPLAY = {"stream": ReplayStream(buffer_size=4)} | SHARED


Make = Callable[..., Recipe]
Finished = tuple[Path, dict[int, Counter[tuple[str, str]]]]
"""A run's folder, and how often each stage trained on each sample, by task and id."""
SLOW = pytest.mark.slow


class Served(ContinualCallback):
    """Counts the samples that each stage trains on."""

    def __init__(self) -> None:
        self.samples: dict[int, Counter[tuple[str, str]]] = {}

    def on_train_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        counter = self.samples.setdefault(trainer.sequence.stage.index, Counter())
        counter.update(zip(batch.task_names, batch.sample_ids, strict=True))


@pytest.fixture(scope="module")
def make() -> Make:
    def make(*callbacks: ContinualCallback, **parts: Any) -> Recipe:
        return Recipe(
            tasks=TASKS,
            callbacks=callbacks,
            data={"batch_size": 2},
            model={"dropout": 0.2},
            trainer={"checkpoint_every_n_steps": 1},
            **parts,
        )

    return make


@pytest.fixture(scope="module")
def replayed(make: Make, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    served = Served()
    return make(served, **REPLAY).build(tmp_path_factory.mktemp("whole")).fit(), served.samples


@pytest.mark.slow
def test_a_stage_trains_on_its_task_and_what_the_run_folder_says(replayed: Finished) -> None:
    run, samples = replayed
    written = Counter((int(r["stage"]), r["task"], r["id"]) for r in read_csv(run / "replay.csv"))
    assert set(written.values()) == {1}
    for index, task in enumerate(TASKS, start=1):
        foreign = {
            (i, *key) for i, key in ((index, k) for k in samples[index]) if key[0] != task.name
        }
        assert foreign == {key for key in written if key[0] == index}
        assert set(samples[index].values()) == {task.epochs}
        assert len(samples[index]) == (7, 6, 5)[index - 1] + (4 if index > 1 else 0)


# steps a stage: 4, then 5 in each of 2 epochs, then 5; in the last two a part is replayed
@pytest.mark.slow
@pytest.mark.parametrize("step", [12, *(pytest.param(s, marks=SLOW) for s in (3, 6, 17))])
def test_a_replay_that_was_cut_resumes_with_the_same_samples(
    make: Make, replayed: Finished, tmp_path: Path, step: int
) -> None:
    with pytest.raises(CutError):
        make(CutAfter(step), **REPLAY).build(tmp_path).fit()
    torch.manual_seed(99)  # a new process has drawn other numbers
    run = make(**REPLAY).build(tmp_path).fit("auto")
    assert "replay.csv" in run_digests(run)
    assert run_digests(run) == run_digests(replayed[0])


@pytest.mark.parametrize(
    ("stream", "name"),
    [
        (ReplayStream(buffer_size=5), "stream setting 'buffer_size'"),
        (ReplayStream(buffer_mb=1.0), "stream setting 'buffer_mb'"),
        (ReplayStream(buffer_size=4, seed=1), "stream setting 'seed'"),
        (ReplayStream(buffer_size=4, share=0.5), "stream setting 'share'"),
        (BlurredStream(0.2, "shared"), "stream"),
        (SequentialStream("shared"), "stream"),
    ],
)
def test_a_run_with_another_buffer_is_not_resumed(
    make: Make, replayed: Finished, tmp_path: Path, stream: Stream, name: str
) -> None:
    other = make(**REPLAY | {"stream": stream}).build(tmp_path)
    other.trainer.sequence.accept_changes = True  # the place in the data would be another
    with pytest.raises(ValueError, match=f"was made with another {name}; it cannot") as caught:
        other.fit(replayed[0])
    assert "\n" not in str(caught.value)


def test_a_buffer_too_small_for_any_sample_is_refused_before_anything_is_written(
    make: Make, tmp_path: Path
) -> None:
    parts = REPLAY | {"stream": ReplayStream(buffer_mb=1e-5)}
    with pytest.raises(ValueError, match="no sample of paint fits in a buffer of 1e-05 MB"):
        make(**parts).build(tmp_path).fit()
    assert not list(tmp_path.rglob("*.*"))


@pytest.mark.slow
def test_a_stream_without_blur_is_the_clean_stream_bit_for_bit(make: Make, tmp_path: Path) -> None:
    two = replace(make(stream=SequentialStream()), tasks=TASKS[:2])
    clean = two.build(tmp_path / "clean").fit()
    blurred = replace(two, stream=BlurredStream(0.0)).build(tmp_path / "blurred").fit()
    assert run_digests(blurred) == run_digests(clean)
    assert not (clean / "replay.csv").exists()


BLURRED = {"stream": BlurredStream(0.4)}
SOME = 4
"""Samples that a router is fitted on: fewer than a stage has, so that the draw matters."""


@pytest.fixture(scope="module")
def blurred(make: Make, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    served = Served()
    whole = make(served, RouterFitting(SOME), **BLURRED)
    return whole.build(tmp_path_factory.mktemp("blurred")).fit(), served.samples


@pytest.mark.slow
def test_a_blurred_stage_trains_on_samples_of_other_tasks(blurred: Finished) -> None:
    run, samples = blurred
    foreign = [
        sum(count for (name, _), count in samples[stage].items() if name != task.name)
        for stage, task in enumerate(TASKS, start=1)
    ]
    assert foreign == [3, 4, 2]
    assert not (run / "replay.csv").exists()


@pytest.mark.slow
@pytest.mark.parametrize("step", [7, 2])
def test_a_blurred_run_with_an_expert_a_task_can_be_cut(
    make: Make, blurred: Finished, tmp_path: Path, step: int
) -> None:
    with pytest.raises(CutError):
        make(CutAfter(step), RouterFitting(SOME), **BLURRED).build(tmp_path).fit()
    resumed = make(RouterFitting(SOME), **BLURRED).build(tmp_path).fit("auto")
    assert run_digests(resumed) == run_digests(blurred[0])


def test_a_blurred_run_with_another_share_is_not_resumed(make: Make, tmp_path: Path) -> None:
    tasks = [replace(task, epochs=1) for task in TASKS[:2]]
    blurred = replace(make(stream=BlurredStream(0.4), **SHARED), tasks=tasks)
    with pytest.raises(CutError):
        replace(blurred, callbacks=[CutAfter(2)]).build(tmp_path).fit()
    other = replace(blurred, stream=BlurredStream(0.2)).build(tmp_path)
    with pytest.raises(ValueError, match="was made with another stream setting 'beta'"):
        other.fit("last")
