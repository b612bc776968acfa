"""The maths of the rival methods against values recorded from their authors' code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from recorded import below, load_cases, mix, naming
from torch import Tensor
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


def stacked(tensors: dict[str, Tensor], prefix: str) -> Tensor:
    """The experts' matrices ``prefix0, prefix1, ...`` as one tensor."""
    count = sum(key.startswith(prefix) for key in tensors)
    return torch.stack([tensors[f"{prefix}{index}"] for index in range(count)])


def test_dense_mixture_and_its_gradients_equal_the_official_ones(fixtures_dir: Path) -> None:
    for case, tensors in load_cases(fixtures_dir / "baselines" / "coin_moelora_linear.json"):
        with naming(case):
            x, lora_a = tensors["x"].clone().requires_grad_(), stacked(tensors, "A.")
            assert lora_a.shape[:2] == (case["experts"], case["total_rank"] // case["experts"])
            assert case["scaling"] == case["alpha"] / case["total_rank"]
            mixed = mix(
                DenseGate(),
                x,
                tensors["router_weight"],
                lora_a,
                stacked(tensors, "B."),
                case["scaling"],
                base=(tensors["base_weight"], tensors.get("base_bias")),
            )
            assert_close(mixed.output, tensors["y"], **CLOSE)
            (mixed.output * tensors["grad_out"]).sum().backward()
            assert_close(x.grad, tensors["grad_x"], **CLOSE)
            found, none = mixed.gradients(), torch.zeros_like(tensors["router_weight"])
            assert_close(found.get("router", none), tensors["grad_router"], **CLOSE)
            grad_a, grad_b = stacked(tensors, "grad_A."), stacked(tensors, "grad_B.")
            assert_close(found["lora_a"], grad_a.flatten(0, 1), **CLOSE)  # (N * rank, in)
            assert_close(found["lora_b"], torch.cat(list(grad_b), dim=1), **CLOSE)


def test_top_k_mixture_and_balance_equal_the_ones_of_moe_peft(fixtures_dir: Path) -> None:
    for case, tensors in load_cases(fixtures_dir / "baselines" / "moepeft_topk_gate.json"):
        with naming(case):
            weights = tensors["gate_weight"], tensors["A"], tensors["B"]
            # theirs sums the shares over the slots of a token, ours sum to 1
            for mask, recorded in ((None, "unmasked"), (tensors["attention_mask"], "masked")):
                gate = TopKGate(case["top_k"])
                mixed = mix(gate, tensors["x"], *weights, case["scaling"], token_mask=mask)
                assert_close(tensors["residual"] + mixed.output, tensors["y"], **CLOSE)
                kept = slice(None) if mask is None else mask.flatten().bool()
                official = tensors["router_logits"].softmax(-1)[kept]
                assert_close(mixed.record.probabilities, official, **CLOSE)
                balance = load_balance(mixed.record.probabilities, mixed.record.weights)
                theirs = case[f"balance_loss_{recorded}"]
                assert (case["top_k"] * balance).item() == pytest.approx(theirs, rel=1e-5)


def test_layers_of_mola_and_their_balance_equal_the_official_ones(fixtures_dir: Path) -> None:
    for case, tensors in load_cases(fixtures_dir / "baselines" / "mola_linear.json"):
        balance = 0.0
        with naming(case):
            counts = zip(case["number_experts"], case["top_k"], case["rank"], strict=True)
            for index, (count, top_k, rank) in enumerate(counts):
                part = below(tensors, f"layer{index}.")
                lora_a, lora_b = stacked(part, "A."), stacked(part, "B.")
                assert lora_a.shape[:2] == (count, rank)
                assert lora_a.numel() + lora_b.numel() == case["expert_parameters"][index]
                mixed = mix(
                    TopKGate(top_k),
                    tensors["x"],
                    part["router_weight"],
                    lora_a,
                    lora_b,
                    case["alpha"] / rank,
                    base=(part["base_weight"], part.get("base_bias")),
                )
                assert_close(mixed.output, part["y"], **CLOSE)
                balance += load_balance(mixed.record.probabilities, mixed.record.weights).item()
            assert balance == pytest.approx(case["balance_loss_sum_over_layers"], rel=1e-5)


def test_entropy_gate_and_its_loss_equal_the_official_ones(fixtures_dir: Path) -> None:
    for case, tensors in load_cases(fixtures_dir / "baselines" / "dynmole_gate.json"):
        gate = EntropyGate(
            top_p=case["top_p"],
            keep_top_k=case["keep_top_k"],
            threshold=case["entropy_threshold"],
            index=case["entropy_index"],
            entropy=case["entropy_type"],
            eps=case["eps"],
        )
        with naming(case):
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


def test_a_model_of_32_blocks_has_the_official_numbers_of_experts(fixtures_dir: Path) -> None:
    file = fixtures_dir / "baselines" / "mola_linear.json"
    recorded = json.loads(file.read_text(encoding="utf-8"))
    assert experts_by_depth([2, 4, 6, 8], 32) == recorded["default_number_experts"]


def test_overlap_and_its_gradient_equal_the_three_official_ones(fixtures_dir: Path) -> None:
    for case, tensors in load_cases(fixtures_dir / "baselines" / "olora_penalty.json"):
        total = 0.0
        with naming(case):
            for layer in range(case["layers"]):
                experts = [tensors[f"layer{layer}.A{task}"] for task in range(case["current"] + 1)]
                current, past = experts[-1].clone().requires_grad_(), torch.cat(experts[:-1])
                penalty = overlap(current, past)
                penalty.backward()
                assert_close(current.grad, tensors[f"layer{layer}.grad_A_current"], **CLOSE)
                total += penalty.item()
            for source in ("official", "prism", "mcitlib"):
                assert total == pytest.approx(case[f"{source}_abs_sum"], rel=1e-5)
