from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmole.allocation import (
    Allocation,
    SensitivityAllocator,
    UniformAllocator,
    Unit,
    build_units,
    expert_parameters,
)


@dataclass(frozen=True)
class FakeLayer:
    name: str
    modality: str
    linears: tuple[str, ...]


def make_units(vision: int, language: int, projector: int = 0) -> list[Unit]:
    counts = {"vision": vision, "projector": projector, "language": language}
    return [
        Unit(f"{module}.{i}", module, (f"m.{module}.{i}.a", f"m.{module}.{i}.b"), 10)
        for module, count in counts.items()
        for i in range(count)
    ]


def make_scores(units: list[Unit], vision: float = 1.0, language: float = 1.0) -> dict[str, float]:
    weight = {"vision": vision, "projector": language, "language": language}
    return {unit.name: weight[unit.modality] * (1 + i / 100) for i, unit in enumerate(units)}


def internvl2_2b() -> tuple[list[FakeLayer], dict[str, tuple[int, int]]]:
    vision = {"qkv": (1024, 3072), "proj": (1024, 1024), "fc1": (1024, 4096), "fc2": (4096, 1024)}
    language = {"wqkv": (2048, 4096), "wo": (2048, 2048), "w1": (2048, 8192), "w3": (2048, 8192)}
    language["w2"] = (8192, 2048)
    layers, features = [], {}
    for module, shapes in (("vision", vision), ("language", language)):
        for i in range(24):
            paths = {f"{module}.layers.{i}.{name}": shape for name, shape in shapes.items()}
            layers.append(FakeLayer(f"{module}.{i}", module, tuple(paths)))
            features |= paths
    return layers, features


def test_rank_4_on_all_linears_of_internvl2_2b_counts_5505024_parameters() -> None:
    units = build_units(*internvl2_2b(), "linear")
    plan = UniformAllocator(rank=4, unit="linear").allocate("t", units, None, True)
    assert len(units) == 24 * 9
    assert expert_parameters(plan) == 5_505_024


def test_rank_8_on_half_the_blocks_counts_the_same_parameters() -> None:
    units = build_units(*internvl2_2b(), "block")
    scores = {unit.name: 1.0 for unit in units}
    plan = SensitivityAllocator(rank=8).allocate("t", units, scores, True)
    assert plan.budget == {"vision": 12, "language": 12}
    assert expert_parameters(plan) == 5_505_024


def test_a_layer_without_linears_or_with_an_unknown_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"vision\.0 has no linear"):
        build_units([FakeLayer("vision.0", "vision", ())], {})
    with pytest.raises(ValueError, match=r"linear m\.a is unknown"):
        build_units([FakeLayer("vision.0", "vision", ("m.a",))], {})


def test_the_budget_follows_the_difficulty() -> None:
    units = make_units(24, 24)
    scores = {unit.name: 3.0 if unit.modality == "vision" else 1.0 for unit in units}
    plan = SensitivityAllocator().allocate("t", units, scores, True)
    assert plan.difficulty == {"vision": 0.75, "language": 0.25}
    assert plan.budget == {"vision": 18, "language": 6}
    assert {entry.rank for entry in plan.experts} == {8}


@pytest.mark.parametrize(("floor", "vision"), [(0.0, 0), (0.25, 6), (1.0, 24)])
def test_a_modality_whose_scores_are_zero_gets_its_floor_of_the_budget(
    floor: float, vision: int
) -> None:
    units = make_units(24, 24)
    plan = SensitivityAllocator(vision_floor=floor).allocate(
        "t", units, make_scores(units, vision=0.0), True
    )
    assert plan.budget == {"vision": vision, "language": 24 - vision}


def test_without_curriculum_the_best_units_of_both_modalities_win() -> None:
    units = make_units(4, 4)
    plan = SensitivityAllocator(curriculum=False).allocate(
        "t", units, make_scores(units, vision=2.0), True
    )
    assert plan.budget == {"vision": 4, "language": 0}


def test_normalization_makes_modalities_comparable() -> None:
    units = make_units(4, 4)
    plan = SensitivityAllocator(curriculum=False, normalize="tower").allocate(
        "t", units, make_scores(units, vision=1000.0), True
    )
    assert plan.budget == {"vision": 2, "language": 2}
    assert plan.entries[0].score == 1000.0  # the table keeps what was measured


