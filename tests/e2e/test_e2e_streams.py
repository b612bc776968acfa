"""Streams that mix tasks: what is learned, written down and gone on with."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch

from dmole.allocation import UniformAllocator
from dmole.callbacks import ContinualCallback, RouterFitting
from dmole.data import Task
from dmole.routing import SharedRouter
from dmole.streams.stream import BlurredStream, ReplayStream, SequentialStream

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


class CutError(Exception):
    """Stands for whatever ends a process."""


class CutAfter(ContinualCallback):
    """Ends the run at a step, before that step is saved."""

    def __init__(self, step: int):
        self.step = step

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            raise CutError


class Served(ContinualCallback):
    """Counts the samples that each stage trains on."""

    def __init__(self):
        self.samples: dict[int, Counter] = {}

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        counter = self.samples.setdefault(trainer.sequence.stage.index, Counter())
        counter.update(zip(batch.task_names, batch.sample_ids, strict=True))


@pytest.fixture(scope="module")
def make(recipe):
    def make(*callbacks, **parts):
        return recipe(
            tasks=TASKS,
            callbacks=callbacks,
            data={"batch_size": 2},
            model={"dropout": 0.2},
            trainer={"checkpoint_every_n_steps": 1},
            **parts,
        )

    return make


@pytest.fixture(scope="module")
def replayed(make, tmp_path_factory):
    served = Served()
    return make(served, **REPLAY).build(tmp_path_factory.mktemp("whole")).fit(), served.samples


def test_a_stage_trains_on_its_task_and_what_the_run_folder_says(replayed, rows):
    run, samples = replayed
    written = Counter((int(r["stage"]), r["task"], r["id"]) for r in rows(run / "replay.csv"))
    assert set(written.values()) == {1}
    for index, task in enumerate(TASKS, start=1):
        foreign = {
            (i, *key) for i, key in ((index, k) for k in samples[index]) if key[0] != task.name
        }
        assert foreign == {key for key in written if key[0] == index}
        assert set(samples[index].values()) == {task.epochs}
        assert len(samples[index]) == (7, 6, 5)[index - 1] + (4 if index > 1 else 0)


# steps a stage: 4, then 5 in each of 2 epochs, then 5; in the last two a part is replayed
@pytest.mark.parametrize("step", [3, 6, 12, 17])
def test_a_replay_that_was_cut_goes_on_with_the_same_samples(
    make, replayed, tmp_path, digests, step
):
    with pytest.raises(CutError):
        make(CutAfter(step), **REPLAY).build(tmp_path).fit()
    torch.manual_seed(99)  # a new process has drawn other numbers
    run = make(**REPLAY).build(tmp_path).fit("auto")
    assert "replay.csv" in digests(run)
    assert digests(run) == digests(replayed[0])


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
def test_a_run_with_another_buffer_is_not_gone_on_with(make, replayed, tmp_path, stream, name):
    other = make(**REPLAY | {"stream": stream}).build(tmp_path)
    other.trainer.sequence.accept_changes = True  # the place in the data would be another
    with pytest.raises(ValueError, match=f"was made with another {name}; it cannot") as caught:
        other.fit(replayed[0])
    assert "\n" not in str(caught.value)


def test_a_buffer_too_small_for_any_sample_is_refused_before_anything_is_written(make, tmp_path):
    parts = REPLAY | {"stream": ReplayStream(buffer_mb=1e-5)}
    with pytest.raises(ValueError, match="no sample of paint fits in a buffer of 1e-05 MB"):
        make(**parts).build(tmp_path).fit()
    assert not list(tmp_path.rglob("*.*"))


def test_a_stream_without_blur_is_the_clean_stream_bit_for_bit(make, tmp_path, digests):
    clean = make(stream=SequentialStream()).build(tmp_path / "clean").fit()
    blurred = make(stream=BlurredStream(0.0)).build(tmp_path / "blurred").fit()
    assert digests(blurred) == digests(clean)
    assert not (clean / "replay.csv").exists()


def test_a_blurred_run_with_an_expert_a_task_can_be_cut(make, tmp_path, digests):
    served = Served()
    parts = {"stream": BlurredStream(0.4)}
    # fewer than a stage has, so that the draw matters
    whole = make(served, RouterFitting(4), **parts).build(tmp_path / "whole").fit()
    assert not (whole / "replay.csv").exists()
    assert [sum(n for (task, _), n in served.samples[i].items() if task != TASKS[i - 1].name)
            for i in (1, 2, 3)] == [3, 4, 2]  # fmt: skip
    for step in (2, 7):
        folder = tmp_path / str(step)
        with pytest.raises(CutError):
            make(CutAfter(step), RouterFitting(4), **parts).build(folder).fit()
        assert digests(make(RouterFitting(4), **parts).build(folder).fit("auto")) == digests(whole)


def test_a_blurred_run_with_another_share_is_not_gone_on_with(make, tmp_path):
    tasks = [replace(task, epochs=1) for task in TASKS[:2]]
    blurred = replace(make(stream=BlurredStream(0.4), **SHARED), tasks=tasks)
    with pytest.raises(CutError):
        replace(blurred, callbacks=[CutAfter(2)]).build(tmp_path).fit()
    other = replace(blurred, stream=BlurredStream(0.2)).build(tmp_path)
    with pytest.raises(ValueError, match="was made with another stream setting 'beta'"):
        other.fit("last")
