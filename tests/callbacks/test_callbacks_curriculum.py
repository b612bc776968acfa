"""The factor of each module: from scores or gradients, clipped, blended to 1, on resume."""

from __future__ import annotations

import csv
import doctest
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from dmole.allocation import Allocation
from dmole.callbacks.curriculum import HEADER, Curriculum, Mode
from dmole.curriculum import factors as factors_module
from dmole.curriculum.factors import shares, update_factors
from dmole.run.board import RunBoard
from dmole.run.context import StageContext
from dmole.run.state import SequenceState
from dmole.streams.stream import SequentialStream, Stage


class World:
    """What the callback reads of trainer and module."""

    def __init__(
        self,
        folder: Path,
        difficulty: dict[str, float] | None = None,
        training: Sequence[str] = ("vision", "language"),
        steps: int = 10,
    ) -> None:
        plan = None
        if difficulty is not None:
            budget = dict.fromkeys(difficulty, 3)
            plan = Allocation("colors", (), difficulty, budget)
        self.module = SimpleNamespace(
            stage=StageContext(1, ("colors",), allocation=plan, steps=steps),
            training_modalities=lambda: training,
            log=lambda name, value, **_: self.logged.update({name: value}),
        )
        self.logged: dict[str, float] = {}
        self.trainer = SimpleNamespace(global_step=0, is_global_zero=True)
        board = RunBoard(folder.parent, name="", version=folder.name)
        self.state = SequenceState(self.trainer, board, SequentialStream())
        self.state.stage = Stage(1, "colors", ("colors",), "colors")
        self.trainer.sequence = self.state

    def start(self, curriculum: Curriculum) -> Curriculum:
        curriculum.on_train_start(self.trainer, self.module)
        return curriculum

    def step(self, curriculum: Curriculum, number: int) -> dict[str, float]:
        self.trainer.global_step = number
        curriculum.on_train_batch_start(self.trainer, self.module, None, number)
        return dict(self.module.stage.update_scale)

    def gradients(self, curriculum: Curriculum, **norms: float) -> None:
        """Let an optimizer step happen with gradients of these norms."""
        groups = []
        for name, norm in norms.items():
            weight = nn.Parameter(torch.zeros(4))
            weight.grad = torch.full((4,), norm / 2)
            groups.append({"name": name, "params": [weight]})
        optimizer = torch.optim.SGD(groups, lr=1.0)
        curriculum.on_before_optimizer_step(self.trainer, self.module, optimizer)

    def table(self) -> list[dict[str, str]]:
        with (self.state.run_dir / "curriculum.csv").open(encoding="utf-8") as file:
            return list(csv.DictReader(file))


def test_docstring_examples_hold() -> None:
    result = doctest.testmod(factors_module)
    assert result.attempted
    assert result.failed == 0


@pytest.mark.parametrize("share", [0.01, 0.2, 0.25, 0.5, 0.6, 0.9, 1.0])
@pytest.mark.parametrize("ratio", [1.0, 1.5, 2.0, 10.0])
def test_factors_are_the_clipped_ratio_to_the_mean_share(share: float, ratio: float) -> None:
    found = update_factors({"vision": share, "language": 1 - share}, ratio)
    for name, value in (("vision", share), ("language", 1 - share)):
        assert found[name] == pytest.approx(min(ratio, max(1 / ratio, 2 * value)))


def test_equal_difficulty_a_single_module_and_no_difficulty_give_factor_one() -> None:
    assert update_factors({"vision": 0.5, "language": 0.5}, 3.0) == {"vision": 1, "language": 1}
    assert update_factors({"vision": 0.2}, 3.0) == {"vision": 1}
    assert update_factors({"vision": 0.0, "language": 0.0}, 3.0) == {"vision": 1, "language": 1}


def test_factors_do_not_depend_on_the_scale_of_the_scores() -> None:
    one = update_factors(shares({"vision": 3.0, "language": 1.0}), 5.0)
    other = update_factors(shares({"vision": 3e9, "language": 1e9}), 5.0)
    assert one == pytest.approx(other)
    assert shares({"vision": 0.0, "language": 0.0}) == {"vision": 0.5, "language": 0.5}
    assert shares({}) == {}