@given(
    sizes=st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2)),
    fraction=st.floats(0.01, 1.0),
    curriculum=st.booleans(),
    data=st.data(),
)
def test_the_number_of_experts_is_always_the_budget(
    sizes: tuple[int, int, int], fraction: float, curriculum: bool, data: st.DataObject
) -> None:
    units = make_units(*sizes)
    value = st.one_of(st.none(), st.just(math.nan), st.floats(0, 1e6))
    scores = {unit.name: data.draw(value) for unit in units}
    learnable = [s for s in scores.values() if s is not None and not math.isnan(s)]
    allocator = SensitivityAllocator(budget_fraction=fraction, curriculum=curriculum)
    if not learnable:
        with pytest.raises(ValueError, match="no unit"):
            allocator.allocate("t", units, scores, True)
        return
    plan = allocator.allocate("t", units, scores, True)
    expected = max(1, math.floor(fraction * len(units) + 0.5))
    assert len(plan.experts) == min(expected, len(learnable)) == sum(plan.budget.values())
    assert all(entry.score is not None for entry in plan.experts)
    assert Allocation.from_json(plan.to_json()) == plan


def test_units_without_gradient_are_never_chosen_but_zero_may_be() -> None:
    units = make_units(2, 2)
    scores = {"vision.0": 0.0, "vision.1": None, "language.0": 0.0, "language.1": math.nan}
    plan = SensitivityAllocator(budget_fraction=1.0).allocate("t", units, scores, True)
    assert [entry.unit for entry in plan.experts] == ["vision.0", "language.0"]


def test_the_allocation_of_a_task_does_not_depend_on_the_order_of_tasks() -> None:
    units = make_units(6, 6)
    tables = {f"t{i}": {unit.name: float(i) for unit in units} for i in range(1, 4)}  # all ties
    one, two = SensitivityAllocator(), SensitivityAllocator()
    forward = {t: one.allocate(t, units, s, t == "t1") for t, s in tables.items()}
    backward = {t: two.allocate(t, units, tables[t], t == "t3") for t in reversed(tables)}
    assert forward == {t: backward[t] for t in tables}


def test_another_modules_units_stay_in_the_table_without_expert() -> None:
    units = make_units(2, 2, projector=1)
    plan = SensitivityAllocator(modules=("language",), budget_fraction=1.0).allocate(
        "t", units, make_scores(units), True
    )
    assert [entry.expert for entry in plan.entries] == [False, False, True, True, True]
    assert plan.budget == {"language": 3}
    assert plan.difficulty == {"language": 1.0}


def test_the_parameter_cap_drops_the_lowest_scored_units() -> None:
    units = make_units(2, 2)
    scores = {"vision.0": 1.0, "vision.1": 4.0, "language.0": 3.0, "language.1": 2.0}
    plan = SensitivityAllocator(budget_fraction=1.0, rank=2, max_parameters=45).allocate(
        "t", units, scores, True
    )
    assert [entry.unit for entry in plan.experts] == ["vision.1", "language.0"]
    assert expert_parameters(plan) == 40
    with pytest.raises(ValueError, match=r"max_parameters=19 .* 20 parameters .* vision\.1"):
        SensitivityAllocator(rank=2, max_parameters=19).allocate("t", units, scores, True)


