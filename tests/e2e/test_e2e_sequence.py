from __future__ import annotations

import itertools
import json
import math
import threading
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import Callback
from peft import PeftModel
from run_digests import run_digests
from safetensors.torch import load_file
from small_runs import Recipe, one_answer, read_csv
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dmole.allocation import UniformAllocator
from dmole.callbacks import ContinualCallback
from dmole.data.batch import Batch
from dmole.metrics import read_matrix, summarize
from dmole.metrics.counterparts import counterparts
from dmole.metrics.summary import RUN_FORMAT
from dmole.models import PretrainedBackbone
from dmole.module import ContinualModule
from dmole.routing import AllExpertsRouter, AutoencoderRouter, OracleRouter, SharedRouter
from dmole.run.checkpoint_file import read_checkpoint
from dmole.run.state import SequenceState
from dmole.storage.predictions import read_stage
from dmole.streams.stream import JointStream, SequentialStream, ZeroShotStream
from dmole.trainer import ContinualTrainer

TASKS = ["paint", "count"]
STAGES = range(len(TASKS) + 1)


class CountAnswers(Callback):
    """Counts the samples that were answered, by stage and pass."""

    def __init__(self) -> None:
        self.counts: dict[tuple[int, str], int] = defaultdict(int)

    def on_test_batch_end(
        self,
        trainer: ContinualTrainer,
        module: ContinualModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.counts[trainer.sequence.stage.index, module.evaluation.name] += len(batch)


def predictions(run: Path, stage: int, task: str) -> list[dict[str, Any]]:
    return read_stage(run, stage)[task]


def chosen_layers(allocation: list[dict[str, str]], task: str) -> set[str]:
    return {row["unit"] for row in allocation if row["expert"] == task and row["selected"] == "1"}


# -- the run folder ----------------------------------------------------------------------------


def test_the_config_of_a_run_is_the_whole_resolved_one(quick_run: Path) -> None:
    config = yaml.safe_load((quick_run / "config.yaml").read_text(encoding="utf-8"))
    assert config["seed_everything"] == 0
    assert [task["name"] for task in config["data"]["tasks"]] == TASKS
    assert (
        config["data"]["tasks"][0]["metric"] == "exact_match"
    )  # a default that the config does not set
    assert config["model"]["router"]["init_args"]["quantile"] == 0.99


def test_both_matrices_have_a_row_a_stage_and_no_score_before_a_task_is_seen(
    quick_run: Path,
) -> None:
    matrix, names = read_matrix(quick_run / "evaluation_matrix.csv")
    oracle, _ = read_matrix(quick_run / "oracle_matrix.csv")
    assert names == TASKS
    assert matrix.shape == oracle.shape == (3, 2)
    assert np.isfinite(matrix).all()
    assert np.isnan(oracle).tolist() == [[True, True], [False, True], [False, False]]


def test_every_prediction_has_its_sample_gate_set_and_score(quick_run: Path) -> None:
    matrix, _ = read_matrix(quick_run / "evaluation_matrix.csv")
    for stage, (column, task) in itertools.product(STAGES, enumerate(TASKS)):
        found = predictions(quick_run, stage, task)
        assert [line["id"] for line in found] == [f"{task}-test-0-{i}" for i in range(8)]
        for line in found:
            keys = ["id", "prompt", "prediction", "references", "score", "gate_set"]
            assert list(line) == keys
            known = {"base", *TASKS[:stage]}
            assert set(line["gate_set"].split("+")) <= known
            assert line["score"] == 100.0 * (line["prediction"] in line["references"])
        assert np.mean([line["score"] for line in found]) == pytest.approx(matrix[stage, column])


def test_the_routing_counts_are_those_of_the_predictions(quick_run: Path) -> None:
    counted = defaultdict(int)
    for row in read_csv(quick_run / "routing.csv"):
        if row["phase"] == "train":
            continue
        counted[int(row["stage"]), row["true_task"], row["gate_set"]] = int(row["count"])
    expected = defaultdict(int)
    for stage, task in itertools.product(STAGES, TASKS):
        for line in predictions(quick_run, stage, task):
            expected[stage, task, line["gate_set"]] += 1
    assert counted == expected


def test_experts_sit_in_the_layers_that_the_allocation_chose(quick_run: Path) -> None:
    allocation = read_csv(quick_run / "allocation.csv")
    names = ["stage", "expert", "modality", "unit", "score", "selected", "rank"]
    assert list(allocation[0]) == names
    paths = {block.name: f"{block.path}." for block in PretrainedBackbone("tiny").blocks}
    for task in TASKS:
        tensors = load_file(quick_run / "experts" / task / "adapter_model.safetensors")
        found = {
            layer
            for key, (layer, path) in itertools.product(tensors, paths.items())
            if key.removeprefix("base_model.model.").startswith(path)
        }
        assert found == chosen_layers(allocation, task)
        for row in allocation:
            assert (int(row["rank"]) > 0) == (row["selected"] == "1")


# peft asks for what transformers 5 has renamed
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_peft_loads_an_expert_of_a_run(quick_run: Path) -> None:
    base = PretrainedBackbone("tiny").model
    folder = quick_run / "experts" / "count"
    adapted = PeftModel.from_pretrained(base, folder)
    saved = load_file(folder / "adapter_model.safetensors")
    loaded = {
        key.replace(".default", ""): value
        for key, value in adapted.state_dict().items()
        if "lora_" in key
    }
    assert loaded.keys() == saved.keys()
    assert all(torch.equal(loaded[key], saved[key]) for key in saved)


def test_the_router_has_a_file_and_a_threshold_for_each_task(quick_run: Path) -> None:
    index = json.loads((quick_run / "router" / "router.json").read_text(encoding="utf-8"))
    assert [entry["name"] for entry in index["experts"]] == TASKS
    assert all(entry["threshold"] > 0 for entry in index["experts"])
    assert all((quick_run / "router" / f"{task}.safetensors").is_file() for task in TASKS)


def test_the_metrics_follow_from_the_matrices(quick_run: Path) -> None:
    metrics = json.loads((quick_run / "metrics.json").read_text(encoding="utf-8"))
    oracle, rates = metrics.pop("oracle"), metrics.pop("routing")
    assert metrics.pop("format") == RUN_FORMAT
    digests = metrics.pop("fingerprints")
    assert digests["base"] == PretrainedBackbone("tiny").fingerprint()
    assert {task: set(splits) for task, splits in digests["data"].items()} == {
        task: {"train", "test"} for task in TASKS
    }
    assert set(metrics.pop("scoring")) == set(TASKS)
    constants = metrics.pop("constant_answer")
    for task in TASKS:
        accepted = [line["references"] for line in predictions(quick_run, 0, task)]
        most = max(sum(text in each for each in accepted) for refs in accepted for text in refs)
        assert constants[task]["score"] == pytest.approx(100 * most / len(accepted))
    sizes = metrics.pop("sizes")
    assert (sizes["rank"], sizes["expert_rank"], sizes["scaling"]) == (8, 8, 2.0)
    assert (sizes["batch_size"], sizes["processes"]) == (8, 1)
    test_rates = {"own_first", "rejected", "foreign_too", "second_expert", "unseen_accepted"}
    assert set(rates) == {*test_rates, "trained_with_partner"}
    order = [[0], [1]]
    matrix, names = read_matrix(quick_run / "evaluation_matrix.csv")
    tests = [len(predictions(quick_run, 2, task)) for task in names]
    assert metrics.pop("counterparts") == counterparts(matrix, order, tests)
    for content, file in ((metrics, "evaluation_matrix.csv"), (oracle, "oracle_matrix.csv")):
        matrix, names = read_matrix(quick_run / file)
        assert content == summarize(matrix, names, task_of_stage=order)
    matrix, _ = read_matrix(quick_run / "evaluation_matrix.csv")
    assert metrics["Last"] == pytest.approx(matrix[-1].mean())
    assert metrics["BWT"] == pytest.approx(matrix[-1, 0] - matrix[1, 0])
    assert set(metrics["definitions"]) >= {"AVG", "Last", "BWT", "MAA", "ACC", "Forgetting"}


def test_the_curriculum_table_has_the_budget_of_the_allocation(quick_run: Path) -> None:
    curriculum = read_csv(quick_run / "curriculum.csv")
    keys = ["stage", "expert", "modality", "difficulty", "budget", "factor", "step"]
    assert list(curriculum[0]) == keys
    allocation = read_csv(quick_run / "allocation.csv")
    for row in curriculum:
        granted = [
            other["selected"] == "1" and other["modality"] == row["modality"]
            for other in allocation
            if other["expert"] == row["expert"]
        ]
        assert int(row["budget"]) == sum(granted)
    for task in TASKS:
        shares = [float(row["difficulty"]) for row in curriculum if row["expert"] == task]
        assert math.fsum(shares) == pytest.approx(1.0)


def test_the_timing_names_every_phase_and_the_parameters_of_the_experts(quick_run: Path) -> None:
    timing = json.loads((quick_run / "timing.json").read_text(encoding="utf-8"))
    done = {(lap["stage"], lap["phase"]) for lap in timing["phases"]}
    phases = ["embed", "allocate", "train", "router", "evaluate"]
    assert done == {(0, "evaluate"), *itertools.product([1, 2], phases)}
    assert [lap["samples"] for lap in timing["phases"] if lap["phase"] == "train"] == [32, 32]
    assert timing["seconds"] > 0
    assert timing["train_samples_per_second"] > 0
    assert timing["peak_memory_bytes"] > 0
    parameters = timing["parameters"]
    for task in TASKS:
        tensors = load_file(quick_run / "experts" / task / "adapter_model.safetensors")
        assert parameters["trainable"][task] == sum(t.numel() for t in tensors.values())
    assert parameters["total"] == parameters["base"] + sum(parameters["trainable"].values())
    assert parameters["base"] <= parameters["active"] <= parameters["total"]


def test_answers_do_not_depend_on_the_batches_they_are_generated_in(
    plain_run: Path, tmp_path: Path
) -> None:
    data = {"eval_batch_size": 1, "eval_tokens_per_batch": 100}
    run = Recipe(data=data).build(tmp_path).fit()
    for stage in STAGES:
        assert read_stage(run, stage) == read_stage(plain_run, stage)


def test_tensorboard_has_the_scalars_and_figures_of_a_run(quick_run: Path) -> None:
    board = EventAccumulator(str(quick_run)).Reload()
    scalars, images = set(board.Tags()["scalars"]), set(board.Tags()["images"])
    assert scalars >= {
        "train/loss",
        "train/samples_per_second",
        "learning_rate/vision",
        "learning_rate/language",
        "curriculum/factor_vision",
        "curriculum/factor_language",
        "score/paint",
        "score/count",
    }
    assert images >= {"evaluation_matrix", "allocation", "expert_activation"}
    steps = [event.step for event in board.Scalars("train/loss")]
    assert steps == sorted(set(steps))
    assert [event.step for event in board.Scalars("score/paint")] == [0, 1, 2]
    figures = {path.stem for path in (quick_run / "figures").glob("*.png")}
    assert figures >= {"evaluation_matrix", "allocation", "expert_activation"}


def test_the_checkpoint_holds_the_experts_and_nothing_of_the_base_model(quick_run: Path) -> None:
    file = quick_run / "checkpoints" / "last.ckpt"
    raw = torch.load(file, weights_only=True)
    assert {key.split("/")[0] for key in raw["state_dict"]} == {TASKS[-1]}
    assert list(raw["frozen"]) == list(TASKS[:-1])
    content = read_checkpoint(file)
    assert {key.split("/")[0] for key in content["state_dict"]} == set(TASKS)
    assert all(key.endswith(("lora_a", "lora_b")) for key in content["state_dict"])
    timing = json.loads((quick_run / "timing.json").read_text(encoding="utf-8"))
    learned = sum(tensor.numel() for tensor in content["state_dict"].values())
    assert learned == sum(timing["parameters"]["trainable"].values())


def test_no_temporary_file_stays_in_a_run_folder(quick_run: Path) -> None:
    assert not [path for path in quick_run.rglob(".*") if path.is_file()]


# -- evaluation --------------------------------------------------------------------------------


def test_incremental_evaluation_gives_what_full_evaluation_gives(
    plain_run: Path, tmp_path: Path
) -> None:
    counter = CountAnswers()
    full = Recipe(callbacks=[counter], trainer={"incremental_evaluation": False})
    run = full.build(tmp_path).fit()
    assert run_digests(run) == run_digests(plain_run)
    # all 8 samples again in each routed pass
    assert [counter.counts[stage, "routed"] for stage in STAGES] == [8, 8, 8]


@pytest.mark.slow
def test_incremental_evaluation_answers_only_under_new_gate_sets(
    plain_run: Path, tmp_path: Path
) -> None:
    counter = CountAnswers()
    sequence = Recipe(callbacks=[counter]).build(tmp_path)
    run = sequence.fit()
    answered = set()
    for stage, task in itertools.product(STAGES, TASKS):
        for line in predictions(run, stage, task):
            answered.add((task, line["id"], line["gate_set"]))
    answered |= {(task, line["id"], task) for task in TASKS for line in predictions(run, 0, task)}
    assert sum(counter.counts.values()) == len(answered)


def test_the_oracle_answers_with_the_true_expert_and_forgets_exactly_nothing(
    tmp_path: Path,
) -> None:
    tasks = [one_answer(tmp_path, "first", "red"), one_answer(tmp_path, "second", "two")]
    closed = Recipe(tasks=tasks, router=lambda: AutoencoderRouter(threshold_scale=0.0))
    run = closed.build(tmp_path / "runs").fit()
    oracle, _ = read_matrix(run / "oracle_matrix.csv")
    np.testing.assert_array_equal(oracle, [[np.nan] * 2, [100.0, np.nan], [100.0, 100.0]])
    matrix, _ = read_matrix(run / "evaluation_matrix.csv")
    assert not matrix.any()  # no sample reaches an expert: thresholds are 0
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    assert (metrics["oracle"]["BWT"], metrics["oracle"]["Last"]) == (0.0, 100.0)


def test_a_zero_shot_run_has_one_row_and_no_expert(tmp_path: Path) -> None:
    zero = Recipe(stream=ZeroShotStream(), router=SharedRouter).build(tmp_path)
    run = zero.fit()
    matrix, _ = read_matrix(run / "evaluation_matrix.csv")
    assert matrix.shape == (1, 2)
    assert np.isfinite(matrix).all()
    assert json.loads((run / "experts" / "experts.json").read_text(encoding="utf-8")) == []
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["BWT"] is None


def test_a_joint_run_has_two_rows_and_one_expert(tmp_path: Path) -> None:
    joint = Recipe(stream=JointStream(), allocator=UniformAllocator, router=SharedRouter)
    run = joint.build(tmp_path).fit()
    matrix, _ = read_matrix(run / "evaluation_matrix.csv")
    assert matrix.shape == (2, 2)
    assert [path.name for path in (run / "experts").iterdir() if path.is_dir()] == ["joint"]
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["Last"] == pytest.approx(matrix[1].mean())


@pytest.mark.slow
def test_sequential_fine_tuning_answers_everything_again_after_each_stage(tmp_path: Path) -> None:
    counter = CountAnswers()
    stream = SequentialStream(shared_expert="shared")
    shared = Recipe(
        stream=stream, allocator=UniformAllocator, router=SharedRouter, callbacks=[counter]
    )
    sequence = shared.build(tmp_path)
    run = sequence.fit()
    assert [counter.counts[stage, "routed"] for stage in STAGES] == [8, 8, 8]
    gate_sets = [{line["gate_set"] for line in predictions(run, s, "paint")} for s in STAGES]
    assert gate_sets == [{"base"}, {"shared"}, {"shared"}]


@pytest.mark.slow
def test_evaluating_again_leaves_out_rows_whose_experts_are_gone(tmp_path: Path) -> None:
    stream = SequentialStream(shared_expert="shared")
    shared = Recipe(stream=stream, allocator=UniformAllocator, router=SharedRouter)
    run = shared.build(tmp_path / "runs").fit()
    again = shared.build(tmp_path / "other")
    again.trainer.evaluate(again.module, again.data, run=run, output=tmp_path / "again")
    ours, _ = read_matrix(tmp_path / "again" / "evaluation_matrix.csv")
    theirs, _ = read_matrix(run / "evaluation_matrix.csv")
    assert np.isnan(ours[1]).all()  # the expert went on training in stage 2
    assert ours[[0, 2]].tolist() == theirs[[0, 2]].tolist()
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_the_baselines_are_one_method_while_there_is_one_task(tmp_path: Path) -> None:
    # an expert's name is part of the seed of its initial weights, so all get the same
    streams = {
        "seq_ft": (SequentialStream(shared_expert="paint"), SharedRouter),
        "seq_ft_merge": (SequentialStream(), AllExpertsRouter),
        "finetune": (SequentialStream(), OracleRouter),
        "joint": (JointStream(expert="paint"), SharedRouter),
    }
    found = {}
    for name, (stream, router) in streams.items():
        alone = Recipe(
            tasks=["paint"],
            stream=stream,
            allocator=UniformAllocator,
            router=router,
            trainer={"name": name},
        )
        sequence = alone.build(tmp_path)
        run = sequence.fit()
        matrix, _ = read_matrix(run / "evaluation_matrix.csv")
        found[name] = (sequence.module.state_dict(), matrix.tolist(), predictions(run, 1, "paint"))
    tensors, matrix, answers = found["finetune"]
    assert any(tensor.abs().sum() > 0 for key, tensor in tensors.items() if "lora_b" in key)
    for other, other_matrix, other_answers in found.values():
        assert other.keys() == tensors.keys()
        assert all(torch.equal(other[key], tensors[key]) for key in tensors)
        assert (other_matrix, other_answers) == (matrix, answers)


# -- reproducibility ---------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_run_whatever_was_drawn_before(
    plain_run: Path, tmp_path: Path
) -> None:
    torch.manual_seed(99)
    assert run_digests(Recipe().build(tmp_path).fit()) == run_digests(plain_run)