def test_the_easy_modality_can_learn_faster(tmp_path: Path) -> None:
    world = World(tmp_path, {"vision": 0.25, "language": 0.75})
    curriculum = world.start(Curriculum("static", favor="easy"))
    assert world.step(curriculum, 0) == pytest.approx({"vision": 2.0, "language": 2 / 3})
    with pytest.raises(ValueError, match="favor must be one of"):
        Curriculum(favor="none")  # type: ignore[arg-type]


def test_static_factors_hold_over_the_stage_and_are_logged_and_written(tmp_path: Path) -> None:
    world = World(tmp_path, {"vision": 0.25, "language": 0.75})
    curriculum = world.start(Curriculum("static"))
    expected = {"vision": 0.5, "language": 1.5}
    assert world.step(curriculum, 0) == world.step(curriculum, 9) == expected
    assert world.logged == {"curriculum/factor_vision": 0.5, "curriculum/factor_language": 1.5}
    rows = world.table()
    assert tuple(rows[0]) == HEADER
    assert [(r["modality"], r["difficulty"], r["budget"], r["factor"]) for r in rows] == [
        ("vision", "0.25", "3", "0.5"),
        ("language", "0.75", "3", "1.5"),
    ]


def test_annealing_is_a_line_from_the_first_factor_to_one(tmp_path: Path) -> None:
    world = World(tmp_path, {"vision": 0.25, "language": 0.75}, steps=10)
    world.trainer.global_step = 100  # earlier stages count too
    curriculum = world.start(Curriculum("static", anneal=True))
    for step in range(11):
        found = world.step(curriculum, 100 + step)
        assert found["vision"] == pytest.approx(0.5 + 0.5 * step / 10)
        assert found["language"] == pytest.approx(1.5 - 0.5 * step / 10)


def test_switched_off_every_factor_is_one(tmp_path: Path) -> None:
    world = World(tmp_path, {"vision": 0.1, "language": 0.9})
    curriculum = world.start(Curriculum("off"))
    assert world.step(curriculum, 0) == {"vision": 1.0, "language": 1.0}


def test_a_plan_without_scores_and_an_expert_without_plan_have_factor_one(tmp_path: Path) -> None:
    for difficulty in ({}, None):
        world = World(tmp_path, difficulty)
        assert world.step(world.start(Curriculum()), 0) == {"vision": 1.0, "language": 1.0}
        assert world.table() == []


def test_only_the_modules_in_training_count_for_the_mean(tmp_path: Path) -> None:
    world = World(tmp_path, {"vision": 0.1, "language": 0.9}, training=("language",))
    assert world.step(world.start(Curriculum()), 0) == {"language": 1.0}


def test_the_projector_goes_with_the_language_model(tmp_path: Path) -> None:
    training = ("vision", "projector", "language")
    world = World(tmp_path, {"vision": 0.25, "language": 0.75}, training)
    found = world.step(world.start(Curriculum()), 0)
    assert found == {"vision": 0.5, "projector": 1.5, "language": 1.5}


def test_online_factors_follow_a_moving_average_of_gradient_norms(tmp_path: Path) -> None:
    world = World(tmp_path, {"vision": 0.5, "language": 0.5})
    curriculum = world.start(Curriculum("online", max_ratio=100, momentum=0.9))
    assert world.step(curriculum, 0) == {"vision": 1.0, "language": 1.0}  # nothing seen yet
    average = {"vision": 3.0, "language": 1.0}
    for step, norms in enumerate([(3.0, 1.0), (1.0, 1.0), (0.0, 5.0)], start=1):
        new = dict(zip(average, norms, strict=True))
        average = {k: 0.9 * average[k] + 0.1 * new[k] for k in average} if step > 1 else new
        world.gradients(curriculum, **new)
        total = sum(average.values())
        found = world.step(curriculum, step)
        for name, value in average.items():
            assert found[name] == pytest.approx(2 * value / total, rel=1e-5)
    curriculum.on_train_end(world.trainer, world.module)
    rows = world.table()
    assert [row["step"] for row in rows] == ["", "", "3", "3"]
    assert float(rows[2]["factor"]) == pytest.approx(found["vision"])
    assert float(rows[2]["difficulty"]) == pytest.approx(found["vision"] / 2)


