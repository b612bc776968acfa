"""Gradient rules on a small library: closed forms, what they keep, and what is refused."""

from __future__ import annotations

import doctest
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from dmole.curriculum.rules import (
    GradientRule,
    InputPreconditioning,
    InputProjection,
    PastDirection,
    Training,
    UtilityFreezing,
    WeightSubspace,
    moments,
)
from dmole.curriculum.rules.moments import InputMoments, Moments, sketch_matrix, spectrum
from dmole.experts import ExpertLibrary, ExpertShape

WIDTH, OUT = 6, 5


def make_training(
    shape: ExpertShape | None = None, stage: int = 1, number: int = 0, *, zero: bool = False
) -> Training:
    """Return one expert in training on one linear, with random parameters and gradients."""
    torch.manual_seed(3)
    library = ExpertLibrary(nn.ModuleDict({"fc": nn.Linear(WIDTH, OUT)}), lambda _: "language")
    library.add_shapes("shared", {"fc": shape or ExpertShape(2, 2.0)})
    library.train_only("shared")
    for _, parameter in library.parameters("shared"):
        if not zero:
            parameter.data.normal_()
        parameter.grad = torch.randn_like(parameter)
    return Training(library, ("shared",), stage, number=number)


def update_of(training: Training) -> Any:
    return next(training.updates())[1]


def gradients(training: Training) -> dict[str, Tensor]:
    return {key: p.grad.clone() for key, p in training.parameters().items() if p.grad is not None}


def see(rule: GradientRule, training: Training, *batches: Tensor) -> None:
    """Let a rule see a stage, a step for each batch of inputs."""
    rule.before_stage(training)
    for inputs in batches:
        rule.observe("fc", inputs, None)
        with torch.no_grad():
            rule.after_step(training)
        rule.clear()
    rule.after_stage(training)


MIXTURE = ExpertShape(4, 4.0, heads=2)
NEUTRAL = [
    InputProjection(energy=0.0),
    InputPreconditioning(mu=None, damping=0.0),
    PastDirection(probability=0.0),
    UtilityFreezing(threshold=None),
    WeightSubspace(preserved=0.0),
]


@pytest.mark.parametrize("rule", NEUTRAL, ids=lambda rule: type(rule).__name__)
@torch.no_grad()
def test_a_rule_with_neutral_coefficients_changes_no_bit_and_keeps_nothing(
    rule: GradientRule,
) -> None:
    training = make_training(MIXTURE)
    before = {key: p.clone() for key, p in training.parameters().items()}
    expected = gradients(training)
    for _ in range(2):
        assert not rule.observes
        rule.before_stage(training)
        rule.apply(training)
        rule.after_step(training)
        rule.after_stage(training)
    assert all(torch.equal(value, expected[key]) for key, value in gradients(training).items())
    assert all(torch.equal(p, before[key]) for key, p in training.parameters().items())
    assert rule.tensors() == {}


# -- moments -----------------------------------------------------------------------------------


def moments_of(inputs: Tensor, omega: Tensor) -> Moments:
    found = Moments.zeros(omega)
    found.observe(inputs, omega)
    return found


@pytest.mark.parametrize("centered", [True, False])
@pytest.mark.parametrize("components", [3, 8, 20])
def test_the_spectrum_is_that_of_all_inputs_where_their_rank_is_below_the_sketch(
    components: int, *, centered: bool
) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(50, 2) @ torch.randn(2, 20) + (0.0 if centered else 1e-3)
    omega = sketch_matrix(20, components, "fc")
    values, vectors = spectrum(moments_of(inputs, omega), omega, centered=centered)
    exact = torch.cov(inputs.t(), correction=0) if centered else inputs.t() @ inputs / 50
    assert_close(vectors * values @ vectors.t(), exact.double(), rtol=1e-4, atol=1e-4)
    assert_close(vectors.t() @ vectors, torch.eye(len(values), dtype=torch.float64))


