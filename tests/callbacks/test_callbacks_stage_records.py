"""What TensorBoard shows of a stage: shares of experts, norms, gates and answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from run_digests import logged_steps

from dmole.allocation import UniformAllocator
from dmole.callbacks import EvaluationMatrix, ExpertAllocation, ExpertInspector
from dmole.callbacks.run_figures import drawn_stages
from dmole.callbacks.stage_records import case_texts, literal, stage_histograms, token_weights
from dmole.metrics.routing_rates import activation_shares
from dmole.routing import AutoencoderRouter, SharedRouter, TokenRouter, TopKGate

World = Any
MakeWorld = Callable[..., World]

NASTY = [
    "![x](http://evil/x.png)",
    "[a](javascript:alert(1))",
    "<script>alert(1)</script>",
    "<img src=http://evil>",
    "a | b `c` **d** _e_ \\ # f",
    "&lt;b&gt; &#124;",
]


@pytest.mark.filterwarnings("ignore:html5lib's sanitizer is deprecated")
@pytest.mark.parametrize("text", NASTY)
def test_a_text_of_the_data_is_shown_as_it_is(text: str) -> None:
    from tensorboard.plugin_util import markdown_to_safe_html  # warns of a part of its own

    shown = markdown_to_safe_html(f"| a |\n|---|\n| {literal(text)} |")
    assert shown.count("<td>") == 1
    for tag in ("<img", "<a ", "<script", "<strong", "<code", "<em"):
        assert tag not in shown
    plain = markdown_to_safe_html(literal("x"))
    assert plain == "<p>x</p>"


def test_case_studies_hold_few_samples_of_few_tasks(world: MakeWorld) -> None:
    built = world(EvaluationMatrix())
    line = {"id": "1", "prompt": "p" * 9999, "references": ["r"], "prediction": "<b>", "score": 1.0}
    table = built.state.callback_of(EvaluationMatrix)
    table.examples = {f"task{i}": [line | {"gate_set": "a+b"}] * 2 for i in range(50)}
    texts = case_texts(built.state)
    assert len(texts) == 17
    assert all(len(text) < 1500 for text in texts.values())
    assert "<b>" not in texts["cases/task0"]


def test_stages_are_drawn_evenly_and_the_last_always() -> None:
    for stages in (1, 9, 10, 11, 37, 200):
        drawn = drawn_stages(stages, 10)
        assert stages in drawn
        assert len(drawn) == min(10, stages + 1)
        gaps = np.diff(sorted(drawn))
        assert gaps.max() - gaps.min() <= 1
    assert drawn_stages(5, 0) == set()


def test_shares_of_experts_are_those_of_learned_tasks() -> None:
    counts = [
        (1, "a", "b", 9),
        (2, "a", "a", 1),
        (2, "a", "b", 1),
        (2, "a", "base", 1),
        (2, "a", "b+common", 1),
        (2, "later", "a", 5),
    ]
    shares = activation_shares(counts, 2, {"a": "a"}, common="common")
    assert shares == {"a": {"own": 25.0, "other": 50.0, "base": 25.0, "second": 0.0}}
    assert activation_shares([], 1, {"a": "a"}) == {}


def test_histograms_hold_norms_and_what_gates_depend_on(world: MakeWorld) -> None:
    router = AutoencoderRouter(components=2)
    built = world(EvaluationMatrix(), ExpertAllocation(), router=router)
    built.begin(1)
    router.fit("paint", torch.randn(20, 8))
    table = built.state.callback_of(EvaluationMatrix)
    threshold = router.threshold("paint")
    table.losses = {"paint": {"paint": [threshold / 10], "count": [threshold * 100, 0.0]}}
    found = stage_histograms(built.state, built.module)
    assert found["gates/own"] == pytest.approx([-1.0])
    assert found["gates/other"] == pytest.approx([2.0])
    assert set(found["expert_norm/language"]) == {0.0}  # nothing was trained
    router.add_update("count", "paint")  # both versions own the tasks of each
    assert sorted(stage_histograms(built.state, built.module)["gates/own"]) == pytest.approx(
        [-1, 2]
    )


def test_weights_of_tokens_are_those_of_mixed_experts(world: MakeWorld) -> None:
    built = world(
        EvaluationMatrix(),
        ExpertAllocation(),
        router=TokenRouter(TopKGate()),
        allocator=UniformAllocator(rank=2, experts=3),
    )
    assert token_weights(built.state, built.module) == []
    built.state.stage = built.state.plan[0]
    built.state.callback_of(ExpertAllocation).on_stage_start(built.state, built.module)
    weights = token_weights(built.state, built.module)
    assert 0 < len(weights) <= 10_000
    assert all(0.0 <= weight <= 1.0 for weight in weights)
    assert len(set(weights)) > 1
    plain = world(EvaluationMatrix(), router=SharedRouter())
    plain.begin(1)
    assert token_weights(plain.state, plain.module) == []


def test_tensorboard_gets_all_kinds_in_one_file(world: MakeWorld) -> None:
    built = world(EvaluationMatrix(), ExpertAllocation())
    built.trainer.loggers = [built.state.board]
    table = built.state.callback_of(EvaluationMatrix)
    table.matrix = np.full((3, 2), 50.0)
    built.state.callback_of(ExpertAllocation)
    inspector = ExpertInspector()
    for stage in (1, 2):
        built.begin(stage)
        table.matrix[stage + 1 :] = np.nan
        table.routing = [(stage, "paint", "paint", 3)]
        inspector.on_evaluation_end(built.state, built.module)
        table.matrix[stage + 1 :] = 50.0
    built.state.board.finalize("success")
    steps = logged_steps(built.folder)
    assert steps["score/paint"] == steps["activation/own/paint"] == [1, 2]
    assert steps["expert_norm/language"] == [1, 2]
    assert steps["evaluation_matrix"] == steps["expert_activation"] == [1]  # the last at the end
