"""Two processes on the CPU, connected by gloo."""

from __future__ import annotations

import json
import logging
import math
import multiprocessing
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from run_digests import run_digests
from safetensors.torch import load_file
from small_runs import FitWords, Recipe, read_csv, small_task
from torch.testing import assert_close
from two_ranks import become_rank, free_port

from dmole.allocation import SensitivityAllocator, UniformAllocator
from dmole.callbacks import ContinualCallback, StageProgressLines
from dmole.cli.main import main
from dmole.data import Task
from dmole.data.sampler import TrainBatchSampler
from dmole.metrics import read_matrix
from dmole.module import ContinualModule
from dmole.routing import AutoencoderRouter, SharedRouter
from dmole.run.state import SequenceState
from dmole.storage.predictions import read_stage
from dmole.streams import AutoStream
from dmole.trainer import ContinualTrainer

SECONDS = 120
"""A hanging collective operation fails the test after this time."""

TWO_RANKS = {"strategy": "ddp"}
# The last step has 3 samples of 4, or 1: then the second rank has nothing but a repeat.
# An odd number of test samples, and fewer than ranks.
TASKS = [
    Task(
        name,
        train=f"synthetic://{name}/train?size={train}",
        test=f"synthetic://{name}/test?size={test}",
        max_new_tokens=3,
        epochs=epochs,
    )
    for name, train, test, epochs in (("paint", 7, 5, 1), ("count", 9, 1, 2))
]
EQUAL = {"model": {"dropout": 0.0}}
"""With dropout each rank has its own draws."""


class Losses(ContinualCallback):
    """Writes the logged loss of every step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: ContinualTrainer, *args: Any) -> None:
        self.values.append(float(trainer.callback_metrics["train/loss"]))

    def on_sequence_end(self, state: SequenceState, module: ContinualModule) -> None:
        if state.is_global_zero:
            (state.run_dir / "losses.json").write_text(json.dumps(self.values))


TwoRanks = tuple[Path, dict[int, dict[str, Any]]]
"""The run folder, and each rank's experts."""


def on_rank(rank: int, port: str, build: Callable[[], Any], answers: Any) -> None:
    """Fit as one of two processes that torchrun would have started."""
    become_rank(rank, port)
    try:
        sequence = build()
        run = sequence.fit()
        state = {key: value.numpy() for key, value in sequence.module.state_dict().items()}
        answers.put((rank, (run, state)))
    except BaseException as error:
        answers.put((rank, error))
        raise


def fit_on_two_ranks(build: Callable[[], Any]) -> TwoRanks:
    """Return the run folder and each rank's experts."""
    # forked, so that nothing is imported again; as torchrun does, they outlive the stages
    context = multiprocessing.get_context("fork")
    answers, port = context.Queue(), free_port()
    processes = [context.Process(target=on_rank, args=(r, port, build, answers)) for r in (0, 1)]
    for process in processes:
        process.start()
    try:
        found = dict(answers.get(timeout=SECONDS) for _ in processes)
    finally:
        for process in processes:
            process.join(timeout=10)
            process.kill()
    for result in found.values():
        if isinstance(result, BaseException):
            raise result
    assert found[0][0] == found[1][0]  # both know the one run folder
    return found[0][0], {rank: state for rank, (_, state) in found.items()}


# clipped well below the norms that occur, so that clipping by a rank's own norm would show
CLIPPED = {"gradient_clip_val": 0.05}


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> TwoRanks:
    folder = tmp_path_factory.mktemp("ddp")
    recipe = Recipe(
        tasks=TASKS,
        data={"batch_size": 2},
        trainer=TWO_RANKS | CLIPPED,
        devices=2,
        callbacks=[Losses()],
        **EQUAL,
    )
    return fit_on_two_ranks(lambda: recipe.build(folder))


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = Recipe(
        tasks=TASKS, data={"batch_size": 4}, trainer=CLIPPED, callbacks=[Losses()], **EQUAL
    )
    return recipe.build(tmp_path_factory.mktemp("single")).fit()


def expert_tensors(run: Path) -> dict[str, torch.Tensor]:
    return {
        f"{path.parent.name}/{key}": tensor
        for path in sorted((run / "experts").glob("*/*.safetensors"))
        for key, tensor in load_file(path).items()
    }


def gate_sets(run: Path, stage: int) -> dict[str, str]:
    tasks = read_stage(run, stage).values()
    return {line["id"]: line["gate_set"] for lines in tasks for line in lines}


