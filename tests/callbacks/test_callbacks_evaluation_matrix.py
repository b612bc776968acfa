"""The matrix: what is pending, under which experts, and what a row says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dmole.callbacks import TrainingRouting
from dmole.callbacks.answers import DECODING, AnswerBook
from dmole.callbacks.evaluation_matrix import EvaluationMatrix
from dmole.callbacks.evaluation_plan import decoding_digest
from dmole.metrics import read_matrix
from dmole.module import Answers
from dmole.routing import (
    AllExpertsRouter,
    ArrowMixing,
    AutoencoderRouter,
    DenseGate,
    TokenMixing,
)
from dmole.run.context import EvaluationPass
from dmole.storage.predictions import read_stage

World = Any
MakeWorld = Callable[..., World]


def keys(world: World, task: str) -> list[str]:
    return [f"{task}/test/{sample.id}" for sample in world.data.test_samples(task)]


def references(world: World) -> dict[str, str]:
    """Return a right answer for each test sample."""
    return {
        f"{task}/test/{sample.id}": sample.references[0]
        for task in world.data.task_names
        for sample in world.data.test_samples(task)
    }


def answer(
    world: World, matrix: EvaluationMatrix, evaluation: EvaluationPass, texts: dict[str, str]
) -> list[str]:
    """Go through a pass as Lightning's test loop does; return the samples it answered."""
    world.module.evaluation = evaluation
    world.data.set_evaluation(evaluation)
    matrix.setup(world.trainer, world.module, "test")
    answered = []
    for loader in world.data.test_dataloader():
        for batch in loader:
            names = [
                f"{task}/test/{sample}"
                for task, sample in zip(batch.task_names, batch.sample_ids, strict=True)
            ]
            gate_sets = [evaluation.gate_sets[name] for name in names]
            outputs = {"answers": Answers(names, [texts[name] for name in names], gate_sets)}
            matrix.on_test_batch_end(world.trainer, world.module, outputs, batch, 0)
            answered += names
    matrix.teardown(world.trainer, world.module, "test")
    world.module.evaluation = EvaluationPass()
    return answered


def evaluate(world: World, matrix: EvaluationMatrix, texts: dict[str, str]) -> list[str]:
    """Evaluate the current stage; return the samples that were answered."""
    routed = matrix.plan(world.state, world.module)
    answered = answer(world, matrix, routed, texts)
    oracle = matrix.plan_oracle(world.state, world.module, routed)
    answered += answer(world, matrix, oracle, texts)
    matrix.add_row(world.state, world.module, routed, oracle)
    return answered


def test_a_plan_is_a_question_that_changes_nothing(world: MakeWorld) -> None:
    matrix, built = EvaluationMatrix(), world()
    built.begin(1)
    before = (dict(vars(built.data)), built.module.evaluation, matrix.answers.state_dict())
    first, again = (matrix.plan(built.state, built.module) for _ in range(2))
    assert first == again
    assert (vars(built.data), built.module.evaluation, matrix.answers.state_dict()) == before
    assert not list(built.folder.rglob("*.*"))


def test_a_pass_holds_lengths_digests_and_the_experts_of_the_stages_so_far(
    world: MakeWorld,
) -> None:
    matrix, built = EvaluationMatrix(), world()
    built.begin(2)
    built.state.stage = built.state.plan[0]  # a finished run is evaluated again
    routed = matrix.plan(built.state, built.module)
    assert routed.experts == ("paint",)
    decoding = decoding_digest(built.state, built.module)
    assert routed.digests == {"paint": built.module.library.digest("paint"), DECODING: decoding}
    assert routed.answer_lengths == {"paint": 2, "count": 2}
    assert {routed.gate_sets[key] for key in keys(built, "paint")} == {("paint",)}
    assert {routed.gate_sets[key] for key in keys(built, "count")} == {()}
    assert routed.pending == {"paint": [0, 1, 2], "count": [0, 1, 2]}


def test_answers_are_kept_under_all_that_they_are_generated_with(world: MakeWorld) -> None:
    built = world()
    built.begin(1)
    digests = [decoding_digest(built.state, built.module)]
    for task in built.state.data.tasks:
        task.max_new_tokens += 1
    digests.append(decoding_digest(built.state, built.module))
    for beams, settings in ((3, {}), (1, {"repetition_penalty": 1.05})):
        built.state._base_parts = None
        built.module.beams = beams
        built.module.backbone.set_generation(settings)
        digests.append(decoding_digest(built.state, built.module))
    for mixing in (ArrowMixing(3), ArrowMixing(1), TokenMixing(DenseGate())):
        built.module.router.mixing = mixing
        digests.append(decoding_digest(built.state, built.module))
    assert len(set(digests)) == 7
    book = AnswerBook()
    book.put("a/test/1", (), {DECODING: digests[0]}, "red")
    assert book.missing(["a/test/1"], {"a/test/1": ()}, {DECODING: digests[0]}) == []
    assert book.missing(["a/test/1"], {"a/test/1": ()}, {DECODING: digests[1]}) == [0]


