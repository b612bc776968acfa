"""One linear layer with experts: values, gradients, precision, dropout, counts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from dmole.experts import (
    ExpertLibrary,
    ExpertShape,
    GateContext,
    Gates,
    LoRAExpert,
    RoutedLinear,
)
from dmole.experts.expert import expert_key
from dmole.experts.plan import LayerPlan

RANKS = {"a": 2, "b": 3, "c": 1}
ALPHAS = {"a": 4.0, "b": 3.0, "c": 5.0}


def routed(
    dropout: float = 0.0,
    bias: bool = True,
    view: str = "language",
    dtype: torch.dtype = torch.float32,
) -> RoutedLinear:
    layer = RoutedLinear(nn.Linear(6, 5, bias=bias).to(dtype), GateContext(), view, dropout)
    layer.base.requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    for name, rank in RANKS.items():
        expert = LoRAExpert(layer.base, ExpertShape(rank, ALPHAS[name]), generator)
        expert.lora_b.data = torch.randn(5, rank, generator=generator)
        layer.experts[expert_key(name)] = expert
    return layer


def loop(layer: RoutedLinear, x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The definition, one sample and expert at a time; weights ``(B, E)`` or ``(B, T, E)``."""
    rows = []
    for i, row in enumerate(x):
        y = layer.base(row)
        for column, name in enumerate(RANKS):
            expert = layer.expert(name)
            update = row @ expert.lora_a.T @ expert.lora_b.T * (ALPHAS[name] / RANKS[name])
            y = y + weights[i, ..., column, None] * update
        rows.append(y)
    return torch.stack(rows)