def test_two_ranks_leave_one_run_folder_with_every_test_sample_once(
    two_ranks: TwoRanks,
) -> None:
    run, _ = two_ranks
    assert [path.name for path in run.parent.iterdir()] == ["version_0"]
    # events.out.tfevents.<time>.<host>.<process>.<number>: rank 0 alone writes them
    writers = {path.name.split(".")[-2] for path in run.glob("events.out.tfevents.*")}
    assert len(writers) == 1
    matrix, names = read_matrix(run / "evaluation_matrix.csv")
    assert matrix.shape == (3, 2)
    for task, size in zip(names, (5, 1), strict=True):
        for stage in range(3):
            ids = [line["id"] for line in read_stage(run, stage)[task]]
            assert ids == [f"{task}-test-0-{index}" for index in range(size)]


def test_one_of_two_ranks_logs_the_progress_and_the_closing_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(StageProgressLines, "interval", 0.0)
    shown = TWO_RANKS | {"enable_progress_bar": True}
    recipe = Recipe(tasks=TASKS[:1], data={"batch_size": 2}, trainer=shown, devices=2, **EQUAL)

    def build() -> Any:
        logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)  # on both ranks
        return recipe.build(tmp_path)

    fit_on_two_ranks(build)
    lines = capfd.readouterr().err.splitlines()
    assert len([line for line in lines if line.startswith("results are in")]) == 2
    assert len([line for line in lines if line.startswith("routed ")]) == 1
    trained = [line for line in lines if line.startswith("stage 1/1 paint | train | epoch 1/1")]
    assert len(trained) == 1 + 2  # the start of the epoch, and its two batches


def test_both_ranks_end_with_the_same_experts(
    two_ranks: TwoRanks,
) -> None:
    _, experts = two_ranks
    assert experts[0].keys() == experts[1].keys()
    for name, tensor in experts[0].items():
        assert (tensor == experts[1][name]).all(), name
    assert any(tensor.any() for name, tensor in experts[0].items() if name.endswith("lora_b"))


@pytest.mark.slow
def test_two_ranks_allocate_like_one(two_ranks: TwoRanks, one_rank: Path) -> None:
    ours, theirs = (read_csv(run / "allocation.csv") for run in (two_ranks[0], one_rank))
    scores = [[float(row.pop("score")) for row in table] for table in (ours, theirs)]
    assert ours == theirs
    assert scores[0] == pytest.approx(scores[1], rel=1e-4)


def test_two_ranks_route_like_one(two_ranks: TwoRanks, one_rank: Path) -> None:
    ours, theirs = (
        json.loads((run / "router" / "router.json").read_text())["experts"]
        for run in (two_ranks[0], one_rank)
    )
    assert [task["name"] for task in ours] == [task["name"] for task in theirs]
    for own, other in zip(ours, theirs, strict=True):
        assert own["threshold"] == pytest.approx(other["threshold"], rel=1e-3)
    for stage in range(3):
        assert gate_sets(two_ranks[0], stage) == gate_sets(one_rank, stage)


@pytest.mark.slow
def test_two_ranks_find_the_segments_that_one_finds(tmp_path: Path) -> None:
    tasks = [small_task("paint", 57, 2), small_task("count", 40, 1)]

    def recipe(**parts: Any) -> Recipe:
        stream = AutoStream(window=12, min_segment=40)
        return Recipe(tasks=tasks, stream=stream, data={"batch_size": 16}, **parts, **EQUAL)

    alone = recipe().build(tmp_path / "one").fit()
    run, experts = fit_on_two_ranks(
        lambda: recipe(trainer=TWO_RANKS, devices=2).build(tmp_path / "two")
    )
    assert (run / "segments.csv").read_text() == (alone / "segments.csv").read_text()
    assert {name.partition("/")[0] for name in experts[0]} == {"segment_1", "segment_2"}
    for name, tensor in experts[0].items():
        assert (tensor == experts[1][name]).all(), name


def assert_close_but_for_few(
    tensor: torch.Tensor, other: torch.Tensor, atol: float, name: str
) -> None:
    """Compare weights that Adam has trained.

    It divides a first gradient by its own size: where that is near zero, its rounding makes a
    whole step.
    """
    differs = ~torch.isclose(tensor, other, rtol=1e-3, atol=atol)
    assert differs.float().mean() < 2e-3, name
    assert_close(tensor, other, rtol=1e-3, atol=10 * atol, msg=name)


