from __future__ import annotations

import doctest
from collections.abc import Callable
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

import dmole.routing.token_gates
from dmole.regularizers import load_balance, soft_load_balance
from dmole.routing import (
    DenseGate,
    EntropyGate,
    TokenGate,
    TopKGate,
    normalized_entropy,
)

GATES = [DenseGate(), TopKGate(), TopKGate(renormalize=False), EntropyGate()]


def logits_of(*probabilities: float) -> torch.Tensor:
    return torch.tensor(probabilities).log()


def test_examples_in_the_docstrings_hold() -> None:
    result = doctest.testmod(dmole.routing.token_gates)
    assert result.attempted
    assert result.failed == 0


@pytest.mark.parametrize("gate", GATES)
def test_every_gate_gives_weights_of_the_shape_of_the_logits_in_float32(gate: TokenGate) -> None:
    out = gate(torch.randn(2, 3, 4).bfloat16())
    assert out.weights.shape == out.probabilities.shape == (2, 3, 4)
    assert out.weights.dtype == out.probabilities.dtype == torch.float32
    assert_close(out.probabilities.sum(-1), torch.ones(2, 3))
    assert ((out.weights >= 0) & (out.weights <= 1)).all()


@pytest.mark.parametrize("gate", GATES)
def test_every_gate_passes_a_gradient_to_the_router(gate: TokenGate) -> None:
    logits = torch.randn(5, 4, requires_grad=True)
    (gate(logits).weights * torch.randn(5, 4)).sum().backward()
    assert logits.grad.abs().sum() > 0


def test_dense_weights_are_the_probabilities() -> None:
    out = DenseGate()(logits_of(0.5, 0.3, 0.2))
    assert_close(out.weights, torch.tensor([0.5, 0.3, 0.2]))


def test_the_likeliest_experts_are_on_and_share_the_weight() -> None:
    logits = logits_of(0.1, 0.6, 0.3)
    assert_close(TopKGate(2)(logits).weights, torch.tensor([0.0, 2 / 3, 1 / 3]))
    assert_close(TopKGate(2, renormalize=False)(logits).weights, torch.tensor([0.0, 0.6, 0.3]))


def test_all_experts_kept_is_the_dense_gate() -> None:
    logits = torch.randn(7, 4)
    for renormalize in (True, False):
        assert_close(TopKGate(4, renormalize)(logits).weights, DenseGate()(logits).weights)


def test_a_top_p_of_one_is_the_dense_gate_however_the_sum_rounds() -> None:
    probabilities = torch.randn(20_000, 6).softmax(dim=-1)
    assert bool((probabilities.sort(descending=True).values.cumsum(-1) > 1).any())
    for threshold in (0.9, 1.0):
        gate = EntropyGate(top_p=1.0, threshold=threshold)
        assert torch.equal(gate.weigh(probabilities), probabilities)


