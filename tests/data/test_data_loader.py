from __future__ import annotations

import multiprocessing
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from dmole.data.batch import Batch
from dmole.data.collate import Collator, TaskSample
from dmole.data.loader import ResumableLoader, train_loader
from dmole.data.sample import Sample, Turn
from dmole.data.sampler import TrainBatchSampler

ITEMS: list[TaskSample] = [
    (Sample(f"s{i}", (Turn("user", "q" * (1 + i % 5)), Turn("assistant", f"{i}"))), "task")
    for i in range(18)
]


@pytest.fixture
def collator(processors: dict[str, Any]) -> Collator:
    return Collator(processors["llava"])


def make_loader(collator: Collator, *, stage: int = 1, workers: int = 0) -> ResumableLoader:
    lengths = [len(sample.turns[0].text) for sample, _ in ITEMS]
    sampler = TrainBatchSampler(len(ITEMS), 4, lengths=lengths, seed=3, stage=stage)
    return train_loader(ITEMS, collator, sampler, num_workers=workers)


def ids(loader: ResumableLoader) -> list[list[str]]:
    return [batch.sample_ids for batch in loader]


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_resumes_exactly_where_it_stopped(collator: Collator, workers: int) -> None:
    whole = ids(make_loader(collator))
    first = make_loader(collator, workers=workers)
    iterator = iter(first)
    taken = [next(iterator).sample_ids for _ in range(2)]
    state = first.state_dict()
    second = make_loader(collator, workers=workers)
    second.load_state_dict(state)
    assert taken + ids(second) == whole
    assert len(second) == len(whole) == 5
    assert ids(second) == whole  # the next pass is a whole one


@pytest.mark.parametrize("workers", [0, 2])
def test_a_sample_that_only_fills_the_last_batch_has_no_labels(
    collator: Collator, workers: int
) -> None:
    def answers(rank: int, taken: int) -> list[list[bool]]:
        sampler = TrainBatchSampler(5, 2, rank=rank, num_replicas=2)
        loader = train_loader(ITEMS[:5], collator, sampler, num_workers=workers)
        loader.load_state_dict({"taken": taken, "epoch": 0, "stage": 0})
        return [(batch.labels != -100).any(dim=1).tolist() for batch in loader]

    assert answers(0, 0) == [[True, True], [True]]
    assert answers(1, 0) == [[True, True], [False]]
    assert answers(1, 1) == [[False]]


def test_an_extra_iterator_does_no_harm(collator: Collator) -> None:
    loader = make_loader(collator)
    whole = ids(loader)
    loader.load_state_dict({"taken": 3, "epoch": 0, "stage": 1})
    iter(loader)
    assert ids(loader) == whole[3:]


def test_epoch_set_after_the_iterator_is_made_counts(collator: Collator) -> None:
    loader, other = make_loader(collator), make_loader(collator)
    iterator = iter(loader)
    loader.batch_sampler.sampler.set_epoch(4)  # type: ignore[union-attr]
    other.batch_sampler.set_epoch(4)  # type: ignore[union-attr]
    assert [batch.sample_ids for batch in iterator] == ids(other)
    other.batch_sampler.set_epoch(0)  # type: ignore[union-attr]
    assert ids(loader) != ids(other)


def test_state_of_a_finished_epoch_does_not_shorten_the_next(collator: Collator) -> None:
    first, second = make_loader(collator), make_loader(collator)
    ids(first)
    second.load_state_dict(first.state_dict())
    second.batch_sampler.set_epoch(1)  # type: ignore[union-attr]
    assert len(ids(second)) == 5


def test_state_of_another_stage_is_refused(collator: Collator) -> None:
    state = make_loader(collator, stage=1).state_dict()
    with pytest.raises(ValueError, match="the loader state is of stage 1, not of 2"):
        make_loader(collator, stage=2).load_state_dict(state)


@pytest.mark.parametrize("workers", [0, 2])
def test_global_generator_is_not_touched(collator: Collator, workers: int) -> None:
    before = torch.get_rng_state()
    ids(make_loader(collator, workers=workers))
    assert torch.equal(torch.get_rng_state(), before)


