"""Allocation scores by hand, the sets that they pick, tables, and a run in two parts."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from dmole.allocation import Unit
from dmole.storage.seeds import expert_seed
from experiments import scores
from experiments.block_gains import Lesson
from experiments.block_scores import depth_scores, unit_score, weight_scores
from experiments.score_sets import ORACLE, picked, sets_of_scores, vision_share, with_share
from experiments.score_tables import (
    Result,
    correlation_table,
    rank_correlation,
    sets_table,
    within_table,
)

NAMES = ("vision.0", "vision.1", "language.0", "language.1")
UNITS = [Unit(name, name[:-2], (name,), 1) for name in NAMES]  # type: ignore[arg-type]
PUBLISHED = dict(zip(NAMES, (6.0, 2.0, 5.0, 3.0), strict=True))


def test_scores_of_a_linear_by_hand() -> None:
    weight = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    gradient = torch.tensor([[1.0, -2.0], [0.0, 2.0]])
    found = weight_scores(weight, gradient, torch.tensor([2.0, 1.0]), torch.tensor([[1.0, 1.0]]))
    assert found == pytest.approx(
        {"per_parameter": 9, "relative": 3 / 5, "lora_b": 1 + 4, "snip": 3 + 8, "activation": 2 + 4}
    )
    assert unit_score("per_parameter", [9.0, 7.0], 8) == pytest.approx(math.sqrt(2))
    assert unit_score("lora_b", [9.0, 7.0], 8) == 4
    assert unit_score("snip", [9.0, 7.0], 8) == 16


def test_the_gradient_of_an_expert_is_what_lora_b_says() -> None:
    lesson = Lesson(scores.Recipe("tiny"), _task("count", 16, 4), 0)
    found = lesson.scores()["lora_b"]["language.1"]
    module = lesson.module
    module.add_expert(lesson._allocation(["language.1"]))
    for path, expert in module.library.experts("count"):
        generator = torch.Generator().manual_seed(expert_seed(0, "score", path))
        fresh = type(expert)(torch.nn.Linear(*_sizes(expert)), expert.shape, generator)
        expert.load_state_dict(fresh.state_dict())
    module.library.train_only("count")
    batches = [*lesson._batches("proxy", 0)][: lesson.recipe.proxy_batches]
    for batch in batches:
        module.loss_with(batch, "count").backward()  # type: ignore[no-untyped-call]
    squares = [
        (expert.get_parameter("lora_b").grad / expert.scaling).square().sum()  # type: ignore[operator]
        for _, expert in module.library.experts("count")
    ]
    assert found == pytest.approx(math.sqrt(float(sum(squares))), rel=1e-4)


def _sizes(expert: Any) -> tuple[int, int]:
    return expert.lora_a.shape[1], expert.get_parameter("lora_b").shape[0]


def _task(name: str, train: int, test: int) -> Any:
    address = f"synthetic://{name}/{{}}?size={{}}"
    return scores.Task(
        name,
        train=address.format("train", train),
        test=address.format("test", test),
        max_new_tokens=2,
    )


def test_the_allocator_picks_and_shares_move_the_budget() -> None:
    assert picked(UNITS, PUBLISHED, 0.5, split=True) == ("vision.0", "language.0")
    assert picked(UNITS, {**PUBLISHED, "vision.0": 1.0}, 0.5, split=False) == NAMES[2:]
    assert with_share(UNITS, PUBLISHED, 0.5, 1.0) == NAMES[:2]
    assert with_share(UNITS, PUBLISHED, 0.5, 0.0) == NAMES[2:]
    assert with_share(UNITS, PUBLISHED, 0.75, 0.0) == ("vision.0", *NAMES[2:])
    assert vision_share(UNITS, {"gradient": PUBLISHED}, "published") == 0.5
    assert depth_scores(UNITS)["first_blocks"]["language.0"] == 1.0
    rows = [*sets_of_scores(UNITS, {"gradient": PUBLISHED, ORACLE: PUBLISHED}, 0.25)]
    assert rows == [
        ("gradient", "split", ("vision.0",)),
        ("gradient", "across", ("vision.0",)),
        (ORACLE, "across", ("vision.0",)),
    ]


def test_a_trial_trains_a_block_alone_and_leaves_nothing_behind() -> None:
    lesson = Lesson(scores.Recipe("tiny", trial_steps=4), _task("count", 64, 4), 0)
    before = lesson._proxy_loss()
    fall, moved = lesson._trial(["language.3"], 4)
    assert lesson.trial_scores()["language.3"] == fall
    assert 0 < fall < before
    assert set(moved) == {"language.3"}
    assert moved["language.3"] > 0
    assert set(lesson.delta_scores(2)) == {unit.name for unit in lesson.units}
    assert lesson._proxy_loss() == before
    assert not lesson.module.library.names


def test_correlation_and_regret_by_hand() -> None:
    alone = {(name,): value for name, value in zip(NAMES, (10.0, 0.0, 30.0, 20.0), strict=True)}
    oracle = {name: alone[name,] for name in NAMES}
    result = Result("count", 0, UNITS, {"gradient": PUBLISHED, ORACLE: oracle}, alone)
    # ranks 4 1 3 2 and 2 1 4 3: squared differences 4 + 0 + 1 + 1
    assert rank_correlation(PUBLISHED, alone) == pytest.approx(1 - 6 * 6 / (4 * 15))
    assert math.isnan(rank_correlation(dict.fromkeys(NAMES, 1.0), alone))
    assert "| gradient | 0.40 | 0.40 |" in correlation_table([result])
    assert "| gradient | 1.00 | 1.00 |" in within_table([result])  # 10 0 and 30 20
    turned = {**alone, ("language.0",): 0.0}
    other = Result("count", 1, UNITS, {"gradient": PUBLISHED}, turned)
    assert "| gradient | 1.00 | -1.00 |" in within_table([other])
    assert "| gradient | 1.00 ± 0.00 | 0.00 ± 1.41 |" in within_table([result, other])
    lines = sets_table([_with_splits(result)], [0.25]).splitlines()
    assert "| gradient, across | 10.0 | 20.0 |" in lines
    assert "| oracle, across | 30.0 | 0.0 |" in lines


def test_sets_of_scores_that_are_not_compared_are_left_out() -> None:
    scores_of = {"gradient": PUBLISHED, "per_parameter": PUBLISHED, "random 1": PUBLISHED}
    every = Result("count", 0, UNITS, scores_of, {})
    some = Result("count", 0, UNITS, scores_of, {}, ("gradient", "random"))
    assert [name for name, *_ in every._picked(0.5)] == [
        *("gradient", "gradient", "per_parameter", "per_parameter", "random 1")
    ]
    assert [name for name, *_ in some._picked(0.5)] == ["gradient", "gradient", "random 1"]


def _with_splits(result: Result) -> Result:
    scores_of = {**result.scores, "per_parameter": PUBLISHED}
    return Result(result.task, 0, result.units, scores_of, result.values)


def test_a_run_is_continued_where_it_ended_and_writes_the_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, page = tmp_path / "plan.yaml", tmp_path / "page.md"
    task = {"name": "count", "train": "t", "test": "t"}
    plan.write_text(
        yaml.safe_dump(
            {
                "name": "other",
                "base_model": "tiny",
                "seeds": [0],
                "budgets": [0.5],
                "random_draws": 1,
                "recipe": {"rank": 2, "delta_steps": [4]},
                "tasks": [task],
            }
        )
    )
    marks = ("blocks", "correlation", "within", "sets", "splits")
    page.write_text("".join(f"<!-- other_{m} -->\n<!-- end other_{m} -->\n" for m in marks))
    ran = []

    def trial(recipe: Any, one: scores.Trial) -> Any:
        ran.append(one.blocks)
        if len(ran) == 4:
            raise KeyboardInterrupt
        if one.blocks is None:
            names = ("gradient", "per_parameter", *recipe.trained)
            return UNITS, dict.fromkeys(names, PUBLISHED)
        return 10.0 * len(one.blocks)

    monkeypatch.setattr(scores, "run_trial", trial)
    monkeypatch.setattr(scores, "ProcessPoolExecutor", _Inline)
    monkeypatch.setattr(scores, "as_completed", list)
    words = [f"--plan={plan}", f"--output={tmp_path / 'out'}", f"--page={page}"]
    with pytest.raises(KeyboardInterrupt):
        scores.main(words)
    with pytest.raises(SystemExit, match="has all results of no task yet"):
        scores.main([*words, "--tables"])
    scores.main(words)
    done = [blocks for index, blocks in enumerate(ran) if index != 3]
    assert len(done) == len(set(done))  # nothing was done twice
    assert {(name,) for name in NAMES} | {(), None} < set(done)
    assert "| expert in | count |" in page.read_text()
    assert "| no expert | 0.0 |" in page.read_text()
    assert "| vision.0 | 10.0 |" in page.read_text()
    assert "| gradient, split | 20.0 | 0.0 |" in page.read_text()
    assert "| delta_4 | n/a | n/a |" in page.read_text()
    assert (tmp_path / "out" / scores.PICTURE).stat().st_size > 1000
    before, written = len(ran), page.read_text()
    scores.main(words)
    assert (len(ran), page.read_text()) == (before, written)


class _Inline:
    """Runs in this process what is submitted, once its result is asked for."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def submit(self, function: Any, *args: Any) -> Any:
        class Asked:
            def result(self) -> Any:
                return function(*args)

        return Asked()

    def shutdown(self, **_: Any) -> None: ...