class Operators(TorchDispatchMode):
    """Notes the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_the_running_sum_is_that_of_a_cpu_without_an_operator_that_cuda_orders_freely() -> None:
    probabilities = torch.randn(20_000, 9).softmax(dim=-1).sort(descending=True).values
    kept = probabilities.cumsum(dim=-1) <= 0.75
    kept[:, 0] = True
    with Operators() as operators:
        weights = EntropyGate(top_p=0.75, keep_top_k=1, threshold=1.0).weigh(probabilities)
    assert torch.equal(weights, probabilities * kept)
    assert "cumsum" not in operators.names
    assert "mul" in operators.names


def test_equal_logits_go_to_the_lower_columns() -> None:
    weights = TopKGate(2)(torch.zeros(3, 6)).weights
    assert_close(weights, torch.tensor([[0.5, 0.5, 0, 0, 0, 0]]).expand(3, 6))


def test_one_expert_per_token_has_weight_one_and_no_gradient() -> None:
    logits = torch.randn(5, 3, requires_grad=True)
    weights = TopKGate(1)(logits).weights
    assert_close(weights.sum(-1), torch.ones(5))
    (weights * torch.randn(5, 3)).sum().backward()
    assert_close(logits.grad, torch.zeros(5, 3))


def test_an_unsure_router_turns_all_experts_on() -> None:
    out = EntropyGate()(torch.zeros(2, 6))
    assert_close(out.weights, torch.full((2, 6), 1 / 6))
    assert_close(EntropyGate().measure(out.probabilities), torch.ones(2), rtol=0, atol=1e-3)


def test_a_sure_router_keeps_only_the_fixed_number() -> None:
    out = EntropyGate(keep_top_k=2)(torch.tensor([30.0, 1.0, 2.0, 0.0]))
    assert (out.weights != 0).tolist() == [True, False, True, False]
    assert_close(out.weights[0], torch.tensor(1.0))
    assert EntropyGate().measure(out.probabilities).abs() < 1e-3


def test_the_expert_that_crosses_the_top_p_is_dropped_and_nothing_is_renormalised() -> None:
    gate = EntropyGate(top_p=0.75, keep_top_k=1, threshold=1.0)
    assert_close(gate(logits_of(0.5, 0.3, 0.2)).weights, torch.tensor([0.5, 0.0, 0.0]))
    assert_close(gate(logits_of(0.3, 0.2, 0.5)).weights, torch.tensor([0.0, 0.0, 0.5]))
    gate = EntropyGate(top_p=0.85, keep_top_k=1, threshold=1.0)
    assert_close(gate(logits_of(0.5, 0.3, 0.2)).weights, torch.tensor([0.5, 0.3, 0.0]))


def test_a_threshold_of_one_turns_the_entropy_off() -> None:
    weights = EntropyGate(keep_top_k=1, threshold=1.0)(torch.zeros(1, 4)).weights
    assert (weights != 0).sum() == 3  # 3 of 4 quarters reach the top-p of 0.75 and do not cross it


@pytest.mark.parametrize("kind", ["tsallis", "renyi"])
@pytest.mark.parametrize("index", [0.5, 1.0, 1.1, 2.0])
def test_entropy_is_one_where_uniform_and_zero_where_certain(kind: str, index: float) -> None:
    both = torch.stack([torch.full((5,), 0.2), torch.eye(5)[0]])
    found = normalized_entropy(both, index, kind, 0.0)
    assert_close(found, torch.tensor([1.0, 0.0]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["tsallis", "renyi"])
def test_entropy_near_index_one_is_shannons_over_its_largest_value(kind: str) -> None:
    probabilities = torch.randn(20, 6, dtype=torch.float64).softmax(-1)
    shannon = -(probabilities * probabilities.log()).sum(-1) / torch.tensor(6.0).double().log()
    assert_close(normalized_entropy(probabilities, 1, kind, 0.0), shannon)
    near = normalized_entropy(probabilities, 1 + 1e-6, kind, 0.0)
    assert_close(near, shannon, rtol=1e-5, atol=1e-5)


def test_entropy_of_a_single_expert_is_zero() -> None:
    assert normalized_entropy(torch.ones(3, 1)).tolist() == [0, 0, 0]
    assert EntropyGate(keep_top_k=1)(torch.randn(3, 1)).weights.tolist() == [[1], [1], [1]]


def test_even_routing_gives_one_and_collapse_gives_the_number_of_experts() -> None:
    even = torch.full((4, 4), 0.25)
    assert_close(load_balance(even, torch.eye(4)), torch.tensor(1.0))
    assert_close(load_balance(even, even), torch.tensor(1.0))
    collapsed = torch.eye(4)[[2, 2, 2]]
    assert_close(load_balance(collapsed, collapsed), torch.tensor(4.0))
    assert_close(soft_load_balance(even, even), torch.tensor(1.0))
    assert_close(soft_load_balance(collapsed, collapsed), torch.tensor(4.0))


@pytest.mark.parametrize("function", [load_balance, soft_load_balance])
def test_padding_changes_no_balance_and_gets_no_gradient(
    function: Callable[..., torch.Tensor],
) -> None:
    logits = torch.randn(6, 4, requires_grad=True)
    mask = torch.tensor([True, True, False, True, False, False])
    out = TopKGate(2)(logits)
    masked = function(out.probabilities, out.weights, mask)
    assert_close(masked, function(out.probabilities[mask], out.weights[mask]))
    masked.backward()
    assert (logits.grad.abs().sum(-1) > 0).tolist() == mask.tolist()
    assert function(out.probabilities, out.weights, torch.zeros(6, dtype=torch.bool)) == 0


def test_the_balance_gradient_moves_probability_off_the_crowded_expert() -> None:
    logits = torch.tensor([[1.0, 0.0], [1.0, 0.0]], requires_grad=True)
    out = TopKGate(1)(logits)
    load_balance(out.probabilities, out.weights).backward()
    assert (logits.grad[:, 0] > 0).all()
    assert (logits.grad[:, 1] < 0).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: TopKGate(0), "top_k must be at least 1, got 0"),
        (lambda: TopKGate(3)(torch.zeros(1, 2)), "top_k is 3 but there are 2 experts"),
        (lambda: EntropyGate()(torch.zeros(1, 1)), "keep_top_k is 2 but there are 1 experts"),
        (lambda: EntropyGate(top_p=0), r"top_p must be in \(0, 1\], got 0"),
        (lambda: EntropyGate(keep_top_k=0), "keep_top_k must be at least 1"),
        (lambda: EntropyGate(threshold=-1), "threshold must be at least 0"),
        (lambda: EntropyGate(index=0), "index must be positive, got 0"),
        (lambda: EntropyGate(entropy="shannon"), "must be tsallis or renyi, got 'shannon'"),
        (lambda: EntropyGate(eps=-1), "eps must be at least 0"),
        (lambda: load_balance(torch.ones(2, 3), torch.ones(2, 4)), r"\(2, 3\), \(2, 4\) and None"),
        (lambda: load_balance(*[torch.ones(2, 3)] * 2, torch.ones(3)), r"and \(3,\)"),
    ],
)
def test_bad_arguments_are_refused_with_their_value(
    call: Callable[[], object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_a_config_chooses_the_gate_by_its_class() -> None:
    parser = ArgumentParser()
    parser.add_subclass_arguments(TokenGate, "gate")
    config = {"class_path": "dmole.routing.EntropyGate", "init_args": {"entropy": "renyi"}}
    gate = parser.instantiate_classes(parser.parse_object({"gate": config})).gate
    assert isinstance(gate, EntropyGate)
    assert (gate.entropy, gate.keep_top_k) == ("renyi", 2)
