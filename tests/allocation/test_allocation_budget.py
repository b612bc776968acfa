from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dmole.allocation import (
    budget_modality,
    normalize_scores,
    round_half_up,
    score_shares,
    select_top_k,
    split_budget,
    spread_evenly,
    total_budget,
)

CAPS = {"vision": 24, "language": 24}
scores = st.floats(min_value=0, max_value=1e300, allow_nan=False)


def test_halves_are_rounded_up() -> None:
    assert [round_half_up(x) for x in (0.49, 0.5, 1.5, 2.5)] == [0, 1, 2, 3]


def test_the_projector_draws_on_the_language_budget() -> None:
    assert budget_modality("projector") == "language"
    with pytest.raises(ValueError, match="'audio'"):
        budget_modality("audio")


def test_paper_budget_is_half_of_the_layers() -> None:
    assert total_budget(48, 0.5) == 24
    assert total_budget(1, 0.01) == 1


def test_shares_three_to_one_split_24_experts_18_to_6() -> None:
    assert split_budget({"vision": 3.0, "language": 1.0}, 24, caps=CAPS) == {
        "vision": 18,
        "language": 6,
    }


@pytest.mark.parametrize(("floor", "vision"), [(0.0, 0), (0.25, 6)])
def test_vision_without_score_gets_its_floor(floor: float, vision: int) -> None:
    split = split_budget({"vision": 0.0, "language": 1.0}, 24, caps=CAPS, vision_floor=floor)
    assert split == {"vision": vision, "language": 24 - vision}


def test_what_exceeds_a_modality_spills_over() -> None:
    caps = {"vision": 10, "language": 24}
    assert split_budget({"vision": 9.0, "language": 1.0}, 24, caps=caps)["vision"] == 10
    caps = {"vision": 24, "language": 4}
    assert split_budget({"vision": 1.0, "language": 9.0}, 24, caps=caps)["vision"] == 20


def test_scores_that_are_all_zero_split_by_the_number_of_units() -> None:
    assert score_shares({"vision": 0.0, "language": 0.0}, {"vision": 1, "language": 3}) == {
        "vision": 0.25,
        "language": 0.75,
    }


def test_a_single_modality_gets_everything() -> None:
    assert split_budget({"language": 0.0}, 3, caps={"language": 4}) == {"language": 3}
    assert split_budget({"vision": 2.0}, 3, caps={"vision": 4}) == {"vision": 3}


def test_a_budget_larger_than_the_model_is_refused() -> None:
    with pytest.raises(ValueError, match="49 experts exceeds the 48 units"):
        split_budget({"vision": 1.0, "language": 1.0}, 49, caps=CAPS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"total": 0}, "at least 1"),
        ({"vision_floor": 1.5}, "vision_floor"),
        ({"scores": {"vision": math.nan, "language": 1.0}}, "score of vision"),
        ({"scores": {"vision": -1.0, "language": 1.0}}, "score of vision"),
    ],
)
def test_split_refuses_bad_arguments(changes: dict[str, object], message: str) -> None:
    kwargs = {"scores": {"vision": 1.0, "language": 1.0}, "total": 4, "caps": CAPS} | changes
    with pytest.raises(ValueError, match=message):
        split_budget(kwargs.pop("scores"), kwargs.pop("total"), **kwargs)


@given(
    vision=scores,
    language=scores,
    caps=st.tuples(st.integers(0, 40), st.integers(0, 40)).filter(any),
    floor=st.floats(0, 1),
    data=st.data(),
)
def test_the_split_always_spends_the_budget_within_the_caps(
    vision: float, language: float, caps: tuple[int, int], floor: float, data: st.DataObject
) -> None:
    total = data.draw(st.integers(1, sum(caps)))
    split = split_budget(
        {"vision": vision, "language": language},
        total,
        caps={"vision": caps[0], "language": caps[1]},
        vision_floor=floor,
    )
    assert sum(split.values()) == total
    assert 0 <= split["vision"] <= caps[0]
    assert 0 <= split["language"] <= caps[1]


@given(vision=st.floats(1e-3, 1e3), language=st.floats(1e-3, 1e3), factor=st.integers(-20, 20))
def test_scaling_the_loss_leaves_shares_and_split_unchanged(
    vision: float, language: float, factor: int
) -> None:
    one = {"vision": vision, "language": language}
    two = {tower: score * 2.0**factor for tower, score in one.items()}
    assert score_shares(one, CAPS) == score_shares(two, CAPS)
    assert split_budget(one, 24, caps=CAPS) == split_budget(two, 24, caps=CAPS)


def generator(seed: int = 42) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_top_k_returns_the_best_first() -> None:
    assert select_top_k({"a": 1.0, "b": 3.0, "c": 2.0}, 2, generator()) == ["b", "c"]


def test_ties_are_drawn_by_seed_and_not_by_order() -> None:
    tied = dict.fromkeys("abcdefgh", 1.0) | {"z": 2.0}
    backwards = dict(reversed(tied.items()))
    picks = [tuple(select_top_k(tied, 4, generator(seed))) for seed in range(20)]
    assert picks[0] == tuple(select_top_k(backwards, 4, generator(0)))
    assert len(set(picks)) > 1
    assert all(pick[0] == "z" and len(set(pick)) == 4 for pick in picks)


@given(st.dictionaries(st.text(min_size=1), st.integers(0, 3).map(float), max_size=12), st.data())
def test_nothing_outside_beats_the_selected(values: dict[str, float], data: st.DataObject) -> None:
    k = data.draw(st.integers(0, len(values)))
    chosen = select_top_k(values, k, generator())
    outside = [score for name, score in values.items() if name not in chosen]
    assert len(set(chosen)) == k
    assert not chosen or not outside or min(values[n] for n in chosen) >= max(outside)


def test_top_k_refuses_more_than_there_are_and_nan() -> None:
    with pytest.raises(ValueError, match="cannot select 2 of 1"):
        select_top_k({"a": 1.0}, 2, generator())
    with pytest.raises(ValueError, match="score of a is nan"):
        select_top_k({"a": math.nan}, 1, generator())


def test_normalization_divides_by_the_mean_of_the_modality() -> None:
    modalities = {"v0": "vision", "v1": "vision", "l0": "language"}
    assert normalize_scores({"v0": 1.0, "v1": 3.0, "l0": 0.0}, modalities, "tower") == {
        "v0": 0.5,
        "v1": 1.5,
        "l0": 0.0,
    }
    with pytest.raises(ValueError, match="'rank'"):
        normalize_scores({}, {}, "rank")  # type: ignore[arg-type]


@given(st.integers(1, 50).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))))
def test_even_spacing_never_repeats_a_unit(sizes: tuple[int, int]) -> None:
    n, k = sizes
    assert len(set(spread_evenly([str(i) for i in range(n)], k))) == k
