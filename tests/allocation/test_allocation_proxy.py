from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dmole.allocation import SensitivityAllocator, proxy, score_gradients
from dmole.allocation.meter import GradientMeter


class Line(nn.Module):
    """y = a x + b, with a part that takes no part in the loss."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor([2.0], dtype=dtype))
        self.b = nn.Parameter(torch.tensor([0.5], dtype=dtype))
        self.idle = nn.Parameter(torch.ones(1, dtype=dtype))
        self.other = nn.Parameter(torch.ones(1, dtype=dtype))

    def loss(self, batch: tuple[float, float]) -> Tensor:
        x, y = batch
        return ((self.a * x + self.b + 0 * self.other - y) ** 2).sum()


BATCHES = [(1.0, 0.0), (2.0, 1.0)]  # residuals 2.5 and 3.5: gradients a: 5, 14; b: 5, 7


def score(model: Line, **kwargs: object) -> dict[str, float | None]:
    units = {"line": [model.a, model.b], "idle": [model.idle]}
    loss = kwargs.pop("loss_fn", model.loss)
    batches = kwargs.pop("batches", BATCHES)
    return score_gradients(model, units, batches, loss, **kwargs)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("reduction", "expected"),
    [
        ("sum", 19 + 12),
        ("mean", (19 + 12) / 2),
        ("mean_batch_norm", (5 + 14 + 5 + 7) / 2),
        ("fisher", (25 + 196 + 25 + 49) / 2),
    ],
)
def test_scores_follow_the_closed_form(reduction: str, expected: float) -> None:
    scores = score(Line(), reduction=reduction)
    assert scores["line"] == pytest.approx(expected, rel=1e-6)


def test_a_unit_without_gradient_scores_none_and_a_flat_one_zero() -> None:
    model = Line()
    units = {"idle": [model.idle], "flat": [model.other]}
    assert score_gradients(model, units, BATCHES, model.loss) == {"idle": None, "flat": 0.0}


def test_signed_gradients_cancel_in_the_sum_only() -> None:
    model = Line()
    batches = [(1.0, 0.0), (1.0, 5.0)]  # residuals +2.5 and -2.5
    assert score(model, batches=batches)["line"] == 0
    assert score(model, batches=batches, reduction="mean_batch_norm")["line"] == 10


def test_scaling_the_loss_scales_the_score() -> None:
    model = Line()
    scaled = score(model, loss_fn=lambda batch: 8 * model.loss(batch))
    one = score(model)["line"]
    assert one is not None
    assert scaled["line"] == 8 * one


def test_gradients_are_accumulated_in_float32() -> None:
    model = Line(torch.bfloat16)
    batches = [(1.0, 2.5 - 256.0)] + [(1.0, 2.5 - 0.5)] * 64  # a: 512 then 64 ones
    score_a = score_gradients(model, {"a": [model.a]}, batches, model.loss)["a"]
    assert score_a == 512 + 64


def test_everything_is_restored_and_no_gradient_is_kept() -> None:
    model = Line()
    model.a.requires_grad_(False)
    model.b.grad = torch.full((1,), 7.0)
    kept = model.b.grad
    score(model)
    assert [p.requires_grad for p in model.parameters()] == [False, True, True, True]
    assert model.b.grad is kept
    assert kept.item() == 7
    assert all(p.grad is None for p in (model.a, model.idle, model.other))


def test_everything_is_restored_after_an_error() -> None:
    model = Line()
    model.a.requires_grad_(False)
    with pytest.raises(ValueError, match="loss of batch 1 is nan"):
        score(model, batches=[(1.0, 0.0), (math.nan, 0.0)])
    assert [p.requires_grad for p in model.parameters()] == [False, True, True, True]
    assert all(p.grad is None for p in model.parameters())
    model.b.sum().backward()
    assert model.b.grad is not None  # no hook is left behind


def test_a_gradient_that_is_not_finite_names_unit_and_batch() -> None:
    model = Line()

    def loss(batch: tuple[float, float]) -> Tensor:
        return (model.a - 2.0).sqrt().sum()  # value 0, slope infinite

    with pytest.raises(ValueError, match="unit line in batch 0 is not finite"):
        score(model, loss_fn=loss)


@pytest.mark.parametrize("reduction", ["sum", "mean", "mean_batch_norm", "fisher"])
def test_a_batch_in_parts_scores_like_a_whole_one(reduction: str) -> None:
    model = Line()
    checks: list[bool] = []

    def in_parts(batch: tuple[float, float]) -> Iterator[Tensor]:
        for weight in (0.25, 0.5, 0.25):
            checks.append(all(p.grad is None for p in (model.a, model.b)))
            yield weight * model.loss(batch)

    assert score(model, loss_fn=in_parts, reduction=reduction) == score(model, reduction=reduction)
    assert checks == [True] * 6  # nothing is kept of a part but what the reduction needs


@pytest.mark.parametrize("reduction", ["sum", "fisher"])
def test_a_gradient_that_is_not_finite_in_one_part_names_unit_and_batch(reduction: str) -> None:
    model = Line()

    def in_parts(batch: tuple[float, float]) -> Iterator[Tensor]:
        yield (model.a - 2.0).sqrt().sum()  # value 0, slope infinite
        yield model.loss(batch)

    with pytest.raises(ValueError, match="unit line in batch 0 is not finite"):
        score(model, loss_fn=in_parts, reduction=reduction)


def test_a_loss_that_is_not_finite_in_a_later_part_names_the_batch() -> None:
    model = Line()

    def in_parts(batch: tuple[float, float]) -> Iterator[Tensor]:
        yield model.loss(batch)
        yield math.nan * model.loss(batch)

    with pytest.raises(ValueError, match="loss of batch 0 is nan"):
        score(model, loss_fn=in_parts)
    assert model.a.grad is None


def test_scores_are_taken_even_where_gradients_are_off() -> None:
    with torch.no_grad():
        assert score(Line())["line"] == 31


def test_no_batch_shared_parameters_and_unknown_reductions_are_refused() -> None:
    model = Line()
    with pytest.raises(ValueError, match="there is no batch"):
        score(model, batches=[])
    with pytest.raises(ValueError, match="units x and y share"):
        score_gradients(model, {"x": [model.a], "y": [model.a]}, BATCHES, model.loss)
    with pytest.raises(ValueError, match="no parameter"):
        score_gradients(model, {}, BATCHES, model.loss)
    with pytest.raises(ValueError, match="reduction"):
        score(model, reduction="max")


def test_a_loss_without_any_unit_leaves_all_scores_none() -> None:
    scores = score(Line(), loss_fn=lambda batch: torch.tensor(1.0))
    assert scores == {"line": None, "idle": None}


@pytest.mark.parametrize("reduction", ["sum", "mean", "mean_batch_norm", "fisher"])
def test_passes_over_groups_of_units_give_the_same_scores_and_keep_a_part_of_the_gradients(
    reduction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(*(nn.Linear(6, 6) for _ in range(4)))
    units: dict[str, list[nn.Parameter]] = {
        str(i): list(layer.parameters()) for i, layer in enumerate(layers)
    }
    units["idle"] = [nn.Parameter(torch.ones(2))]
    batches = [torch.randn(3, 6) for _ in range(3)]
    meters: list[GradientMeter] = []

    class Recorded(GradientMeter):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            meters.append(self)

    monkeypatch.setattr(proxy, "GradientMeter", Recorded)

    def found(passes: int) -> dict[str, float | None]:
        meters.clear()
        return score_gradients(
            layers,
            units,
            batches,
            lambda x: layers(x).square().sum(),
            reduction=reduction,  # type: ignore[arg-type]
            passes=passes,
        )

    whole = found(1)
    assert list(whole) == ["0", "1", "2", "3", "idle"]
    assert whole["idle"] is None
    assert found(2) == whole
    groups = [list(dict.fromkeys(slot.unit for slot in meter.slots)) for meter in meters]
    assert groups == [["0", "1"], ["2", "3", "idle"]]
    assert all(parameter.grad is None for parameter in layers.parameters())
    assert all(not meter.kept for meter in meters)  # freed before the next pass
    assert found(9) == whole  # more passes than units


def test_passes_over_batches_that_are_gone_after_one_are_refused() -> None:
    with pytest.raises(ValueError, match="1 for an iterator, got 2"):
        score(Line(), batches=iter(BATCHES), passes=2)
    with pytest.raises(ValueError, match="passes must be at least 1"):
        score(Line(), passes=0)
    with pytest.raises(ValueError, match="proxy_passes must be at least 1, got 0"):
        SensitivityAllocator(proxy_passes=0)


class Attention(nn.Module):
    """Query, key and value of one input, as three weights or as one."""

    def __init__(self, weight: Tensor, fused: bool) -> None:
        super().__init__()
        parts = [weight] if fused else list(weight.chunk(3))
        self.parts = nn.ParameterList(parts)

    def loss(self, x: Tensor) -> Tensor:
        query, key, value = torch.cat([x @ part.T for part in self.parts], dim=-1).chunk(3, dim=-1)
        return ((query @ key.T).softmax(-1) @ value).square().sum()


@pytest.mark.parametrize("reduction", ["sum", "mean", "fisher"])
def test_one_norm_over_a_unit_does_not_depend_on_fused_weights(reduction: str) -> None:
    torch.manual_seed(0)
    weight, batches = torch.randn(12, 5), [torch.randn(3, 5) for _ in range(4)]
    scores: dict[tuple[bool, str], float] = {}
    for fused in (True, False):
        for combine in ("norm", "sum"):
            model = Attention(weight.clone(), fused)
            units = {"block": list(model.parts)}
            found = score_gradients(
                model, units, batches, model.loss, reduction=reduction, combine=combine
            )  # type: ignore[call-overload]
            scores[fused, combine] = found["block"]
    assert scores[True, "norm"] == pytest.approx(scores[False, "norm"], rel=1e-5)
    assert scores[True, "sum"] == pytest.approx(scores[True, "norm"], rel=1e-5)  # one tensor
    if reduction != "fisher":
        assert scores[False, "sum"] > 1.1 * scores[False, "norm"]


def test_a_combination_without_a_definition_is_refused() -> None:
    with pytest.raises(ValueError, match="not defined for reduction 'mean_batch_norm'"):
        score(Line(), reduction="mean_batch_norm", combine="norm")
    with pytest.raises(ValueError, match="combine must be one of"):
        score(Line(), combine="max")