def run(layer: RoutedLinear, x: torch.Tensor, weights: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    with layer._context.use(Gates(list(RANKS), weights, **kwargs)):
        return layer(x)


@pytest.mark.parametrize(
    "weights",
    [
        torch.tensor([[1.0, 0, 0], [0, 1, 1], [0, 0, 0], [1, 1, 1]]),
        torch.tensor([[0.3, 0.7, 0], [0, 1.5, 0], [2, 0, -1], [0.1, 0.2, 0.3]]),
        torch.ones(4, 3),
        torch.tensor([[0.0, 1, 0]] * 4),
        torch.rand(4, 7, 3, generator=torch.Generator().manual_seed(0)),
    ],
    ids=["hard", "soft", "all", "one", "per token"],
)
@pytest.mark.parametrize("bias", [True, False])
def test_output_and_gradients_equal_the_loop_over_samples_and_experts(
    weights: torch.Tensor, bias: bool
) -> None:
    layer = routed(bias=bias)
    x, outer = torch.randn(4, 7, 6, requires_grad=True), torch.randn(4, 7, 5)
    parameters = [p for p in layer.parameters() if p.requires_grad]
    found, expected = run(layer, x, weights), loop(layer, x, weights)
    assert_close(found, expected, rtol=1e-5, atol=1e-5)
    with torch.no_grad():  # adds in place, with weights that are joined once
        assert_close(run(layer, x, weights), expected, rtol=1e-5, atol=1e-5)
    for one, other in zip(
        torch.autograd.grad((found * outer).sum(), [x, *parameters]),
        torch.autograd.grad((expected * outer).sum(), [x, *parameters]),
        strict=True,
    ):
        assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tokens", [2, 200], ids=["masked", "by row"])
def test_frozen_partners_that_differ_by_row_equal_the_loop(tokens: int) -> None:
    layer = routed()
    for name in ("a", "b"):
        layer.expert(name).requires_grad_(False)
    weights = torch.tensor([[1.0, 0, 1], [0, 0.5, 1], [0, 0, 1], [1, 0, 1]])
    x, outer = torch.randn(4, tokens, 6, requires_grad=True), torch.randn(4, tokens, 5)
    trained = list(layer.expert("c").parameters())
    found, expected = run(layer, x, weights), loop(layer, x, weights)
    assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for one, other in zip(
        torch.autograd.grad((found * outer).sum(), [x, *trained]),
        torch.autograd.grad((expected * outer).sum(), [x, *trained]),
        strict=True,
    ):
        assert_close(one, other, rtol=1e-4, atol=1e-4)
    gates = Gates(list(RANKS), weights)
    with layer._context.use(gates):
        layer(x)
        (plan,) = gates.plans.values()
        assert (plan.frozen_by_row(gates, "language", x) is not None) == (tokens == 200)


@pytest.mark.parametrize("graph", [True, False])
@pytest.mark.parametrize("shape", [(4, 6), (4, 7, 6), (4, 2, 3, 6)])
def test_any_number_of_axes_between_rows_and_width_is_allowed(
    shape: tuple[Any, ...], graph: bool
) -> None:
    layer, x = routed(), torch.randn(shape)
    weights = torch.tensor([[1.0, 0, 0.5], [0, 1, 0], [0, 0, 0], [1, 1, 1]])
    with torch.set_grad_enabled(graph):
        found = run(layer, x, weights)
        assert found.shape == (*shape[:-1], 5)
        for i in range(4):
            assert_close(found[i : i + 1], run(layer, x[i : i + 1], weights[i : i + 1]))


def test_weights_are_joined_once_while_gates_are_in_use_and_anew_afterwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layer, x = routed(), torch.randn(2, 3, 6)
    gates = Gates(list(RANKS), torch.tensor([[1.0, 0, 0], [0, 1, 0]]))
    joined, original = [], torch.cat
    monkeypatch.setattr(torch, "cat", lambda *args, **kw: joined.append(0) or original(*args, **kw))
    with torch.no_grad():
        with layer._context.use(gates):
            before = [layer(x) for _ in range(5)]
        assert len(joined) == 2  # down- and up-projections
        layer.expert("a").lora_b.mul_(2.0)
        with layer._context.use(gates):
            after = layer(x)
    assert all(torch.equal(out, before[0]) for out in before)
    assert_close(after, loop(layer, x, gates.weights))
    assert not torch.equal(after[0], before[0][0])


def test_experts_that_no_sample_uses_are_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = routed(), torch.randn(2, 3, 6)
    calls, original = [], LayerPlan.down

    def down(self: LayerPlan) -> torch.Tensor:
        calls.append(self.names)
        return original(self)

    monkeypatch.setattr(LayerPlan, "down", down)
    with torch.no_grad():
        run(layer, x, torch.tensor([[1.0, 0, 0], [0, 0, 1]]))
        run(layer, x, torch.zeros(2, 3))
    assert calls == [["a", "c"]]


def test_a_trainable_expert_without_samples_has_gradients_of_zero() -> None:
    layer = routed()
    layer.expert("a").requires_grad_(False)
    run(layer, torch.randn(2, 3, 6), torch.zeros(2, 3)).sum().backward()
    assert layer.expert("a").lora_a.grad is None
    assert layer.expert("b").lora_a.grad.abs().max() == 0
    assert layer.expert("b").lora_b.grad.abs().max() == 0


def test_closed_gates_and_no_gates_are_the_base_layer_to_the_bit() -> None:
    layer, x = routed(), torch.randn(2, 3, 6)
    expected = layer.base(x)
    assert torch.equal(layer(x), expected)
    assert torch.equal(run(layer, x, torch.zeros(2, 3)), expected)
    with torch.no_grad():
        assert torch.equal(run(layer, x, torch.zeros(2, 3)), expected)


def test_a_new_expert_is_no_op_to_the_bit() -> None:
    layer, x = routed(), torch.randn(2, 3, 6)
    for name in RANKS:
        nn.init.zeros_(layer.expert(name).lora_b)
    assert torch.equal(run(layer, x, torch.ones(2, 3)), layer.base(x))


@pytest.mark.parametrize("shape", [(2, 6), (2, 1, 6), (2, 3, 6), (2, 5, 3, 6)])
def test_freezing_an_expert_changes_no_bit_of_its_output(shape: tuple[Any, ...]) -> None:
    layer, x = routed(bias=False), torch.randn(shape)
    weights = torch.tensor([[0.0, 1.0, 0.0]] * 2)
    with torch.no_grad():
        trainable = run(layer, x, weights)
        layer.requires_grad_(False)
        assert torch.equal(run(layer, x, weights), trainable)


def test_dropout_acts_on_the_experts_input_alone_and_only_in_training() -> None:
    layer, x = routed(dropout=0.5), torch.randn(2, 3, 6)
    layer.train()
    open_gates, closed = torch.ones(2, 3), torch.zeros(2, 3)
    assert not torch.equal(run(layer, x, open_gates), run(layer, x, open_gates))
    assert torch.equal(run(layer, x, closed), layer.base(x))
    layer.eval()
    assert_close(run(layer, x, open_gates), loop(layer, x, open_gates), rtol=1e-5, atol=1e-5)


def test_initial_weights_have_the_spread_of_kaiming_uniform() -> None:
    expert = LoRAExpert(nn.Linear(64, 5), ExpertShape(8, 16.0), torch.Generator().manual_seed(0))
    bound = 1 / math.sqrt(64)  # a = sqrt(5)
    assert expert.scaling == 2.0
    assert expert.lora_a.shape == (8, 64)
    assert expert.lora_b.shape == (5, 8)
    assert not expert.lora_b.any()
    assert 0.9 * bound < expert.lora_a.abs().max() <= bound


def test_a_rank_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="rank of an expert must be at least 1, got 0"):
        LoRAExpert(nn.Linear(4, 4), ExpertShape(0, 16.0), torch.Generator())