def test_each_expert_is_hashed_once_an_evaluation(
    world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix, built = EvaluationMatrix(), world()
    built.begin(2)
    hashed: list[str] = []
    digest = built.module.library.digest

    def count(name: str) -> str:
        hashed.append(name)
        return digest(name)

    monkeypatch.setattr(built.module.library, "digest", count)
    evaluate(built, matrix, references(built))
    assert hashed == ["paint", "count"]


def test_a_row_scores_each_task_and_the_oracle_only_tasks_seen(world: MakeWorld) -> None:
    matrix, built = EvaluationMatrix(), world()
    texts = references(built)
    wrong = keys(built, "count")[0]
    evaluate(built, matrix, texts | {wrong: "nonsense"})
    assert matrix.matrix[0].tolist() == pytest.approx([100.0, 200 / 3])
    assert np.isnan(matrix.matrix[1:]).all()
    assert np.isnan(matrix.oracle).all()
    built.begin(1)
    evaluate(built, matrix, texts)
    assert matrix.oracle[1, 0] == 100.0
    assert np.isnan(matrix.oracle[1, 1])
    written, names = read_matrix(built.folder / "evaluation_matrix.csv")
    assert names == ["paint", "count"]
    np.testing.assert_array_equal(written, matrix.matrix[:2])
    lines = read_stage(built.folder, 0)
    assert list(lines) == ["paint", "count"]
    assert [line["score"] for line in lines["count"]] == [0.0, 100.0, 100.0]


def test_only_samples_whose_experts_changed_are_answered_again(world: MakeWorld) -> None:
    matrix, built = EvaluationMatrix(), world()
    texts = references(built)
    assert sorted(evaluate(built, matrix, texts)) == sorted(texts)
    built.begin(1)
    assert evaluate(built, matrix, texts) == keys(built, "paint")  # count keeps the base model
    for parameter in built.module.library.parameters("paint"):
        parameter[1].data.add_(1.0)  # an expert that continued training is another one
    assert evaluate(built, matrix, texts) == keys(built, "paint")
    built.begin(2)
    built.state.incremental_evaluation = False
    assert sorted(evaluate(built, matrix, texts)) == sorted(texts)


def test_the_oracle_answers_with_the_experts_that_the_task_was_trained_with(
    world: MakeWorld,
) -> None:
    matrix, built = EvaluationMatrix(), world(router=AllExpertsRouter())
    built.begin(2)
    routed = matrix.plan(built.state, built.module)
    assert set(routed.gate_sets.values()) == {("paint", "count")}
    oracle = matrix.plan_oracle(built.state, built.module, routed)
    assert {oracle.gate_sets[key] for key in keys(built, "paint")} == {("paint",)}
    assert {oracle.gate_sets[key] for key in keys(built, "count")} == {("paint", "count")}
    assert (oracle.name, oracle.digests, oracle.losses) == ("oracle", routed.digests, {})


def test_a_pass_that_was_cut_answers_only_the_batches_that_are_left(world: MakeWorld) -> None:
    matrix, built = EvaluationMatrix(), world()
    texts = references(built)
    routed = matrix.plan(built.state, built.module)
    built.module.evaluation = routed
    matrix.setup(built.trainer, built.module, "test")
    first = keys(built, "paint")[:2]
    outputs = {"answers": Answers(first, [texts[key] for key in first], [(), ()])}
    matrix.on_test_batch_end(built.trainer, built.module, outputs, None, 0)
    # another process
    resumed, other = EvaluationMatrix(), world()
    assert resumed.plan(other.state, other.module).earlier_answers == {}  # of another run
    other.state.run_id = built.state.run_id  # from the checkpoint
    again = resumed.plan(other.state, other.module)
    assert again.earlier_answers == {key: texts[key] for key in first}
    assert sorted([*answer(other, resumed, again, texts), *first]) == sorted(texts)
    assert resumed.answers.missing(texts, again.gate_sets, again.digests) == []


def test_a_request_to_end_leaves_the_test_loop_after_the_batch_is_written(
    world: MakeWorld,
) -> None:
    matrix, built = EvaluationMatrix(), world()
    built.state.interruption.signum = 15
    with pytest.raises(StopIteration):
        answer(built, matrix, matrix.plan(built.state, built.module), references(built))
    (journal,) = Path(built.folder / "checkpoints").glob("answers_routed_0.jsonl")
    assert len(journal.read_text().splitlines()) == 2  # the name of the pass and one batch


def test_the_state_of_a_matrix_comes_back(world: MakeWorld) -> None:
    matrix, built = EvaluationMatrix(), world()
    evaluate(built, matrix, references(built))
    other = EvaluationMatrix()
    other.load_sequence_state_dict(json.loads(json.dumps(matrix.sequence_state_dict())))
    np.testing.assert_array_equal(other.matrix, matrix.matrix)
    assert other.routing == matrix.routing
    assert evaluate(built, other, {}) == []  # nothing is pending


def test_metrics_leave_out_what_a_later_stage_has_trained(world: MakeWorld) -> None:
    matrix, built = EvaluationMatrix(), world(router=AutoencoderRouter())
    rows = {2: [["count", "count+paint", 3]]}
    routing = built.state.callback_of(TrainingRouting)
    routing.load_sequence_state_dict({"counts": rows, "incomplete": []})
    evaluate(built, matrix, references(built))
    content = matrix.metrics(built.state, built.module)
    assert content["routing"]["trained_with_partner"] is None


def test_costs_are_those_of_the_experts_that_samples_used(world: MakeWorld) -> None:
    matrix, built = EvaluationMatrix(), world()
    built.begin(1)
    evaluate(built, matrix, references(built))
    costs, size = built.state.clock.costs, built.module.library.count("paint")
    assert costs.base == built.module.backbone.parameter_count()
    assert costs.total == costs.base + size
    assert costs.active == costs.base + size / 2  # every other sample is of paint


def test_a_scope_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="avg_scope must be 'all' or 'seen', got 'some'"):
        EvaluationMatrix("some")
