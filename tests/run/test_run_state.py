"""The state of a sequence: stages, tasks, folder, costs, and how callbacks find it."""

from __future__ import annotations

import doctest
import json
from pathlib import Path

import pytest
from lightning.pytorch import Trainer

import dmole.callbacks.base
from dmole.callbacks import EvaluationMatrix, ReplayRecord, RouterFitting
from dmole.run.clock import Costs
from dmole.run.context import EvaluationPass, StageContext
from dmole.run.run_files import RunFile
from dmole.run.state import BEFORE_TRAINING, SequenceState, sequence_of
from dmole.streams.stream import JointStream, Stage
from dmole.trainer import ContinualTrainer


@pytest.fixture
def state(tmp_path: Path) -> SequenceState:
    trainer = ContinualTrainer(default_root_dir=str(tmp_path), accelerator="cpu")
    trainer.sequence.plan = [
        Stage(1, "first", ("a", "b"), "one", common="all"),
        Stage(2, "second", ("b", "c"), "two", common="all"),
    ]
    return trainer.sequence


def test_a_stage_trains_its_expert_and_then_the_common_one(state: SequenceState) -> None:
    assert [stage.experts for stage in state.plan] == [("one", "all"), ("two", "all")]
    assert Stage(1, "alone", ("a",), "one").experts == ("one",)
    assert BEFORE_TRAINING.experts == ()


def test_stages_and_tasks_so_far_follow_from_the_current_stage(state: SequenceState) -> None:
    assert (state.learned(), state.seen_tasks()) == ((), ())
    state.stage = state.plan[0]
    assert (state.learned(), state.seen_tasks()) == (tuple(state.plan[:1]), ("a", "b"))
    state.stage = state.plan[1]
    assert state.seen_tasks() == ("a", "b", "c")


def test_a_phase_is_timed_under_the_name_of_its_stage(state: SequenceState) -> None:
    state.stage = state.plan[1]
    with state.timed("embed"):
        pass
    (lap,) = state.clock.laps
    assert (lap.stage, lap.name, lap.phase) == (2, "second", "embed")


def test_digests_name_all_learned_stages_also_while_an_earlier_one_is_revisited(
    state: SequenceState,
) -> None:
    def stages() -> list[str]:
        state.put(RunFile("a.txt", lambda run: (run / "a.txt").write_text("a")))
        return [stage["name"] for stage in json.loads(file.read_text())["stages"]]

    file = state.run_dir / "digests.json"
    state.run_dir.mkdir(parents=True)
    state.stage, state.phase = state.plan[1], "evaluate"
    with state.revisited(BEFORE_TRAINING):
        assert (state.learned(), stages()) == ((), ["first", "second"])
    assert (state.stage, stages()) == (state.plan[1], ["first", "second"])
    state.phase = "train"
    assert stages() == ["first"]


def test_another_run_folder_takes_the_log_along(state: SequenceState, tmp_path: Path) -> None:
    state.write_to(tmp_path / "again")
    assert state.run_dir == tmp_path / "again"
    assert state.trainer.loggers[0].log_dir == str(tmp_path / "again")


def test_callbacks_find_each_other_by_type(state: SequenceState) -> None:
    assert state.callback_of(EvaluationMatrix) in state.callbacks
    state.callbacks[:] = [cb for cb in state.callbacks if not isinstance(cb, RouterFitting)]
    assert isinstance(state.callback_of(ReplayRecord), ReplayRecord)
    with pytest.raises(ValueError, match="the trainer has no callback RouterFitting"):
        state.callback_of(RouterFitting)


def test_lightnings_hooks_lead_to_the_state(state: SequenceState) -> None:
    assert sequence_of(state.trainer) is state
    plain = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    with pytest.raises(TypeError, match=r"needs a dmole\.ContinualTrainer, not a Trainer"):
        sequence_of(plain)


def test_the_example_of_a_callback_is_one() -> None:
    result = doctest.testmod(dmole.callbacks.base)
    assert (result.attempted, result.failed) == (1, 0)


def test_the_context_of_a_stage_names_its_experts(state: SequenceState) -> None:
    context = StageContext.of(state.plan[1], epochs=3)
    assert (context.index, context.experts, context.tasks) == (2, ("two", "all"), ("b", "c"))
    assert (context.expert, context.epochs, context.steps) == ("two", 3, 0)
    assert StageContext().expert is None
    (joint,) = JointStream().stages(["a", "b"])
    assert StageContext.of(joint, 1).experts == ("joint",)


def test_a_pass_plans_all_samples_of_a_batch_or_none() -> None:
    evaluation = EvaluationPass(gate_sets={"x": ("one",), "y": ()})
    assert evaluation.order(["y", "x"]) == [(), ("one",)]
    assert evaluation.order(["x", "z"]) is None


def test_costs_are_written_as_far_as_they_are_counted() -> None:
    costs = Costs()
    assert costs.to_dict() == {}
    costs.record(base=10)
    costs.record(trainable={"one": 2})
    costs.record(trainable={"two": 3}, active=11.5)
    costs.record(trainable={"two": 4})
    expected = {"base": 10, "active": 11.5, "trainable": {"one": 2, "two": 4}}
    assert costs.to_dict() == expected
    assert Costs.from_dict(expected) == costs