def test_sums_do_not_depend_on_how_inputs_are_split_into_steps() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(12, WIDTH)
    sums = []
    for sizes in ([12], [5, 7], [1] * 12):
        table = InputMoments(4)
        table.begin({"fc": WIDTH}, torch.device("cpu"))
        for part in inputs.split(sizes):
            table.observe("fc", part)
        table.commit()
        sums.append(table.stage["fc"])
    for other in sums[1:]:
        assert int(other.count) == 12
        assert_close(other.sketch, sums[0].sketch)
        assert_close(other.total, sums[0].total)


def test_a_step_with_an_input_that_is_not_finite_leaves_no_trace() -> None:
    table = InputMoments(4)
    table.begin({"fc": WIDTH}, torch.device("cpu"))
    table.observe("fc", torch.ones(2, WIDTH))
    table.commit()
    before = [part.clone() for part in table.stage["fc"].parts().values()]
    table.clear()
    table.observe("fc", torch.tensor([[float("inf")] + [0.0] * (WIDTH - 1)]))
    table.commit()
    assert all(
        torch.equal(a, b) for a, b in zip(table.stage["fc"].parts().values(), before, strict=True)
    )


def test_docstring_examples_hold() -> None:
    result = doctest.testmod(moments, extraglobs={"torch": torch})
    assert result.attempted
    assert result.failed == 0


# -- project -----------------------------------------------------------------------------------


