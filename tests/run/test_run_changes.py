"""From which stage on a changed setting counts, for every setting that a resume compares."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from dmole.routing import (
    AnchorRouter,
    CommonExpertRouter,
    CommonMixing,
    GenerativeRouter,
    KeyRouter,
    RidgeRouter,
)
from dmole.run.changes import Remaining, accepted_changes, first_effect, part_changes
from dmole.run.restoring import why_unrepeatable
from dmole.streams.stream import SequentialStream

PLAN = SequentialStream().stages(["a", "b", "c"])
STATE: Any = SimpleNamespace(plan=PLAN)
BETWEEN = {(0, "evaluate"), (1, "train"), (1, "router"), (1, "evaluate")}
"""Stage 1 is finished."""
LAST = BETWEEN | {(2, "train"), (2, "router"), (2, "evaluate")}
ANSWERING = LAST | {(3, "train"), (3, "router")}


def remaining(done: set[tuple[int, str]], training: int = 0) -> Remaining:
    """Return what remains, with the experts of all stages up to the one in training."""
    trained = [index for index, phase in done if phase == "train"]
    placed = [s.expert for s in PLAN if s.index in trained or s.index == training]
    return Remaining.of(STATE, done, placed, training)


@pytest.mark.parametrize(
    ("name", "between", "within", "within_last", "answering"),
    [
        ("setting 'optimizer'", 2, 2, 3, None),
        ("setting 'dropout'", 2, 2, 3, None),
        ("setting 'precision'", 2, 2, 3, 3),
        ("setting 'limit_train_batches'", 2, 2, 3, None),
        ("setting 'trainer.accumulate_grad_batches'", 2, 2, 3, None),
        ("setting 'trainer.gradient_clip_val'", 2, 2, 3, None),
        ("setting 'data.batch_size'", 2, 2, 3, None),
        ("setting 'data.max_length'", 2, 2, 3, None),
        ("model setting 'schedule'", 2, 2, 3, None),
        ("model setting 'warmup'", 2, 2, 3, None),
        ("model setting 'skip_nonfinite_steps'", 2, 2, 3, None),
        ("model setting 'alpha'", 2, 3, None, None),
        ("model setting 'projector_experts'", 2, 3, None, None),
        ("model setting 'seed'", 2, 3, None, None),
        ("model setting 'beams'", 2, 2, 3, 3),
        ("allocator setting 'rank'", 2, 3, None, None),
        ("router setting 'quantile'", 2, 2, 3, 3),
        ("router setting 'partner'", 2, 2, 3, 3),
        ("router setting 'bank.reconstructor.components'", 2, 2, 3, None),
        ("router setting 'bank.standardize'", None, None, None, None),
        ("router setting 'reconstructor'", None, None, None, None),
        ("router setting 'question'", None, None, None, None),
        ("router setting 'exemplars'", 2, 2, 3, None),
        ("router setting 'mixing.train_routers'", 2, 3, None, None),
        ("router setting 'mixing.top_k'", 2, 2, 3, 3),
        ("Curriculum setting 'mode'", 2, 2, 3, None),
        ("RouterFitting setting 'embedding_samples'", 2, 2, 3, None),
        ("ElasticWeights setting 'coefficient'", 2, 2, 3, None),
        ("ElasticWeights setting 'online'", None, None, None, None),
        ("AdversarialTask setting 'seed'", None, None, None, None),
        ("ReplayImportance setting 'hidden'", None, None, None, None),
        ("Mine setting 'weight'", 2, 2, 3, None),
        ("epochs of task b", 2, 2, None, None),
        ("epochs of task a", None, None, None, None),
        ("repeat of task c", 3, 3, None, None),
        ("batch_size of task c", 3, 3, 3, None),
        ("max_new_tokens of task a", 2, 2, 3, 3),
    ],
)
def test_a_setting_counts_from_the_first_stage_that_reads_it(
    name: str,
    between: int | None,
    within: int | None,
    within_last: int | None,
    answering: int | None,
) -> None:
    cases = [
        (remaining(BETWEEN), between),
        (remaining(BETWEEN, training=2), within),
        (remaining(LAST, training=3), within_last),
        (remaining(ANSWERING), answering),
    ]
    for left, expected in cases:
        assert first_effect(name, "1", "2", left, STATE) == expected


def test_a_regularizer_cannot_be_added_or_removed() -> None:
    left = remaining(BETWEEN)
    for old, new in ((None, "1.0"), ("1.0", None)):
        assert first_effect("LoadBalance setting 'coefficient'", old, new, left, STATE) is None
        assert first_effect("Curriculum setting 'mode'", old, new, left, STATE) == 2


def test_a_change_is_recorded_with_its_stage_and_within_a_stage_its_step() -> None:
    saved, now = {"setting 'dropout'": "0.1"}, {"setting 'dropout'": "0.2"}
    (record,) = accepted_changes(saved, now, remaining(BETWEEN, training=2), STATE, 7)
    expected = {"setting": "setting 'dropout'", "before": "0.1", "now": "0.2", "from_stage": 2}
    assert record == {**expected, "from_step": 7}
    assert accepted_changes(saved, now, remaining(BETWEEN), STATE, None) == [expected]


def test_an_accepted_part_of_the_base_model_counts_from_the_first_stage_that_remains() -> None:
    saved, now = ({"tokenizer": {"sha256": text}, "numerics": {"sha256": text}} for text in "ab")
    expected = {"setting": "base model's tokenizer", "before": "a", "now": "b"}
    for done, first in ((BETWEEN, 2), (LAST, 3)):
        (record,) = part_changes(saved, now, remaining(done), 3)
        assert record == {**expected, "from_stage": first}
    (record,) = part_changes(saved, now, Remaining((), (), (), (), ()), 3)
    assert record["from_stage"] == 4  # after all stages
    assert part_changes(None, now, remaining(BETWEEN), 3) == []


def test_a_change_without_effect_is_refused_in_one_line() -> None:
    saved, now = {"model setting 'alpha'": "16.0"}, {"model setting 'alpha'": "8.0"}
    pattern = r"another model setting 'alpha', which can no longer take effect: keep it \(checkp"
    with pytest.raises(ValueError, match=pattern) as error:
        accepted_changes(saved, now, remaining(LAST, training=3), STATE, 9)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("setting", "keeps_rows"),
    [
        ("model setting 'beams'", False),
        ("setting 'precision'", False),
        ("router setting 'threshold_scale'", False),
        ("router setting 'router.mode'", False),
        ("base model's tokenizer", False),
        ("max_new_tokens of task a", False),
        ("router setting 'max_epochs'", True),
        ("setting 'optimizer'", True),
    ],
)
def test_a_row_is_evaluated_again_unless_a_later_change_concerns_its_answers(
    setting: str, keeps_rows: bool
) -> None:
    record = {"setting": setting, "from_stage": 2}
    state: Any = SimpleNamespace(plan=PLAN, done=LAST, changes=[record])
    reason = "" if keeps_rows else f"{setting} was changed from stage 2 on"
    router = KeyRouter()
    assert [why_unrepeatable(state, stage, router) for stage in PLAN] == [reason, "", ""]


def test_a_row_is_not_evaluated_again_after_a_later_fit_has_changed_its_routing() -> None:
    state: Any = SimpleNamespace(plan=PLAN, done=ANSWERING, changes=[])
    common = partial(CommonExpertRouter, mixing=CommonMixing())
    for router in (GenerativeRouter(), RidgeRouter(), common(RidgeRouter())):
        found = [why_unrepeatable(state, stage, router) for stage in PLAN]
        assert found == ["", f"the {type(router).__name__} was fitted again", ""]
    for router in (KeyRouter(), AnchorRouter(), common(KeyRouter())):
        assert not any(why_unrepeatable(state, stage, router) for stage in PLAN)
    state.done = ANSWERING - {(3, "router")}  # fitted by the resume
    assert why_unrepeatable(state, PLAN[1], GenerativeRouter()) == ""