def test_two_ranks_lose_like_one_at_every_step(two_ranks: TwoRanks, one_rank: Path) -> None:
    ours, theirs = (
        json.loads((run / "losses.json").read_text()) for run in (two_ranks[0], one_rank)
    )
    assert len(ours) == 2 + 2 * 3
    assert ours == pytest.approx(theirs, rel=1e-5)


def test_two_ranks_learn_like_one(two_ranks: TwoRanks, one_rank: Path) -> None:
    ours, theirs = (expert_tensors(run) for run in (two_ranks[0], one_rank))
    assert ours.keys() == theirs.keys()
    assert any(tensor.abs().max() > 1e-3 for key, tensor in ours.items() if "lora_B" in key)
    for key, tensor in ours.items():
        assert_close_but_for_few(tensor, theirs[key], 1e-4, key)


@pytest.mark.slow
def test_two_ranks_that_recompute_activations_learn_the_same(
    two_ranks: TwoRanks, tmp_path: Path
) -> None:
    recipe = Recipe(
        tasks=TASKS,
        data={"batch_size": 2},
        trainer=TWO_RANKS | CLIPPED,
        devices=2,
        model={"dropout": 0.0, "activation_checkpointing": True},
    )
    _, states = fit_on_two_ranks(lambda: recipe.build(tmp_path))
    assert states[0].keys() == two_ranks[1][0].keys()
    for key, tensor in states[0].items():
        assert (tensor == two_ranks[1][0][key]).all(), key


def test_two_ranks_score_like_one(two_ranks: TwoRanks, one_rank: Path) -> None:
    for name in ("evaluation_matrix.csv", "oracle_matrix.csv", "routing.csv"):
        assert (two_ranks[0] / name).read_text() == (one_rank / name).read_text()


def test_the_samples_of_all_ranks_are_counted_and_repeats_among_them(
    two_ranks: TwoRanks,
) -> None:
    timing = json.loads((two_ranks[0] / "timing.json").read_text())
    assert [lap["samples"] for lap in timing["phases"] if lap["phase"] == "train"] == [8, 20]


@pytest.mark.parametrize("size", [pytest.param(4, marks=pytest.mark.slow), 3])
def test_a_rank_whose_batch_has_no_image_or_no_label_does_not_hang(
    tmp_path: Path, size: int
) -> None:
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png")
    turns = [{"from": "human", "value": "what ?"}, {"from": "gpt", "value": "red"}]
    # of three, the first rank ends with a text alone, the second with a repeat of it
    last = list(TrainBatchSampler(3, 1, stage=1, num_replicas=2))[-1][0]
    items = [
        {"id": str(i), "conversations": turns}
        | ({"image": "a.png"} if (i % 2 if size == 4 else i != last) else {})
        for i in range(size)
    ]
    (tmp_path / "a.json").write_text(json.dumps(items))
    file = str(tmp_path / "a.json")
    mixed = Recipe(
        tasks=[Task("mixed", train=file, test=file, max_new_tokens=2)],
        allocator=UniformAllocator,  # vision experts, which a text alone never reaches
        router=SharedRouter,
        data={"batch_size": 1, "group_by_length": False},
        trainer=TWO_RANKS,
        devices=2,
    )
    _, experts = fit_on_two_ranks(lambda: mixed.build(tmp_path / "runs"))
    for name, tensor in experts[0].items():
        assert (tensor == experts[1][name]).all(), name


@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp_fork"])
def test_strategies_that_end_their_processes_after_a_stage_are_refused(
    tmp_path: Path, strategy: str
) -> None:
    spawned = Recipe(trainer={"strategy": strategy}, devices=2)
    with pytest.raises(ValueError, match=r"use trainer\.strategy ddp"):
        spawned.build(tmp_path)


LAUNCHERS = {
    "lightning": ["-m"],
    "torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"],
}


def uneven_words(fit_words: Callable[..., list[str]], folder: Path, batch_size: int) -> list[str]:
    tasks = [
        {"name": task.name, "train": task.train, "test": task.test, "max_new_tokens": 3}
        for task in TASKS
    ]
    path = folder / "uneven.yaml"
    path.write_text(yaml.safe_dump({"data": {"tasks": tasks, "batch_size": batch_size}}))
    return fit_words(folder, "--config", str(path), "--model.dropout", "0")


