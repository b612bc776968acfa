"""The maths of the rival methods against values recorded from their authors' code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import linear
from torch.testing import assert_close

from dmole.allocation import experts_by_depth
from dmole.regularizers import load_balance, overlap, soft_load_balance
from dmole.routing import (
    DenseGate,
    EntropyGate,
    TopKGate,
    normalized_entropy,
)

CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def load_cases(folder: Path, name: str) -> list[tuple[dict[str, Any], dict[str, Tensor]]]:
    """Each recorded case with its tensors, keys without the case's name."""
    file = folder / "baselines" / f"{name}.json"
    recorded = load_file(file.with_suffix(".safetensors"))
    cases = []
    for case in json.loads(file.read_text(encoding="utf-8"))["cases"]:
        prefix = case["case"] + "."
        found = {k.removeprefix(prefix): v for k, v in recorded.items() if k.startswith(prefix)}
        cases.append((case, found))
    return cases


def stacked(tensors: dict[str, Tensor], prefix: str) -> Tensor:
    """The experts' matrices ``prefix0, prefix1, ...`` as one tensor."""
    count = sum(key.startswith(prefix) for key in tensors)
    return torch.stack([tensors[f"{prefix}{index}"] for index in range(count)])


def mixture(
    x: Tensor, weights: Tensor, lora_a: Tensor, lora_b: Tensor, scaling: float | Tensor
) -> Tensor:
    """Sum of the experts' outputs ``scaling * g_i B_i A_i x`` with weights ``(..., N)``."""
    hidden = torch.einsum("...d,nrd->...nr", x, lora_a)
    return scaling * torch.einsum("...n,...nr,nor->...o", weights, hidden, lora_b)


@pytest.mark.parametrize("index", range(6))
def test_dense_mixture_and_its_gradients_equal_the_official_ones(fixtures_dir: Path, index: int):
    cases = load_cases(fixtures_dir, "coin_moelora_linear")
    assert len(cases) == 6
    case, tensors = cases[index]
    x = tensors["x"].clone().requires_grad_()
    router = tensors["router_weight"].clone().requires_grad_()
    lora_a = stacked(tensors, "A.").requires_grad_()
    lora_b = stacked(tensors, "B.").requires_grad_()
    assert lora_a.shape[1] == case["total_rank"] // case["experts"]
    assert case["scaling"] == case["alpha"] / case["total_rank"]

    base = linear(x, tensors["base_weight"], tensors.get("base_bias"))
    weights = DenseGate()(linear(x, router)).weights
    y = base + mixture(x, weights, lora_a, lora_b, case["scaling"])
    assert_close(y, tensors["y"], **CLOSE)
    (y * tensors["grad_out"]).sum().backward()
    assert_close(x.grad, tensors["grad_x"], **CLOSE)
    assert_close(router.grad, tensors["grad_router"], **CLOSE)
    assert_close(lora_a.grad, stacked(tensors, "grad_A."), **CLOSE)
    assert_close(lora_b.grad, stacked(tensors, "grad_B."), **CLOSE)


@pytest.mark.parametrize("index", range(8))
def test_top_k_mixture_and_balance_equal_the_ones_of_moe_peft(fixtures_dir: Path, index: int):
    cases = load_cases(fixtures_dir, "moepeft_topk_gate")
    assert len(cases) == 8
    case, tensors = cases[index]
    x, top_k = tensors["x"], case["top_k"]
    logits = linear(x, tensors["gate_weight"])
    assert_close(logits.flatten(0, -2), tensors["router_logits"], **CLOSE)
    out = TopKGate(top_k)(logits)
    y = mixture(x, out.weights, tensors["A"], tensors["B"], case["scaling"])
    assert_close(tensors["residual"] + y, tensors["y"], **CLOSE)
    flat = (out.probabilities.flatten(0, -2), out.weights.flatten(0, -2))
    mask = tensors["attention_mask"].flatten().bool()
    # theirs sums the shares over the slots of a token, ours sum to 1
    for ours, recorded in ((load_balance(*flat), "un"), (load_balance(*flat, mask), "")):
        theirs = case[f"balance_loss_{recorded}masked"]
        assert (top_k * ours).item() == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize("index", range(6))