def test_a_base_in_half_precision_keeps_its_dtype_and_the_experts_theirs() -> None:
    layer = routed(dtype=torch.bfloat16)
    x = torch.randn(2, 3, 6, dtype=torch.bfloat16)
    weights = torch.tensor([[1.0, 0, 0], [0.5, 1, 0]])
    found = run(layer, x, weights)
    assert found.dtype == torch.bfloat16
    assert layer.expert("a").lora_a.dtype == torch.float32
    layer.base.float()
    expected = loop(layer, x.float(), weights)
    assert_close(found.float(), expected, rtol=2e-2, atol=5e-2)


def test_under_autocast_the_output_is_half_precision_and_gradients_are_float32() -> None:
    layer, x = routed(), torch.randn(2, 3, 6)
    weights = torch.tensor([[1.0, 0, 0], [0.5, 1, 0]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = run(layer, x, weights)
    assert found.dtype == torch.bfloat16
    found.float().sum().backward()
    assert layer.expert("a").lora_a.grad.dtype == torch.float32
    assert_close(found.float(), loop(layer, x, weights), rtol=3e-2, atol=6e-2)


def test_the_layer_looks_like_the_linear_it_wraps() -> None:
    layer = routed()
    assert (layer.in_features, layer.out_features) == (6, 5)
    assert layer.weight is layer.base.weight
    assert layer.bias is layer.base.bias
    assert layer.names == ("a", "b", "c")
    with pytest.raises(KeyError):
        layer.expert("d")


def tower(layers: int, shapes: Sequence[tuple[int, int]]) -> nn.ModuleList:
    return nn.ModuleList(
        nn.ModuleDict({str(i): nn.Linear(*shape) for i, shape in enumerate(shapes)})
        for _ in range(layers)
    )


def test_parameter_counts_of_the_published_model_follow_from_its_widths() -> None:
    vision = [(1024, 3072), (1024, 1024), (1024, 4096), (4096, 1024)]
    language = [(2048, 4096), (2048, 2048), (2048, 8192), (2048, 8192), (8192, 2048)]
    with torch.device("meta"):  # InternVL2-2B: 24 blocks a side
        model = nn.ModuleDict({"vision": tower(24, vision), "language": tower(24, language)})
    library = ExpertLibrary(model, lambda _: "language")
    paths = [path for path, child in model.named_modules() if isinstance(child, nn.Linear)]
    library.add("all linears", dict.fromkeys(paths, 4), dict.fromkeys(paths, 16.0))
    half = [path for path in paths if int(path.split(".")[1]) < 12]
    library.add("half the blocks", dict.fromkeys(half, 8), dict.fromkeys(half, 16.0))
    assert library.count("all linears") == library.count("half the blocks") == 5_505_024
    closed_form = 24 * sum(map(sum, vision)) + 24 * sum(map(sum, language))
    assert library.count("all linears") == 4 * closed_form