@pytest.mark.slow
def test_another_seed_gives_other_experts(plain_run: Path, tmp_path: Path) -> None:
    first, other = run_digests(plain_run), run_digests(Recipe(seed=1).build(tmp_path).fit())
    experts = [name for name in first if name.startswith("experts/") and "model" in name]
    assert len(experts) == 2
    assert all(first[name] != other[name] for name in experts)


def test_proxy_scores_are_taken_without_dropout_and_leave_the_mode_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sequence = Recipe(tasks=["paint"]).build(tmp_path)
    model = sequence.module.backbone.model
    modes: list[set[bool]] = []
    base_loss = ContinualModule.base_loss

    def spy(self: ContinualModule, batch: Batch) -> torch.Tensor:
        modes.append({part.training for part in model.modules()})
        return base_loss(self, batch)

    monkeypatch.setattr(ContinualModule, "base_loss", spy)
    model.train()
    sequence.trainer.allocate(sequence.module, sequence.data)
    assert modes
    assert all(mode == {False} for mode in modes)
    assert model.training


def test_an_allocation_does_not_depend_on_the_order_of_the_tasks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = []
    for order in (["paint", "count", "find"], ["find", "paint", "count"]):
        sequence = Recipe(tasks=order).build(tmp_path)
        plans = sequence.trainer.allocate(sequence.module, sequence.data)
        found.append({name: plan.to_dict() for name, plan in plans.items()})
    assert found[0] == found[1]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_an_expert_does_not_depend_on_the_tasks_that_follow(
    plain_run: Path, tmp_path: Path
) -> None:
    run = Recipe(tasks=["paint", "find"]).build(tmp_path).fit()
    file = "experts/paint/adapter_model.safetensors"
    ours, theirs = load_file(run / file), load_file(plain_run / file)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_second_sequence_with_the_same_module_or_trainer_is_refused(tmp_path: Path) -> None:
    first = Recipe(tasks=("paint",)).build(tmp_path)
    first.fit()
    with pytest.raises(ValueError, match="a new module and a new trainer"):
        first.fit()
    other = Recipe(tasks=("paint",)).build(tmp_path)
    with pytest.raises(ValueError, match="a new module and a new trainer"):
        other.trainer.fit(first.module, datamodule=other.data)


@pytest.mark.parametrize("option", ["max_steps", "limit_test_batches", "fast_dev_run"])
def test_options_that_cut_stages_short_are_refused(tmp_path: Path, option: str) -> None:
    with pytest.raises(ValueError, match=f"trainer.{option} cuts stages short"):
        Recipe(trainer={option: 3}).build(tmp_path)


class LateScalar(ContinualCallback):
    """Writes to TensorBoard after Lightning has closed its writer."""

    def on_evaluation_end(self, state: SequenceState, module: ContinualModule) -> None:
        logger: Any = state.trainer.logger
        logger.experiment.add_scalar("late", 1.0, state.stage.index)


@pytest.mark.slow
def test_no_writer_of_tensorboard_stays_open_after_a_run(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    run = Recipe(callbacks=[LateScalar()]).build(tmp_path).fit()
    left = set(threading.enumerate()) - before
    assert not [thread for thread in left if type(thread).__name__ == "_AsyncWriterThread"]
    events = EventAccumulator(str(run)).Reload()
    assert [event.step for event in events.Scalars("late")] == [0, 1, 2]