def test_layers_of_mola_and_their_balance_equal_the_official_ones(fixtures_dir: Path, index: int):
    cases = load_cases(fixtures_dir, "mola_linear")
    assert len(cases) == 6
    case, tensors = cases[index]
    x, balance = tensors["x"], 0.0
    for layer, (count, top_k) in enumerate(zip(case["number_experts"], case["top_k"], strict=True)):
        prefix = f"layer{layer}."
        part = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        lora_a, lora_b = stacked(part, "A."), stacked(part, "B.")
        assert lora_a.shape[:2] == (count, case["rank"][layer])
        assert lora_a.numel() + lora_b.numel() == case["expert_parameters"][layer]
        out = TopKGate(top_k)(linear(x, part["router_weight"]))
        y = mixture(x, out.weights, lora_a, lora_b, case["alpha"] / case["rank"][layer])
        y = y + linear(x, part["base_weight"], part.get("base_bias"))
        assert_close(y, part["y"], **CLOSE)
        flat = out.probabilities.flatten(0, -2), out.weights.flatten(0, -2)
        balance += load_balance(*flat).item()
    assert balance == pytest.approx(case["balance_loss_sum_over_layers"], rel=1e-5)


@pytest.mark.parametrize("index", range(20))
def test_entropy_gate_and_its_loss_equal_the_official_ones(fixtures_dir: Path, index: int):
    cases = load_cases(fixtures_dir, "dynmole_gate")
    assert len(cases) == 20
    case, tensors = cases[index]
    gate = EntropyGate(
        top_p=case["top_p"],
        keep_top_k=case["keep_top_k"],
        threshold=case["entropy_threshold"],
        index=case["entropy_index"],
        entropy=case["entropy_type"],
        eps=case["eps"],
    )
    out = gate(tensors["logits"])
    assert_close(out.probabilities, tensors["probs"], **CLOSE)
    sure = tensors["sensitive_token"] == 0
    assert torch.equal((out.weights != 0)[sure], tensors["keep_mask"].bool()[sure])
    assert_close(out.weights[sure], tensors["weights"][sure], **CLOSE)
    entropy = normalized_entropy(out.probabilities, gate.index, gate.entropy, gate.eps)
    assert_close(entropy, tensors["entropy"], **CLOSE)
    # the loss is recorded with the recorded decisions; its entropy counts pad tokens
    mask = tensors["attention_mask"].flatten().bool()
    for which, counted in (("unmasked", None), ("masked", mask)):
        balance = soft_load_balance(out.probabilities, tensors["weights"], counted)
        loss = case["dyn_coef"] * entropy.mean() + case["aux_coef"] * balance
        assert loss.item() == pytest.approx(case[f"loss_{which}"], rel=1e-5)


def test_a_tower_of_32_has_the_official_numbers_of_experts(fixtures_dir: Path):
    file = fixtures_dir / "baselines" / "mola_linear.json"
    recorded = json.loads(file.read_text(encoding="utf-8"))
    assert experts_by_depth([2, 4, 6, 8], 32) == recorded["default_number_experts"]


@pytest.mark.parametrize("index", range(8))
def test_overlap_and_its_gradient_equal_the_three_official_ones(fixtures_dir: Path, index: int):
    cases = load_cases(fixtures_dir, "olora_penalty")
    assert len(cases) == 8
    case, tensors = cases[index]
    total = 0.0
    for layer in range(case["layers"]):
        experts = [tensors[f"layer{layer}.A{task}"] for task in range(case["current"] + 1)]
        current, past = experts[-1].clone().requires_grad_(), torch.cat(experts[:-1])
        penalty = overlap(current, past)
        penalty.backward()
        assert_close(current.grad, tensors[f"layer{layer}.grad_A_current"], **CLOSE)
        total += penalty.item()
    for source in ("official", "prism", "mcitlib"):
        assert total == pytest.approx(case[f"{source}_abs_sum"], rel=1e-5)