def test_truncated_samples_are_counted_across_workers(processors: dict[str, Any]) -> None:
    collator = Collator(processors["llava"], max_length=13, on_too_long="truncate")
    long: list[TaskSample] = [
        (Sample(f"{i}", (Turn("user", "q"), Turn("assistant", "ab " * 9))), "task")
        for i in range(6)
    ]
    sampler = TrainBatchSampler(6, 2)
    list(train_loader(long, collator, sampler, num_workers=2))
    assert collator.truncated == 6


class Recorder(LightningModule):
    """Notes which samples it sees."""

    def __init__(self, loader: ResumableLoader) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.loader = loader
        self.seen: list[list[str]] = []

    def train_dataloader(self) -> ResumableLoader:
        return self.loader

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        self.seen.append(batch.sample_ids)
        return self.weight * batch.inputs["input_ids"].float().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class StopAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            trainer.should_stop = True


def run(loader: ResumableLoader, folder: Path, *, stop: int = 0, resume: bool = False) -> Recorder:
    module = Recorder(loader)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=3,
        callbacks=[
            ModelCheckpoint(
                folder, save_last=True, every_n_train_steps=1, enable_version_counter=False
            ),
            StopAt(stop),
        ],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(module, ckpt_path=str(folder / "last.ckpt") if resume else None)
    return module


def workers() -> set[int | None]:
    """Return the process ids of this process's data workers."""
    return {child.pid for child in multiprocessing.active_children()}


@pytest.mark.filterwarnings("ignore")
def test_workers_stay_for_all_epochs_and_end_with_the_training(
    collator: Collator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[set[int | None]] = []
    step = Recorder.training_step

    def watched(*args: Any) -> torch.Tensor:
        alive.append(workers() - before)
        return step(*args)

    before = workers()
    whole = run(make_loader(collator), tmp_path / "whole").seen
    monkeypatch.setattr(Recorder, "training_step", watched)
    assert run(make_loader(collator, workers=2), tmp_path / "workers").seen == whole
    assert len(alive) == 15
    assert len(set().union(*alive)) == 2
    assert workers() == before


def test_a_pass_that_was_left_early_does_not_harm_the_next(collator: Collator) -> None:
    loader = make_loader(collator, workers=2)
    whole = ids(make_loader(collator))
    for batch in loader:
        assert batch.sample_ids == whole[0]
        break
    assert ids(loader) == whole


def test_a_process_ends_although_it_has_workers() -> None:
    code = (
        "from dmole.data.loader import ResumableLoader, TrainBatchSampler, worker_options\n"
        "kept = ResumableLoader([(0, '')] * 9, TrainBatchSampler(9, 1), collate_fn=list,\n"
        "    **worker_options({'num_workers': 2}))\n"
        "passing = kept._read()\n"
        "print(next(passing))"
    )
    # Python ends its children by SIGTERM, which workers ignore
    ended = subprocess.run(
        [sys.executable, "-c", code], timeout=60, capture_output=True, text=True, check=True
    )
    assert ended.stdout == "[(0, '')]\n"


@pytest.mark.filterwarnings("ignore")  # Lightning advises more workers and names an older folder
@pytest.mark.parametrize("stop", [2, 5, 8])
def test_lightning_resumes_the_order_bit_for_bit(
    collator: Collator, tmp_path: Path, stop: int
) -> None:
    whole = run(make_loader(collator), tmp_path / "whole").seen
    assert len(whole) == 15
    first = run(make_loader(collator), tmp_path / "parts", stop=stop).seen
    loader = make_loader(collator)
    loader.batch_sampler.set_epoch(stop // 5)  # type: ignore[union-attr]
    assert first + run(loader, tmp_path / "parts", resume=True).seen == whole


def test_workers_end_after_their_parent_was_killed() -> None:
    code = (
        "import os, signal, numpy\n"
        "from dmole.data.loader import ResumableLoader, TrainBatchSampler, worker_options\n"
        "def large(items): return [numpy.zeros(10**6, numpy.uint8)]  # more than a pipe takes\n"
        "kept = ResumableLoader([(0, '')] * 9, TrainBatchSampler(9, 1), collate_fn=large,\n"
        "    **worker_options({'num_workers': 2}))\n"
        "next(kept._read())\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    # the workers hold the output, too: it ends with the last of them
    killed = subprocess.run([sys.executable, "-c", code], timeout=60, capture_output=True)
    assert killed.returncode == -signal.SIGKILL