def test_static_factors_do_not_look_at_gradients(tmp_path: Path) -> None:
    world = World(tmp_path, {"vision": 0.25, "language": 0.75})
    curriculum = world.start(Curriculum("static"))
    world.gradients(curriculum, vision=9.0, language=1.0)
    assert world.step(curriculum, 1) == {"vision": 0.5, "language": 1.5}
    curriculum.on_train_end(world.trainer, world.module)
    assert len(world.table()) == 2


def test_online_scaling_does_not_feed_on_itself(tmp_path: Path) -> None:
    """The norms are of gradients, which the learning rate does not touch."""
    world = World(tmp_path, {"vision": 0.5, "language": 0.5})
    curriculum = world.start(Curriculum("online"))
    found = []
    for step in range(5):
        found.append(world.step(curriculum, step))
        world.gradients(curriculum, vision=2.0, language=1.0)
    assert found[1] == found[4]


def test_an_overflow_under_mixed_precision_does_not_spoil_the_average(tmp_path: Path) -> None:
    world = World(tmp_path, {"vision": 0.5, "language": 0.5})
    curriculum = world.start(Curriculum("online"))
    world.gradients(curriculum, vision=3.0, language=1.0)
    before = world.step(curriculum, 1)
    world.gradients(curriculum, vision=float("inf"), language=float("nan"))
    assert world.step(curriculum, 2) == before


def test_each_stage_starts_again_and_its_rows_are_added(tmp_path: Path) -> None:
    world = World(tmp_path, {"vision": 0.25, "language": 0.75})
    curriculum = world.start(Curriculum("online"))
    world.gradients(curriculum, vision=5.0, language=1.0)
    world.state.stage = Stage(2, "shapes", ("shapes",), "shapes")
    world.trainer.global_step = 10
    world.start(curriculum)
    assert world.step(curriculum, 10) == {"vision": 1.0, "language": 1.0}
    assert [(row["stage"], row["expert"]) for row in world.table()] == [
        ("1", "colors"),
        ("1", "colors"),
        ("2", "shapes"),
        ("2", "shapes"),
    ]


@pytest.mark.parametrize("mode", ["static", "online"])
def test_a_resumed_stage_continues_with_the_same_factors_and_writes_no_row_twice(
    tmp_path: Path, mode: Mode
) -> None:
    world = World(tmp_path, {"vision": 0.3, "language": 0.7})
    straight = world.start(Curriculum(mode, anneal=True))
    for step in range(4):
        world.step(straight, step)
        world.gradients(straight, vision=1.0 + step, language=2.0)
    resumed = Curriculum(mode, anneal=True)
    resumed.load_state_dict(straight.state_dict())
    world.trainer.global_step = 4
    rows = world.table()
    world.start(resumed)
    assert world.table() == rows
    assert world.step(resumed, 4) == world.step(straight, 4)
    world.gradients(resumed, vision=9.0, language=2.0)
    world.gradients(straight, vision=9.0, language=2.0)
    assert world.step(resumed, 5) == world.step(straight, 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "fast"}, "mode must be one of .*got 'fast'"),
        ({"max_ratio": 0.5}, "max_ratio must be at least 1, got 0.5"),
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\), got 1.0"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Curriculum(**arguments)


def test_a_plain_trainer_is_refused(tmp_path: Path) -> None:
    world = World(tmp_path)
    with pytest.raises(TypeError, match=r"needs a dmole\.ContinualTrainer"):
        Curriculum().on_train_start(SimpleNamespace(global_step=0), world.module)
