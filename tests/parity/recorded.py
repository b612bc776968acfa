"""The recorded cases of a file of fixtures, and a mixing layer with the weights of one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dmole.experts import ExpertLibrary, Gates
from dmole.experts.gates import MixingRecord
from dmole.routing import TokenGate, TokenMixing

Case = dict[str, Any]
Tensors = dict[str, Tensor]


def read_cases(path: Path) -> list[Case]:
    """Return the cases of a JSON file; there is at least one."""
    cases: list[Case] = json.loads(path.read_text(encoding="utf-8"))["cases"]
    assert cases, f"{path} holds no case"
    return cases


def load_cases(path: Path) -> list[tuple[Case, Tensors]]:
    """Return each case with its tensors, whose keys lose the name of the case."""
    tensors = load_file(path.with_suffix(".safetensors"))
    return [(case, below(tensors, case["case"] + ".")) for case in read_cases(path)]


def below(tensors: Tensors, prefix: str) -> Tensors:
    """Return the tensors whose keys start with a prefix, without it."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


@contextmanager
def naming(case: Case) -> Iterator[None]:
    """Add the name of the case to the message of a failed comparison."""
    try:
        yield
    except AssertionError as error:
        error.add_note(f"recorded case {case['case']}")
        raise


@dataclass(frozen=True)
class Mixed:
    """Output of a layer whose experts are mixed by token, and what it learns from.

    Attributes:
        output: ``(rows, tokens, out)``.
        record: Probabilities and weights of the tokens; ones where a single expert has no router.
        library: Holds the layer ``base`` with the expert ``task``.
    """

    output: Tensor
    record: MixingRecord
    library: ExpertLibrary

    def gradients(self) -> Tensors:
        """Return the gradients of ``lora_a``, ``lora_b`` and, where there is one, ``router``."""
        ((_, expert),) = self.library.experts("task")
        found = {name: parameter.grad for name, parameter in expert.named_parameters()}
        return {name: grad for name, grad in found.items() if grad is not None}


def mix(
    gate: TokenGate,
    x: Tensor,
    router: Tensor,
    lora_a: Tensor,
    lora_b: Tensor,
    scaling: float,
    base: tuple[Tensor, Tensor | None] | None = None,
    token_mask: Tensor | None = None,
) -> Mixed:
    """Send tokens through a layer that mixes its experts by token.

    Args:
        gate: From the router's logits to weights.
        x: ``(rows, tokens, in)``.
        router: ``(N, in)``; not used where ``N`` is 1.
        lora_a: ``(N, rank, in)``.
        lora_b: ``(N, out, rank)``.
        scaling: Factor of every expert's output.
        base: Weight and bias of the base layer; zeros without.
        token_mask: ``(rows, tokens)`` that the record leaves padding out by.
    """
    experts, rank, width = lora_a.shape
    weight, bias = base or (x.new_zeros(lora_b.shape[1], width), None)
    linear = nn.Linear(width, lora_b.shape[1], bias=bias is not None)
    linear.weight.data = weight
    if bias is not None:
        linear.bias.data = bias
    mixing = TokenMixing(gate)
    library = ExpertLibrary(nn.ModuleDict({"base": linear}), lambda _: "language", mixing=mixing)
    library.add_shapes("task", {"base": mixing.shape(rank, scaling * rank, experts, common=False)})
    saved = {
        "base.lora_a": lora_a.flatten(0, 1),  # (N * rank, in)
        "base.lora_b": lora_b.transpose(0, 1).flatten(1),  # (out, N * rank)
    }
    library.load_state_dict("task", saved | ({"base.router": router} if experts > 1 else {}))
    library.train_only("task")
    gates = Gates(("task",), torch.ones(len(x), 1), token_mask=token_mask, recording=True)
    with library.context.use(gates):
        output = library.model.get_submodule("base")(x)
    sure = torch.ones(x[..., 0].numel(), 1)
    record = gates.records[0] if experts > 1 else MixingRecord("base", sure, sure)
    return Mixed(output, record, library)