@torch.no_grad()
def test_gradients_lose_the_directions_that_hold_the_energy_of_each_task() -> None:
    axes = torch.eye(WIDTH)
    first = torch.cat((3 * axes[:1], axes[1:2], 0.1 * axes[2:3]))  # 9, 1 and 0.01 of 10.01
    training = make_training(MIXTURE)
    rule = InputProjection(energy=0.95)
    see(rule, training, first)
    update = update_of(training)
    expected = {"a": update.lora_a.grad.clone(), "r": update.router.grad.clone()}
    up = update.lora_b.grad.clone()
    rule.before_stage(training)
    rule.apply(training)
    for name, gradient in (("a", update.lora_a.grad), ("r", update.router.grad)):
        expected[name][:, :2] = 0  # two axes hold 0.999, one would hold 0.899
        assert_close(gradient, expected[name], atol=1e-5, rtol=1e-5)
    assert torch.equal(update.lora_b.grad, up)
    see(rule, training, torch.cat((3 * axes[:1], 0.1 * axes[3:4])))  # the first axis holds enough
    assert rule.tensors()["kept/fc"].shape == (WIDTH, 2)
    see(rule, training, axes[3:5] * torch.tensor([[2.0], [1.0]]))  # 4 and 1 of 5
    kept = rule.tensors()["kept/fc"]
    assert_close(kept @ kept.t(), torch.diag(torch.tensor([1.0, 1, 0, 1, 1, 0])), atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_stage_that_another_process_has_trained_extends_the_subspace_alike() -> None:
    training = make_training()
    rule, other = (InputProjection(energy=0.9, components=3) for _ in range(2))
    rule.before_stage(training)
    rule.observe("fc", torch.randn(9, WIDTH), None)
    rule.after_step(training)
    other.load_tensors(rule.tensors())  # it ends the stage without having begun it
    for each in (rule, other):
        each.after_stage(training)
    assert torch.equal(other.tensors()["kept/fc"], rule.tensors()["kept/fc"])


# -- precondition ------------------------------------------------------------------------------


@pytest.mark.parametrize("power", [1.0, 0.5])
@torch.no_grad()
def test_gradients_of_experts_are_those_times_the_regularized_inverse(power: float) -> None:
    torch.manual_seed(1)
    inputs = torch.randn(40, WIDTH) * torch.arange(1, WIDTH + 1)
    training = make_training()
    rule = InputPreconditioning(mu=0.7, power=power, damping=0.0, energy=1.0)
    see(rule, training, inputs[:9], inputs[9:])
    gradient = update_of(training).lora_a.grad.clone()
    rule.before_stage(training)
    rule.apply(training)
    values, vectors = torch.linalg.eigh(torch.cov(inputs.t(), correction=0))
    inverse = vectors / (values.pow(power) + 0.7) @ vectors.t()
    assert_close(update_of(training).lora_a.grad, gradient @ (0.7 * inverse), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_covariance_is_that_of_all_stages_where_the_seed_changes_between_them() -> None:
    found = []
    for second in (0, 7):
        training = make_training()
        rule = InputPreconditioning(components=3)
        torch.manual_seed(1)
        for seed in (0, second):
            see(rule, replace(training, seed=seed), torch.randn(9, 2) @ torch.eye(WIDTH)[:2])
        rule.before_stage(replace(training, seed=second))
        rule.apply(training)
        found.append(update_of(training).lora_a.grad)
    assert_close(found[0], found[1])


@torch.no_grad()
def test_a_linear_whose_inputs_were_all_zero_keeps_its_gradients() -> None:
    training = make_training()
    rule = InputPreconditioning(components=3)
    see(rule, training, torch.zeros(4, WIDTH))
    expected = gradients(training)
    rule.before_stage(training)
    rule.apply(training)
    assert all(torch.equal(value, expected[key]) for key, value in gradients(training).items())


@torch.no_grad()
def test_routers_lose_at_most_the_damping_along_the_largest_directions() -> None:
    inputs = torch.cat((torch.diag(torch.tensor([8.0, 4, 3.9, 0, 0, 0])),) * 2)
    inputs = torch.cat((inputs, -inputs))  # a mean of zero
    training = make_training(MIXTURE)
    rule = InputPreconditioning(mu=None, damping=0.4, energy=1.0, window=1)
    see(rule, training, inputs)
    update = update_of(training)
    before, untouched = update.router.grad.clone(), update.lora_a.grad.clone()
    rule.before_stage(training)
    rule.apply(training)
    lost = torch.tensor([1 - 0.4, 3.9 / 4, 1, 1, 1, 1])  # the smallest is 0.4875 of the largest
    assert_close(update.router.grad, before * lost)
    assert torch.equal(update.lora_a.grad, untouched)


@torch.no_grad()
def test_the_covariance_is_that_of_all_earlier_stages() -> None:
    training = make_training()
    rule = InputPreconditioning()
    see(rule, training, torch.ones(2, WIDTH))
    see(rule, training, torch.zeros(2, WIDTH))
    past = rule.tensors()
    assert int(past["past/fc/count"]) == 4
    assert_close(past["past/fc/total"], torch.full((WIDTH,), 2.0))


# -- add ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("distance", "factor"), [(1e-3, 1.0), (1e3, None)])
@torch.no_grad()
def test_the_way_from_the_old_parameters_is_added_at_most_as_long_as_the_gradient(
    distance: float, factor: float | None
) -> None:
    training = make_training()
    rule = PastDirection(probability=1.0)
    rule.apply(training)
    expected = gradients(training)
    rule.after_stage(training)
    rule.before_stage(training)
    away = {}
    for key, parameter in training.parameters().items():
        away[key] = distance * torch.randn_like(parameter)
        parameter += away[key]
    rule.apply(training)
    norms = [torch.cat([t.flatten() for t in table.values()]).norm() for table in (expected, away)]
    scale = norms[0] / norms[1] if factor is None else torch.tensor(factor)
    for key, gradient in gradients(training).items():
        assert_close(gradient, expected[key] + scale * away[key], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_direction_is_added_in_a_share_of_the_steps_that_only_the_step_decides() -> None:
    rule, training = PastDirection(probability=0.3), make_training()
    rule.after_stage(training)
    for parameter in training.parameters().values():
        parameter += 1.0

    def added(number: int) -> bool:
        for parameter in training.parameters().values():
            parameter.grad = torch.ones_like(parameter)
        rule.apply(replace(training, number=number))
        return any(bool((gradient != 1).any()) for gradient in gradients(training).values())

    drawn = [added(number) for number in range(200)]
    assert 0.2 < sum(drawn) / 200 < 0.4  # three standard deviations
    assert [added(number) for number in range(20)] == drawn[:20]


@torch.no_grad()
def test_a_stage_of_other_parameters_has_no_old_ones() -> None:
    rule = PastDirection()
    rule.after_stage(make_training())
    with pytest.raises(ValueError, match="PastDirection needs one adapter that all stages train"):
        rule.before_stage(make_training(MIXTURE))


@torch.no_grad()
def test_at_the_old_parameters_nothing_is_added() -> None:
    rule, training = PastDirection(probability=1.0), make_training()
    rule.after_stage(training)
    expected = gradients(training)
    rule.apply(training)
    assert all(torch.equal(value, expected[key]) for key, value in gradients(training).items())


@torch.no_grad()
def test_a_gradient_that_is_not_finite_stays_in_its_parameter() -> None:
    rule, training = PastDirection(probability=1.0), make_training()
    rule.after_stage(training)
    update = update_of(training)
    update.lora_a += 1.0
    update.lora_b.grad[0, 0] = float("nan")
    before = update.lora_a.grad.clone()
    rule.apply(training)
    assert torch.equal(update.lora_a.grad, before)
    assert int(update.lora_b.grad.isnan().sum()) == 1


# -- freeze ------------------------------------------------------------------------------------

THREE = ExpertShape(6, 6.0, heads=3)


@torch.no_grad()
def test_experts_of_low_utility_neither_train_nor_decay() -> None:
    training = make_training(THREE, stage=1)
    rule = UtilityFreezing(threshold=0.1, momentum=0.0)
    rule.before_stage(training)
    inputs = torch.cat((torch.ones(1, WIDTH), 3 * torch.ones(1, WIDTH)))
    probabilities = torch.tensor([[0.1, 0.7, 0.2], [0.6, 0.1, 0.3]])
    rule.observe("fc", inputs, probabilities)
    rule.after_step(training)
    # utilization .35 .4 .25, importance 16.5 4.8 8.7: minmax .667 1 0 against 1 0 .333
    assert rule.trains("fc", stage=1).tolist() == [True, True, False]
    assert rule.trains("fc", stage=9).tolist() == [False, True, True]
    update, before = update_of(training), gradients(training)
    values = {key: p.clone() for key, p in training.parameters().items()}
    rule.apply(training)
    assert torch.equal(update.lora_a.grad[:4], before["shared/fc.lora_a"][:4])
    assert not update.lora_a.grad[4:].any()
    assert torch.equal(update.lora_b.grad[:, :4], before["shared/fc.lora_b"][:, :4])
    assert not update.lora_b.grad[:, 4:].any()
    assert torch.equal(update.router.grad, before["shared/fc.router"])
    for parameter in training.parameters().values():
        parameter += 1.0  # momentum and decay of an optimizer
    rule.after_step(training)
    assert torch.equal(update.lora_a[4:], values["shared/fc.lora_a"][4:])
    assert torch.equal(update.lora_a[:4], values["shared/fc.lora_a"][:4] + 1)
    assert torch.equal(update.lora_b[:, 4:], values["shared/fc.lora_b"][:, 4:])
    assert torch.equal(update.router, values["shared/fc.router"] + 1)


@torch.no_grad()
def test_a_gradient_that_is_not_finite_is_not_hidden_by_freezing() -> None:
    training = make_training(THREE)
    rule = UtilityFreezing()
    rule.before_stage(training)
    update_of(training).lora_a.grad[5, 0] = float("nan")
    rule.apply(training)
    assert update_of(training).lora_a.grad[5, 0].isnan()


def test_freezing_needs_parallel_experts() -> None:
    with pytest.raises(ValueError, match="UtilityFreezing: no linear has parallel experts"):
        UtilityFreezing().before_stage(make_training())


# -- osf ---------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_largest_singular_triplets_survive_the_steps_of_an_adaptive_optimizer() -> None:
    training = make_training(zero=True)
    weight = training.library.model.get_submodule("fc").weight.clone()
    rule, update = WeightSubspace(preserved=0.4), update_of(training)  # 2 of 5
    rule.before_stage(training)
    optimizer = torch.optim.AdamW(training.parameters().values(), lr=0.1)
    for _ in range(5):
        for parameter in training.parameters().values():
            parameter.grad = torch.randn_like(parameter)
        rule.apply(training)
        optimizer.step()
        rule.after_step(training)
    change = update.scaling * update.lora_b @ update.lora_a
    assert change.norm() > 0.1
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    total = weight + change
    assert_close(left[:, :2].t() @ total, values[:2, None] * right[:2], rtol=1e-4, atol=1e-5)
    assert_close(total @ right[:2].t(), left[:, :2] * values[:2], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_share_that_rounds_to_all_directions_leaves_one_to_train() -> None:
    training = make_training(zero=True)
    rule = WeightSubspace(preserved=0.99)
    rule.before_stage(training)
    rule.apply(training)
    assert [table.shape[1] for table in rule.derived()] == [OUT - 1, OUT - 1]
    assert all(p.grad is not None and p.grad.norm() > 1e-3 for p in training.parameters().values())


@torch.no_grad()
def test_without_exact_only_gradients_are_projected() -> None:
    training = make_training(zero=True)
    rule, update = WeightSubspace(preserved=0.4, exact=False), update_of(training)
    rule.before_stage(training)
    left, _, right = torch.linalg.svd(training.library.model.get_submodule("fc").weight)
    rule.apply(training)
    assert_close(left[:, :2].t() @ update.lora_b.grad, torch.zeros(2, 2), atol=1e-5, rtol=0)
    assert_close(update.lora_a.grad @ right[:2].t(), torch.zeros(2, 2), atol=1e-5, rtol=0)
    update.lora_b += 1.0
    rule.after_step(training)
    assert torch.equal(update.lora_b, torch.ones_like(update.lora_b))


@torch.no_grad()
def test_the_weight_of_a_stage_contains_the_earlier_experts() -> None:
    training = make_training()
    library, first = training.library, update_of(training)
    library.add_shapes("next", {"fc": ExpertShape(1, 1.0)})
    library.train_only("next")
    later = Training(library, ("next",), 2)
    rule = WeightSubspace(preserved=0.4)
    rule.before_stage(later)
    base = library.model.get_submodule("fc").weight
    left, _, _ = torch.linalg.svd(base + first.scaling * first.lora_b @ first.lora_a)
    found = rule.derived()[0]
    assert_close(found @ found.t(), left[:, :2] @ left[:, :2].t(), atol=1e-5, rtol=0)


def test_a_quantized_weight_is_refused() -> None:
    training = make_training()
    linear = training.library.model.get_submodule("fc").base
    linear.weight = nn.Parameter(torch.zeros(OUT, WIDTH, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match="WeightSubspace: the weight of fc is quantized"):
        WeightSubspace().before_stage(training)


# -- state -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "key", "value", "message"),
    [
        (InputPreconditioning, "past/fc/sketch", torch.zeros(2, 2), "past moments of 'fc' have"),
        (InputPreconditioning, "other/fc/sketch", torch.zeros(1), "'other/fc/sketch' is unknown"),
        (InputProjection, "kept/fc", torch.zeros(3), "'kept/fc' is unknown"),
        (UtilityFreezing, "fc/age", torch.zeros(3), "'fc/age' is unknown"),
        (WeightSubspace, "fc", torch.zeros(3), "has no state"),
    ],
)
def test_a_state_of_something_else_is_refused(
    make: type[GradientRule], key: str, value: Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make().load_tensors({key: value})


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (InputPreconditioning, {"mu": 0.0}),
        (InputPreconditioning, {"damping": 1.5}),
        (InputProjection, {"energy": 1.5}),
        (PastDirection, {"probability": -0.1}),
        (UtilityFreezing, {"momentum": 1.0}),
        (UtilityFreezing, {"threshold": float("nan")}),
        (WeightSubspace, {"preserved": 1.0}),
    ],
)
def test_settings_out_of_range_are_refused(make: Any, settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        make(**settings)