@pytest.fixture(scope="module")
def one_process(fit_words: FitWords, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one_process")
    assert main(uneven_words(fit_words, folder, 4)) == 0
    return folder / "small" / "version_0"


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_started_processes_give_what_one_gives(
    fit_words: FitWords, one_process: Path, tmp_path: Path, launcher: str
) -> None:
    flags = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    words = [*LAUNCHERS[launcher], "dmole", *uneven_words(fit_words, tmp_path, 2), *flags]
    subprocess.run([sys.executable, *words], check=True, timeout=600, capture_output=True)
    run = tmp_path / "small" / "version_0"
    assert [path.name for path in run.parent.iterdir()] == ["version_0"]
    ours, theirs = (read_csv(folder / "allocation.csv") for folder in (run, one_process))
    keys = ("stage", "expert", "unit", "selected", "rank")
    assert [[row[k] for k in keys] for row in ours] == [[row[k] for k in keys] for row in theirs]
    for name in ("evaluation_matrix.csv", "oracle_matrix.csv", "routing.csv"):
        assert (run / name).read_text() == (one_process / name).read_text()
    others = expert_tensors(one_process)
    for key, tensor in expert_tensors(run).items():
        assert_close(tensor, others[key], rtol=1e-3, atol=1e-4, msg=key)
    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert len(content["done"]) == 7


@pytest.mark.slow
def test_two_ranks_resume_where_one_left_off(
    fit_words: FitWords, quick_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "small" / "version_0"
    shutil.copytree(quick_run, run)
    flags = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--ckpt_path", str(run)]
    command = [sys.executable, "-m", "dmole", *fit_words(tmp_path, *flags)]
    subprocess.run(command, check=True, timeout=600, capture_output=True)
    assert run_digests(run) == run_digests(quick_run)


@pytest.mark.slow
def test_two_ranks_start_an_expert_where_one_does(tmp_path: Path) -> None:
    """The losses under past experts are sums over the ranks, which share the samples."""
    parts: dict[str, Any] = {
        "tasks": TASKS,
        "allocator": lambda: SensitivityAllocator(
            start="closest", start_samples=5, start_ratio=math.inf
        ),
        "router": lambda: AutoencoderRouter(ranking="likelihood", partner=False, max_experts=1),
        **EQUAL,
    }
    single = Recipe(data={"batch_size": 4, "eval_batch_size": 2}, trainer=CLIPPED, **parts)
    one = single.build(tmp_path / "one").fit()
    double = Recipe(
        data={"batch_size": 2, "eval_batch_size": 2},
        trainer=TWO_RANKS | CLIPPED,
        devices=2,
        **parts,
    )
    two, states = fit_on_two_ranks(lambda: double.build(tmp_path / "two"))
    starts = [json.loads((run / "metrics.json").read_text())["experts"] for run in (one, two)]
    assert starts[0] == starts[1]
    assert starts[0]["count"] == {"starts_from": "paint"}
    for key, tensor in states[0].items():
        assert (tensor == states[1][key]).all(), key
    theirs = expert_tensors(one)
    for key, value in expert_tensors(two).items():
        # the second expert inherits the rounding of the first one's steps
        assert_close_but_for_few(value, theirs[key], 5e-4, key)
    for stage in range(3):
        assert gate_sets(two, stage) == gate_sets(one, stage)


class Cut(ContinualCallback):
    """Ends the run in the middle of the first stage's router phase."""

    def on_stage_trained(self, trainer: ContinualTrainer, module: ContinualModule) -> None:
        raise KeyError("cut")


@pytest.mark.slow
def test_a_run_cut_before_its_router_was_fitted_is_resumed_on_two_ranks(
    tmp_path: Path, one_rank: Path
) -> None:
    recipe = Recipe(tasks=TASKS, data={"batch_size": 2}, callbacks=[Cut()])
    with pytest.raises(KeyError, match="cut"):
        recipe.build(tmp_path).fit()
    run = tmp_path / "dmole" / "version_0"
    ours = Recipe(tasks=TASKS, data={"batch_size": 2}, trainer=TWO_RANKS, devices=2)
    resumed, states = fit_on_two_ranks(lambda: Resumed(ours.build(tmp_path), run))
    assert resumed == run
    assert gate_sets(run, 1) == gate_sets(one_rank, 1)
    assert states[0].keys() == states[1].keys()


class Resumed:
    """A sequence whose ``fit`` resumes from a run folder."""

    def __init__(self, sequence: Any, run: Path) -> None:
        self._sequence, self._run = sequence, run
        self.module = sequence.module

    def fit(self) -> Path:
        return Path(self._sequence.fit(self._run))