def test_missing_scores_are_refused() -> None:
    units = make_units(1, 1)
    with pytest.raises(ValueError, match="needs proxy scores"):
        SensitivityAllocator().allocate("t", units, None, True)
    with pytest.raises(ValueError, match=r"unit language\.0 has no proxy score"):
        SensitivityAllocator().allocate("t", units, {"vision.0": 1.0}, True)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"rank": 0}, "rank"),
        ({"unit": "layer"}, "unit"),
        ({"budget_fraction": 1.1}, "budget_fraction"),
        ({"modules": ()}, "modules"),
        ({"modules": ("projector",)}, "modules"),
        ({"proxy_fraction": 0.0}, "proxy_fraction"),
        ({"vision_floor": 2.0}, "vision_floor"),
        ({"reduction": "max"}, "reduction"),
        ({"normalize": "rank"}, "normalize"),
        ({"max_parameters": 0}, "max_parameters"),
    ],
)
def test_bad_arguments_are_refused(kwargs: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SensitivityAllocator(**kwargs)  # type: ignore[arg-type]


def test_uniform_takes_every_unit_or_evenly_spaced_ones() -> None:
    units = make_units(4, 8)
    assert len(UniformAllocator().allocate("t", units, None, True).experts) == 12
    plan = UniformAllocator(budget_fraction=0.5).allocate("t", units, None, True)
    assert [entry.unit for entry in plan.experts] == [
        *("vision.1", "vision.3"),
        *("language.1", "language.3", "language.5", "language.7"),
    ]
    assert plan.difficulty == {}


def test_uniform_leaves_out_units_that_get_no_gradient() -> None:
    units = make_units(2, 2)
    scores = make_scores(units) | {"vision.1": None}
    plan = UniformAllocator().allocate("t", units, scores, True)
    assert [e.unit for e in plan.experts] == ["vision.0", "language.0", "language.1"]


def test_first_task_only_allocates_once() -> None:
    units = make_units(2, 2)
    allocator = UniformAllocator(first_task_only=True)
    assert len(allocator.allocate("a", units, None, True).experts) == 4
    later = allocator.allocate("b", units, None, False)
    assert later.experts == ()
    assert expert_parameters(later) == 0


def test_rows_are_those_of_the_allocation_table() -> None:
    units = make_units(1, 1)
    plan = SensitivityAllocator().allocate("t", units, {"vision.0": 2.0, "language.0": None}, True)
    assert plan.rows(3) == [
        {"stage": 3, "expert": "t", "modality": "vision", "unit": "vision.0"}
        | {"score": 2.0, "selected": 1, "rank": 8},
        {"stage": 3, "expert": "t", "modality": "language", "unit": "language.0"}
        | {"score": "", "selected": 0, "rank": 0},
    ]


def test_an_expert_with_a_parent_takes_its_units_and_ranks_and_keeps_its_own_scores() -> None:
    units = make_units(2, 2)
    first, second = SensitivityAllocator(rank=4), SensitivityAllocator(rank=8)
    scores = {unit.name: float(index) for index, unit in enumerate(units)}
    parent = first.allocate("a", units, scores, True)
    fresh = second.allocate("b", units, {name: 4 - score for name, score in scores.items()}, False)
    plan = fresh.starting_from(parent)
    assert (plan.expert, plan.parent, plan.budget) == ("b", "a", parent.budget)
    placed = [(entry.unit, entry.rank) for entry in plan.experts]
    assert placed == [(entry.unit, entry.rank) for entry in parent.experts]
    assert placed != [(entry.unit, entry.rank) for entry in fresh.experts]
    assert [e.score for e in plan.entries] == [e.score for e in fresh.entries]
    assert plan.difficulty == fresh.difficulty
    assert Allocation.from_json(plan.to_json()) == plan
    other = first.allocate("c", units[:-1], scores, True)
    with pytest.raises(ValueError, match="expert b cannot start from c: they differ in the units"):
        fresh.starting_from(other)


def test_a_plan_without_a_parent_is_written_as_before() -> None:
    plan = UniformAllocator().allocate("t", make_units(1, 1), None, True)
    assert list(plan.to_dict()) == ["expert", "entries", "difficulty", "budget"]
    assert Allocation.from_dict(plan.to_dict()) == plan


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"start": "best"}, r"start must be one of \('fresh', 'closest'\), got 'best'"),
        ({"start_samples": 0}, "start_samples must be at least 1, got 0"),
    ],
)
def test_a_start_that_there_is_not_is_refused(kwargs: dict[str, Any], message: str) -> None:
    for kind in (UniformAllocator, SensitivityAllocator):
        with pytest.raises(ValueError, match=message):
            kind(**kwargs)


def test_a_broken_plan_is_refused() -> None:
    with pytest.raises(ValueError, match="not an allocation"):
        Allocation.from_json('{"task": "t"}')


def test_a_plan_with_the_field_names_of_earlier_versions_is_read() -> None:
    plan = UniformAllocator().allocate("t", make_units(1, 1), None, True)
    content = plan.to_dict()
    content["task"] = content.pop("expert")
    for entry in content["entries"]:
        entry["module"], entry["layer"] = entry.pop("modality"), entry.pop("unit")
    assert Allocation.from_dict(content) == plan


@pytest.mark.parametrize(
    ("rank", "factor", "expected"),
    [(8, 1.0, 8), (8, 0.625, 5), (128, 0.625, 80), (16, 0.375, 6), (4, 0.625, 3), (2, 0.125, 1)],
)
def test_a_factor_scales_the_rank_and_keeps_the_scaling(
    rank: int, factor: float, expected: int
) -> None:
    allocator = UniformAllocator(rank=rank, rank_factor=factor)
    plan = allocator.allocate("t", make_units(2, 2), None, first=True)
    assert {entry.rank for entry in plan.experts} == {expected}
    alpha = allocator.expert_alpha(2.0 * rank)
    assert alpha / expected == 2.0


@pytest.mark.parametrize(("rank", "alpha"), [(3, 0.1), (6, 1.1), (7, 0.3), (8, 16.0)])
def test_without_a_factor_alpha_stays_as_it_is(rank: int, alpha: float) -> None:
    assert UniformAllocator(rank=rank).expert_alpha(alpha) == alpha


@pytest.mark.parametrize("factor", [0.0, -1.0, math.inf, math.nan])
def test_a_factor_that_is_no_positive_number_is_refused(factor: float) -> None:
    with pytest.raises(ValueError, match="rank_factor must be a positive number"):
        SensitivityAllocator(rank_factor=factor)


def test_the_cap_on_parameters_counts_the_scaled_rank() -> None:
    units = make_units(2, 2)
    scores = make_scores(units)
    cap = 4 * 10  # one expert of rank 4
    allocator = SensitivityAllocator(rank=8, rank_factor=0.5, max_parameters=cap)
    assert expert_parameters(allocator.allocate("t", units, scores, first=True)) == cap
